"""Infer the naming scheme, the network and the number of classes of a PyTorch state_dict."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from math import gcd
from typing import Any, Self

import numpy as np

from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import VARIANTS, BasicUnit, BottleneckUnit, ResNet

# The package's layers by their names in torchvision and timm, in timm's deep stems, and in the book
# (NNDL: Practice, 5.4). A unit's other layers are convK everywhere; normK is bnK in those three.
TORCHVISION = {
    "stem/conv": "conv1",
    "stem/norm": "bn1",
    "stem/conv1": "conv1.0",
    "stem/norm1": "conv1.1",
    "stem/conv2": "conv1.3",
    "stem/norm2": "conv1.4",
    "stage/unit": "layer{}.{}",
    "shortcut_conv": "downsample.0",
    "shortcut_norm": "downsample.1",
    "average_conv": "downsample.1",
    "average_norm": "downsample.2",
    "head": "fc",
}
DEEP = TORCHVISION | {"stem/conv": "conv1.6"}
BOOK = TORCHVISION | {
    "stem/conv": "net.0.0",
    "stem/norm": "net.0.1",
    "stage/unit": "net.{}.{}",
    "shortcut_conv": "shortcut",
    "shortcut_norm": "bn3",
    "head": "net.7",
}
# Counters that some files hold and nothing here reads: batch norm's and that of averaged weights.
_COUNTERS = ("num_batches_tracked", "n_averaged")


def as_array(value: Any) -> np.ndarray:
    """Return a torch tensor, or anything that numpy takes, as an array."""
    if not hasattr(value, "detach"):  # so that torch need not be installed
        return np.asarray(value)
    try:
        tensor = value.detach().cpu()
        with suppress(TypeError):  # bfloat16, which numpy lacks
            return np.asarray(tensor)
        return np.asarray(tensor.float())
    except RuntimeError as error:  # quantised, or without data
        raise ResNetJaxError(
            f"a tensor of {value.dtype} on {value.device} is not read: save it in float32"
        ) from error


@dataclass(frozen=True)
class StateDict:
    """Arrays by name without counters and without a shared prefix, and their naming scheme."""

    entries: dict[str, np.ndarray]
    names: Mapping[str, str]
    prefix: str = ""

    @classmethod
    def of(cls, state_dict: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Self:
        try:
            arrays = {str(name): as_array(value) for name, value in dict(state_dict).items()}
        except (TypeError, ValueError) as error:
            given = type(state_dict).__name__
            raise ResNetJaxError(
                f"weights must be a state_dict, arrays by name, got {given}"
            ) from error
        entries = {n: v for n, v in arrays.items() if n.split(".")[-1] not in _COUNTERS}
        for names in (BOOK, TORCHVISION):
            first = names["stage/unit"].format(1, 0) + ".conv1.weight"
            prefixes = [n.removesuffix(first) for n in entries if f".{n}".endswith(f".{first}")]
            if not prefixes:
                continue
            prefix = prefixes[0]
            if len(prefixes) > 1:
                raise ResNetJaxError(
                    f"the weights are of several networks, under {', '.join(prefixes)}: give one"
                )
            if f"{prefix}conv1.6.weight" in entries:
                names = DEEP
            bare = cls({n.removeprefix(prefix): v for n, v in entries.items()}, names, prefix)
            if others := [n for n in entries if not n.startswith(prefix)]:
                raise ResNetJaxError(
                    f"the weights are those of {bare.likely_name} under {prefix} and of a larger "
                    f"network ({len(others)} entries: {', '.join(sorted(others)[:3])}, ...), in "
                    f"which it may compute something else (FCN's and DeepLab's is dilated): give "
                    f"the entries under {prefix} alone where it does not"
                )
            return bare
        of_book = any(name.startswith("net.") for name in entries)
        return cls(entries, BOOK if of_book else TORCHVISION)

    def get(self, module: str, leaf: str = "weight") -> np.ndarray | None:
        return self.entries.get(f"{self.names[module]}.{leaf}")

    @property
    def num_classes(self) -> int | None:
        weight, bias = self.get("head", "weight"), self.get("head", "bias")
        if weight is None or bias is None or weight.ndim != 2:
            return None  # there is no head, or it is no dense layer
        return weight.shape[0]

    @property
    def stem_kernel(self) -> np.ndarray:
        """The stem's first kernel, or zeros of the usual shape if there is none."""
        kernel = self.get("stem/conv1" if self.names is DEEP else "stem/conv")
        usable = kernel is not None and kernel.ndim == 4 and kernel.size
        return kernel if kernel is not None and usable else np.zeros((64, 3, 7, 7))

    @cached_property
    def network(self) -> ResNet:
        """The network, of any depth, that names and shapes imply."""
        first = self.names["stage/unit"].replace(".", r"\.").format(r"(\d)", r"\d+") + r"\.conv1\."
        stages = [int(match[1]) for name in self.entries if (match := re.match(first, name))]
        bottleneck = any(".conv3." in name for name in self.entries)
        deep, stem = self.names is DEEP, self.stem_kernel
        width = stem.shape[0] * (2 if deep else 1)
        # In a shortcut that averages before it projects, the projection is the second layer.
        second = f".{self.names['average_conv']}.weight"
        averages = any(n.endswith(second) and value.ndim == 4 for n, value in self.entries.items())
        # A bottleneck's widening and groups follow from the shape of the first one's 3x3 kernel.
        kernel = self.entries.get(f"{self.names['stage/unit'].format(1, 0)}.conv2.weight")
        inner = inputs = width
        if bottleneck and kernel is not None and kernel.ndim == 4 and kernel.size:
            inner, inputs = kernel.shape[:2]
        return ResNet(
            tuple(stages.count(stage) for stage in range(1, max(stages, default=0) + 1)),
            BottleneckUnit if bottleneck else BasicUnit,
            width=width,
            stem="deep" if deep else "small" if stem.shape[2:] == (3, 3) else "imagenet",
            shortcut="average" if averages else "projection",
            widening=max(inner // width, 1),
            groups=gcd(max(inner // inputs, 1), max(inner // width, 1) * width),
        )

    def nearest_model(self, residual: bool) -> ResNet:
        """Return `network` with the stage sizes of the nearest row of `VARIANTS`."""

        def distance(row: ResNet) -> int:
            pairs = zip_longest(row.stage_sizes, self.network.stage_sizes, fillvalue=0)
            return sum(abs(a - b) for a, b in pairs)

        rows = [row() for row in VARIANTS.values() if row().unit is self.network.unit]
        sizes = min(rows, key=distance).stage_sizes
        return self.network.clone(stage_sizes=sizes, residual=residual)

    @property
    def likely_name(self) -> str:
        """The name in torchvision or timm of the network that names and shapes imply."""
        network = self.network
        layers = 3 if network.unit is BottleneckUnit else 2
        name = f"resnet{2 + layers * sum(network.stage_sizes)}"
        if network.groups > 1:
            channels = network.widening * network.width // network.groups
            name = f"{name.replace('net', 'next')}_{network.groups}x{channels}d"
        elif network.widening > 1:
            name = f"wide_{name}_{network.widening}"
        if any(".se." in entry for entry in self.entries):
            name = f"se{name}"
        if self.get("stem/conv1") is None:
            return name
        return name + ("d" if network.shortcut == "average" else "c")  # timm's letters
