"""Setup of a run: its data, a configuration that fits them, and the user's own parts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.errors import InvalidRngError, ModifyScopeVariableError, ScopeCollectionNotFound

from resnet_jax.config import TrainConfig, differences, replaced
from resnet_jax.data.dataset import Dataset, Split, check_countable
from resnet_jax.data.load import load_splits
from resnet_jax.data.preprocessing import pixel_statistics
from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import BatchNorm, ResNet, make_model, norm_of
from resnet_jax.settings import Effect, settings
from resnet_jax.storage import json_sha256
from resnet_jax.training.distributed import assert_equal, main_process_first
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Loss


def open_data(
    config: TrainConfig, recorded: TrainConfig | None, custom: "Custom", num_devices: int
) -> tuple[TrainConfig, Dataset, dict[str, Split], nn.Module]:
    """Open the data; return the completed configuration, the data, their splits and the network.

    The configuration gets the data's name and, unless given, the mean and deviation ``recorded`` in
    the run's folder or else the images'. Raise on misfits, or if processes' data or options differ.
    """
    if custom.data is not None:
        held_out, cut = config.data.validation, len(custom.data.validation)
        if recorded is None and held_out and held_out != cut:
            raise ResNetJaxError(
                f"data is cut already, with {cut} images for validation: leave "
                f"--data.validation {held_out} out, or give it to Dataset.from_arrays"
            )
        config = replaced(config, {"data.name": custom.data.name})
    data, splits = main_process_first(lambda: load_splits(config.data, custom.data))
    given = config.data
    if None in (given.mean, given.std):
        known = recorded and (recorded.data.mean, recorded.data.std)
        mean, std = known or pixel_statistics(data.train)
        config = replaced(config, {"data.mean": given.mean or mean, "data.std": given.std or std})
    network = custom.model or make_model(config, data.num_classes)
    decays = config.optim.weight_decay or config.model.frozen_stages is not None
    begins = recorded is None and isinstance(network, ResNet)
    by_config = decays and custom.optimizer is None
    if begins and by_config and network.frozen_stages != config.model.frozen_stages:
        raise ResNetJaxError(
            f"the network has frozen_stages {network.frozen_stages} and the configuration "
            f"{config.model.frozen_stages}, by which the optimiser goes: give both the same"
        )
    types = [np.dtype(t) for t in (network.dtype, network.param_dtype) if t] if begins else []
    if np.float64 in types and config.model.dtype != "float64":
        raise ResNetJaxError("the network is in float64: give --model.dtype float64 too")
    check_against_dataset(config, data, network, num_devices)
    plain = settings(replaced(config, {}))  # turns NumPy's numbers into Python's
    shared = [(s.option, s.value) for s in plain if s.effect != Effect.LOCAL]
    assert_equal("data with fingerprint", data.fingerprint, "give all processes the same data")
    assert_equal("settings with digest", json_sha256(shared), "give all processes the same options")
    return config, data, splits, network


def check_against_dataset(
    config: TrainConfig, data: Dataset, network: nn.Module, num_devices: int = 1
) -> None:
    """Raise if the configuration does not fit the images as read, the devices, or the network."""
    height, width, channels = data.image_shape
    smallest, size, given = min(height, width), f"{height}x{width} pixels", config.data
    for name, values in (("mean", given.mean or (0,)), ("std", given.std or (1,))):
        if len(values) not in (1, channels):
            raise ResNetJaxError(
                f"--data.{name} has {len(values)} numbers for images of {channels} channels: give "
                "one, or one for each channel"
            )
    crop, image_size = config.augment.crop, given.image_size
    if crop >= smallest:
        raise ResNetJaxError(
            f"--augment.crop must be below {smallest} for images of {size}, got {crop}"
        )
    if given.center_crop and (image_size or 0) > smallest:
        raise ResNetJaxError(
            f"--data.center-crop cannot crop --data.image-size {image_size} from images of {size}: "
            "give a larger --data.read-size, or --data.no-center-crop"
        )
    if given.find_digit and data.image_shape != (28, 28, 1):
        raise ResNetJaxError(
            f"--data.find-digit is for grey images of 28x28 pixels, not {size}, {channels} "
            "channels: give --data.no-find-digit"
        )
    check_countable(data.num_classes)
    for option, value in (("patience", config.patience), ("target", config.target)):
        if value is not None and not len(data.validation):
            raise ResNetJaxError(
                f"--{option} {value} needs validation images and there are none: give "
                f"--data.validation or --data.subset some, or leave --{option} out"
            )
    if config.epochs * len(data.train) / config.batch_size >= 2**31:
        raise ResNetJaxError(
            f"--epochs {config.epochs:g} of {len(data.train)} images in batches of "
            f"{config.batch_size} are more than 2^31 steps: give fewer"
        )
    own_layers = not isinstance(network, ResNet)
    named = differences(TrainConfig(), config).keys()
    if own_layers and (by_layer := named & {"init-from", "model.frozen-stages", "optim.body-rate"}):
        raise ResNetJaxError(
            f"--{' and --'.join(sorted(by_layer))} can be given for the package's networks alone, "
            f"whose layers are known, and model is a {type(network).__name__}: leave that out"
        )
    plain = not (own_layers or network.residual)
    if plain and network.zero_init_last and not config.init_from:
        raise ResNetJaxError(
            "--model.zero-init-last needs shortcuts, without which a unit that starts at zero "
            "stays there: give --model.no-zero-init-last or --model.residual"
        )
    _check_batch(config, image_size or max(height, width), network, num_devices)


def _check_batch(config: TrainConfig, side: int, network: nn.Module, num_devices: int) -> None:
    """Raise if a batch cannot be split, or gives batch norm only one value per channel."""
    batch, parts = config.batch_size, config.accumulate
    step = num_devices * parts
    below = batch // step * step
    if batch > below:
        devices = f"{num_devices} devices" if num_devices > 1 else "one device"
        in_parts = f" in {parts} parts (--accumulate)" if parts > 1 else ""
        nearest = f"{below} or {below + step}" if below else step
        raise ResNetJaxError(
            f"--batch-size {batch} cannot be split over {devices}{in_parts}: give {nearest}"
            + ", or fewer devices (CUDA_VISIBLE_DEVICES)" * (num_devices > 1)
        )
    if not (isinstance(network, ResNet) and isinstance(norm_of(network), BatchNorm)):
        return
    stages = len(network.stage_sizes)
    halvings = stages - 1 + 2 * (network.stem in ("imagenet", "deep"))
    last_stage_learns = (network.frozen_stages or 0) < stages
    if batch == parts and side <= 2**halvings and last_stage_learns:
        raise ResNetJaxError(
            f"--batch-size {batch} gives batch norm one value for each channel, since the last "
            f"maps of images of {side}x{side} are 1x1: give at least {2 * parts}, or a larger "
            "--data.image-size"
        )


@dataclass(frozen=True)
class Custom:
    """The user's own parts of a run, see `resnet_jax.train`; for None the configuration decides."""

    model: nn.Module | None = None
    optimizer: optax.GradientTransformation | None = None
    loss: Loss | None = None
    data: Dataset | None = None
    tag: str | None = None

    def __post_init__(self) -> None:
        for name, attributes, expected in (
            ("model", "init apply", "a Linen module, such as rj.ResNet18()"),
            ("optimizer", "init update", "an optax transformation, such as optax.adam(1e-3)"),
            ("loss", "__call__", "a function of (logits, targets)"),
            ("data", "fingerprint", "a rj.Dataset"),
        ):
            part = getattr(self, name)
            made = all(hasattr(part, a) for a in attributes.split()) and not isinstance(part, type)
            if part is not None and not made:
                found = " ".join(repr(part).split())[:60]
                raise ResNetJaxError(f"{name} is {found}: give {expected}")

    def describe(
        self, shapes: Callable[[], TrainState], images: jax.Array, num_classes: int
    ) -> dict[str, str]:
        """Return what a run's folder records of the parts, to compare when the run resumes.

        These are qualified names, and digests of the shapes at step 0; neither shows what is inside
        a function. Raise if the network does not return one logit for each class.
        """
        named = {
            "model": self.model and type(self.model),
            "optimizer": self.optimizer and self.optimizer.update,
            "loss": self.loss,
        }
        found = {name: _qualified(part) for name, part in named.items() if part is not None}
        if self.tag is not None:
            found["tag"] = str(self.tag)
        if self.model or self.optimizer:
            state = shapes()
            found["parameters"] = _digest(state.params)
            found["optimizer state"] = _digest(state.opt_state)
        if self.model:
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            for train in (True, False):
                rngs = dict.fromkeys(("params", "dropout"), jax.random.key(0)) if train else None
                apply = partial(self.model.apply, train=train, mutable=["batch_stats"], rngs=rngs)
                _check_logits(apply, variables, images, num_classes)
        return found


