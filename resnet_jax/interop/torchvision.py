"""Convert weights between the package's names and torchvision's, exactly.

Kernels are HWIO here and OIHW in torchvision. Values are copied, unless another number of channels
or classes is asked for, or the book's network has a bias in its stem.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax.errors import ResNetJaxError
from resnet_jax.interop.state_dict import BOOK, DEEP, TORCHVISION, StateDict
from resnet_jax.models import UNITS, VARIANTS, BasicUnit, BatchNorm, ResNet, norm_of, shapes_of

log = logging.getLogger(__name__)

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_UNIT = re.compile(r"stage(\d+)_unit(\d+)/(.+)")
_LISTED = 5  # entries that an error names, of each kind that does not fit
_STEM_BIAS = ("params", "stem", "conv", "bias")
_STEM_MEAN = ("batch_stats", "stem", "norm", "mean")


def from_torchvision(
    state_dict: Mapping[str, Any] | Iterable[tuple[str, Any]],
    model: ResNet | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    residual: bool = True,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """Return a model's variables from weights under torchvision's, timm's or the book's names.

    >>> import numpy as np, resnet_jax as rj
    >>> state_dict = rj.interop.load_weights("resnet50.safetensors")  # doctest: +SKIP
    >>> variables = rj.interop.from_torchvision(state_dict)  # doctest: +SKIP
    >>> rj.ResNet50(num_classes=1000).apply(variables, images, train=False)  # doctest: +SKIP

    Args:
        state_dict: numpy arrays or torch tensors by name. A prefix that all names share
            (``module.``, ``_orig_mod.``, ...) is removed, with a warning.
        model: the network that the weights are for. Default: inferred from names and shapes.
        num_classes: classes of the result; 0 leaves the head out. If given and the weights have
            another number, or no head, the head is fresh, see `with_fresh_head`. Default: the
            number of ``model`` (if not 0, the weights must have it), or else of the weights.
        in_channels: image channels of the result, see `with_input_channels`.
        residual: False reads a plain network without its unused shortcuts; ``model`` overrides it.
        key: the random key of a fresh head. Default: ``jax.random.key(0)``.

    Returns:
        ``{"params", "batch_stats"}``, numpy arrays in the weights' precision, at least float32.

    Raises:
        ResNetJaxError: an entry is missing, unknown, misshapen or not finite, or a variance is
            negative; the message counts each kind and names the network that the weights look like.
    """
    weights = StateDict.of(state_dict)
    if weights.prefix:
        log.warning("the names of the weights begin with %s, which is left out", weights.prefix)
    classes = weights.num_classes
    if model is not None and not isinstance(model, ResNet):
        raise ResNetJaxError(f"model is a {type(model).__name__}: give one, as rj.ResNet50()")
    known = model or weights.nearest_model(residual)
    check_named(known)
    if num_classes is None and known.num_classes < 1:
        num_classes = known.num_classes
    if num_classes is not None:
        _check_classes(num_classes, least=0)
        known = known.clone(num_classes=classes or 0)
    elif model is None:
        head = weights.get("head")  # counts classes even if it is not a whole dense layer
        rows = len(head) if head is not None and head.ndim else 0
        known = known.clone(num_classes=classes or rows or 1)
    variables = _read(weights, known, guessed=model is None)
    if in_channels is not None:
        variables = with_input_channels(variables, in_channels)
    if num_classes == 0:
        variables["params"].pop("head", None)
    elif num_classes not in (None, classes):
        variables = with_fresh_head(variables, num_classes, key)
    return variables


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a state_dict of numpy arrays by torchvision's names; inverts `from_torchvision`.

    ``num_batches_tracked``, which the package does not count, is written as int64 0.

    Raises:
        ResNetJaxError: torchvision has no such network (pre-activation units, no batch norm).
    """
    kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    flat = traverse_util.flatten_dict(kept)
    what = "pre-activation network" if ("params", "norm", "scale") in flat else ""
    _refuse(what if variables.get("batch_stats") else "network without batch norm")
    names = DEEP if ("params", "stem", "conv1", "kernel") in flat else TORCHVISION
    state_dict = {}
    for path, value in flat.items():
        name = translate(path, names)
        state_dict[name] = np.ascontiguousarray(_to_torch(np.asarray(value), path))
        if path[-1] == "var":
            state_dict[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state_dict


def with_fresh_head(
    variables: Mapping[str, Any], num_classes: int, key: jax.Array | None = None
) -> dict[str, Any]:
    """Return the variables with a head for ``num_classes``, drawn as in a new `resnet_jax.ResNet`.

    ``key`` (default: ``jax.random.key(0)``) gives the head that it gives in a whole network.
    """
    _check_classes(num_classes)
    params = variables["params"]
    dtype = params["stem"]["conv"]["kernel"].dtype
    if "head" in params:
        features = params["head"]["kernel"].shape[0]
    else:  # the channels of the last stage's last convolution
        stages = {name[5:].split("_")[0]: name for name in params if name.startswith("stage")}
        unit = params[stages[max(stages, key=int)]]
        features = unit[max(name for name in unit if name[:-1] == "conv")]["kernel"].shape[-1]
    # A stem and a head suffice: Flax draws by a layer's name, whatever lies between the two.
    drawn = jax.dtypes.canonicalize_dtype(dtype)
    model = ResNet((), BasicUnit, num_classes, features, stem="small", param_dtype=drawn)
    key = jax.random.key(0) if key is None else key
    fresh = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1, 1, 1)), train=False))(key)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), fresh["params"]["head"])
    return {**variables, "params": {**params, "head": head}}