def _check_logits(apply: Any, variables: Any, images: jax.Array, num_classes: int) -> None:
    """Raise if a custom network returns no logits, or draws random numbers in evaluation."""
    try:
        logits, _ = jax.eval_shape(apply, variables, images)
    except InvalidRngError as error:
        raise ResNetJaxError(
            "model draws random numbers with train=False: leave them to training, as "
            "nn.Dropout(..., deterministic=not train) does"
        ) from error
    except (ModifyScopeVariableError, ScopeCollectionNotFound) as error:
        raise ResNetJaxError(
            "model needs more than params and batch_stats, the collections that a run keeps: make "
            f"constants in its __call__ ({' '.join(str(error).split())[:160]})"
        ) from error
    if getattr(logits, "shape", None) != (1, num_classes):
        raise ResNetJaxError(
            f"model returns {logits}: expected logits of shape {(1, num_classes)}, one for each of "
            f"{num_classes} classes"
        )


def _qualified(part: Any) -> str:
    part = getattr(part, "func", part)  # unwraps `functools.partial`
    part = part if hasattr(part, "__qualname__") else type(part)
    module = str(part.__module__).replace("__mp_main__", "__main__")  # in a spawned process
    return f"{module}.{part.__qualname__}"


def _digest(tree: Any) -> str:
    text = "".join(
        f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