def with_input_channels(variables: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return the variables with a stem for images of another number of channels.

    From several to one the kernels are summed: a grey image gets the logits of the same image
    repeated over the channels. From one to several is the inverse.

    Raises:
        ResNetJaxError: the numbers of channels differ and neither is 1.
    """
    stem = variables["params"]["stem"]
    first = first_convolution(stem)
    kernel = np.asarray(stem[first]["kernel"])
    given = kernel.shape[2]
    if channels == given:
        return dict(variables)
    if channels == 1:
        kernel = kernel.sum(axis=2, keepdims=True)
    elif given == 1 and channels > 1:
        kernel = np.repeat(kernel / channels, channels, axis=2)
    else:
        raise ResNetJaxError(
            f"a stem for {given} channels cannot be made one for {channels}: give {given} or 1"
        )
    stem = {**stem, first: {"kernel": kernel}}
    return {**variables, "params": {**variables["params"], "stem": stem}}


def first_convolution(stem: Mapping[str, Any]) -> str:
    """Return the name of the convolution that sees the image; a deep stem has three."""
    return "conv1" if "conv1" in stem else "conv"


def translate(path: tuple[str, ...], names: Mapping[str, str]) -> str:
    """Return the name of a variable of the package in a naming scheme, such as `TORCHVISION`.

    >>> translate(("params", "stage2_unit1", "shortcut_norm", "scale"), TORCHVISION)
    'layer2.0.downsample.1.weight'
    """
    _, *modules, leaf = path
    module, leaf = "/".join(modules), LEAVES.get(leaf, leaf)
    if match := _UNIT.fullmatch(module):
        stage, unit, layer = match.groups()
        layer = names.get(layer, layer.replace("norm", "bn"))
        return f"{names['stage/unit'].format(stage, int(unit) - 1)}.{layer}.{leaf}"
    if module not in names:
        raise ResNetJaxError(f"torchvision has no name for {module}, which is no layer of a ResNet")
    return f"{names[module]}.{leaf}"


def row_of(model: ResNet) -> str | None:
    """Return the name of a model's row in the table `VARIANTS`, or None if it has none."""
    key = attrgetter("stage_sizes", "unit", "widening", "groups")
    alike = [name for name, row in VARIANTS.items() if key(row()) == key(model)]
    return min(alike, key=lambda name: VARIANTS[name]().shortcut != model.shortcut, default=None)


def check_named(model: ResNet) -> None:
    """Refuse a network that neither torchvision nor timm has."""
    what = "pre-activation network" if model.unit.preactivation else ""
    if model.residual and model.shortcut in ("pad", "projection-all"):
        what = f"shortcut {model.shortcut}"
    _refuse(what)


def check_written(model: ResNet) -> None:
    """Refuse a network that torchvision lacks, or whose weights compute something else there."""
    check_named(model)
    norm, what = norm_of(model), ""
    if type(norm) is not BatchNorm or norm.epsilon != BatchNorm.epsilon:
        what = f"norm but BatchNorm with epsilon {BatchNorm.epsilon:g}"
    if model.unit not in UNITS:
        what = f"unit {model.unit.__name__}"
    if type(model) is not ResNet:
        what = f"network {type(model).__name__}"
    _refuse("stem without a norm" if model.stem == "conv" else what)


def _refuse(what: str) -> None:
    if what:
        raise ResNetJaxError(
            f"torchvision has no {what}: export as stablehlo or onnx (onnx: the package's units "
            "with BatchNorm alone), start from a run's folder"
        )


def _check_classes(num_classes: int, least: int = 1) -> None:
    if num_classes < least:
        raise ResNetJaxError(f"num_classes must be at least {least}, got {num_classes}")


def _to_torch(value: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    return value.transpose(-1, -2, *range(value.ndim - 2)) if path[-1] == "kernel" else value


def _read(weights: StateDict, model: ResNet, guessed: bool) -> dict[str, Any]:
    """Return the model's variables, or raise one error for all entries that do not fit."""
    names, rest = weights.names, dict(weights.entries)
    expected = shapes_of(model, (32, 32, weights.stem_kernel.shape[1]))
    if names is BOOK and weights.get("stem/conv", "bias") is not None:
        expected[_STEM_BIAS] = (model.width,)  # torchvision's has no bias
    if not model.num_classes:  # what is under the head's name is not one dense layer
        rest = {name: v for name, v in rest.items() if not name.startswith(f"{names['head']}.")}
        if others := sorted(weights.entries.keys() - rest.keys()):
            listed = ", ".join(others[:_LISTED])
            log.warning("the weights' head is no dense layer and left out: %.200s", listed)
    complaints: dict[str, list[str]] = defaultdict(list, missing=[], unknown=[])
    flat = {}
    for path, shape in expected.items():
        name, shape = translate(path, names), _to_torch(np.broadcast_to(False, shape), path).shape
        value = rest.pop(name, None)
        if value is None:
            complaints["missing"].append(name)
        elif value.shape != shape:
            name += f" {list(value.shape)}, expected {list(shape)}"
            complaints["of another shape"].append(name)
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            complaints["not floating-point"].append(f"{name} {value.dtype}")
        elif not np.isfinite(value).all() or (path[-1] == "var" and (value < 0).any()):
            complaints["with NaN, infinity or a negative variance"].append(name)
        else:
            kernel = path[-1] == "kernel"
            ours = value.transpose(*range(2, value.ndim), 1, 0) if kernel else value
            # To numpy, ml_dtypes' bfloat16 is not a floating type: its `kind` is "V".
            wide = value.dtype in (np.float32, np.float64)
            flat[path] = np.ascontiguousarray(ours, None if wide else np.float32)
    # Only the book's plain network holds unused shortcuts; elsewhere they mean a residual one.
    layers = ("shortcut_conv", "shortcut_norm") if names is BOOK and not model.residual else ()
    unused = [f".{names[layer]}." for layer in layers]
    complaints["unknown"] = [name for name in rest if not any(part in name for part in unused)]
    if any(complaints.values()):
        raise ResNetJaxError(_refusal(weights, model, guessed, complaints))
    if _STEM_BIAS in flat:
        # The norm subtracts its running mean: mean is that of x + b, so that of x is mean - b.
        bias = flat.pop(_STEM_BIAS)
        flat[_STEM_MEAN] = flat[_STEM_MEAN] - bias.astype(flat[_STEM_MEAN].dtype)
    return dict(traverse_util.unflatten_dict(flat))


def _refusal(
    weights: StateDict, model: ResNet, guessed: bool, complaints: Mapping[str, list[str]]
) -> str:
    """Return one line that says what the weights look like and what does not fit."""
    network, likely, row = weights.network, weights.likely_name, row_of(model)
    if not network.stage_sizes:
        first = ", ".join(sorted(weights.entries)[:3]) or "nothing"
        return (
            f"the weights are not those of a residual network ({len(weights.entries)} entries: "
            f"{first}, ...): expected torchvision's names, conv1.weight to fc.bias"
        )
    found = {kind: sorted(names) for kind, names in complaints.items() if names}
    text = (
        f"the weights do not fit {'' if model.residual else 'plain '}"
        f"{row or f'a network of {model.stage_sizes} units'} (width {model.width}, "
        f"stem {model.stem}){'' if likely == row else f', they look like {likely}'}: "
    ) + "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' * (len(names) > _LISTED)}"
        for kind, names in found.items()
    )
    head, shortcut = (f".{weights.names[layer]}." for layer in ("head", "shortcut_norm"))
    unread = weights.num_classes is None or found.keys() == {"of another shape"}
    if unread and all(f".{name}".startswith(head) for names in found.values() for name in names):
        text += "; give num_classes for a fresh head"
    elif model.residual and [*found] == ["missing"] and shortcut not in " ".join(weights.entries):
        text += "; those of a plain network are read with residual=False (--model.no-residual)"
    elif guessed and model.stage_sizes != network.stage_sizes and likely not in VARIANTS:
        given, usual = network.clone(residual=model.residual), ResNet((), model.unit)
        choices = ("width", "stem", "shortcut", "widening", "groups", "residual")
        words = [f"{n}={v!r}" for n in choices if (v := getattr(given, n)) != getattr(usual, n)]
        words = [str(network.stage_sizes), f"rj.{model.unit.__name__}", *words, "num_classes=..."]
        text += f"; of any depth: give model=rj.ResNet({', '.join(words)})"
    return text
