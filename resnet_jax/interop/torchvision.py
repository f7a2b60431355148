"""Weights under torchvision's names, both ways and exact.

    ours                                torchvision, timm           the book (NNDL: Practice, 5.4)
    stem/conv, stem/norm                conv1, bn1                  net.0.0, net.0.1
    stageS_unitU/convK, normK           layerS.(U-1).convK, bnK     net.S.(U-1).convK, bnK
    stageS_unitU/shortcut_conv, _norm   layerS.(U-1).downsample.0/1 net.S.(U-1).shortcut, bn3
    head                                fc                          net.7

Kernels are HWIO here and OIHW there; values are copied, never computed with.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import VARIANTS, BasicUnit, BottleneckUnit, ResNet

log = logging.getLogger(__name__)

Path = tuple[str, ...]
Names = Mapping[str, str]

# The table above: our modules, and the layers of a unit that are not convK or normK.
TORCHVISION: Names = {
    "stem/conv": "conv1",
    "stem/norm": "bn1",
    "stage/unit": "layer{}.{}",
    "shortcut_conv": "downsample.0",
    "shortcut_norm": "downsample.1",
    "head": "fc",
}
BOOK: Names = {
    "stem/conv": "net.0.0",
    "stem/norm": "net.0.1",
    "stage/unit": "net.{}.{}",
    "shortcut_conv": "shortcut",
    "shortcut_norm": "bn3",
    "head": "net.7",
}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_UNIT = re.compile(r"stage(\d+)_unit(\d+)/(.+)")
# Counters that some files carry and that are not used: batch norm's, and of averaged weights.
_COUNTERS = ("num_batches_tracked", "n_averaged")
_LISTED = 5  # of each kind of entry that does not fit


def from_torchvision(
    state_dict: Mapping[str, Any] | Iterable[tuple[str, Any]],
    model: ResNet | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    residual: bool = True,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """Return a model's variables from weights by torchvision's, timm's or the book's names.

    >>> import numpy as np, resnet_jax as rj
    >>> state_dict = rj.interop.load_weights("resnet50.safetensors")  # doctest: +SKIP
    >>> variables = rj.interop.from_torchvision(state_dict)  # doctest: +SKIP
    >>> rj.ResNet50(num_classes=1000).apply(variables, images, train=False)  # doctest: +SKIP

    Args:
        state_dict: numpy arrays or torch tensors by name. A prefix that all names share
            (``module.``, ``model.``, ``_orig_mod.``, ...) is left out, and a warning says so.
        model: the network that the weights are for. Default: inferred from names and shapes.
        num_classes: of the result. Where the weights have another number, or no head, the head
            starts fresh, see `with_fresh_head`. Default: ``model``'s, else the weights'.
        in_channels: of the result, see `with_input_channels`.
        residual: False reads a plain network, and leaves out shortcut weights that the book's
            carries and does not use. With ``model``, the model decides.
        key: draws the fresh head. Default: ``jax.random.key(0)``.

    Returns:
        ``{"params", "batch_stats"}`` of numpy arrays, in the weights' own precision (half
        precision becomes float32).

    Raises:
        ResNetJaxError: an entry is missing, unknown, misshapen or holds a number that no trained
            network has (NaN, infinity, a negative variance); the line counts each kind and names
            the network that the weights seem to be of.
    """
    entries, names = _named(state_dict)
    classes, channels = _sizes(entries, names)
    for count in (num_classes, None if model is None else model.num_classes):
        if count is not None and count < 1:
            raise ResNetJaxError(f"num_classes must be at least 1, got {count}")
    known = model or _nearest(entries, names, residual)
    if model is None or num_classes is not None:
        known = known.clone(num_classes=classes or num_classes or known.num_classes)
    expected = shapes_of(known, channels)
    features = expected["params", "head", "kernel"][0]
    if classes is None and num_classes is not None:
        expected = {path: shape for path, shape in expected.items() if path[1] != "head"}
    variables = _read(entries, names, expected, known, guessed=model is None)
    if in_channels is not None:
        variables = with_input_channels(variables, in_channels)
    if num_classes not in (None, classes):
        variables = _with_head(variables, features, num_classes, key)
    return variables


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a state_dict of numpy arrays under torchvision's names: `from_torchvision` inverted.

    ``num_batches_tracked``, which nothing here counts, is written as int64 0.

    Raises:
        ResNetJaxError: torchvision has no names for this network (pre-activation units).
    """
    flat = traverse_util.flatten_dict({name: variables[name] for name in ("params", "batch_stats")})
    if ("params", "norm", "scale") in flat:
        raise ResNetJaxError(
            "torchvision has no pre-activation network: export this one as stablehlo or onnx"
        )
    state_dict = {}
    for path, value in flat.items():
        name = translate(path, TORCHVISION)
        state_dict[name] = np.ascontiguousarray(_to_torch(np.asarray(value), path))
        if path[-1] == "var":
            state_dict[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state_dict


def with_fresh_head(
    variables: Mapping[str, Any], num_classes: int, key: jax.Array | None = None
) -> dict[str, Any]:
    """Return the variables with a head for ``num_classes`` as in a new `resnet_jax.ResNet`.

    It is drawn by PyTorch's default from ``key`` (default: ``jax.random.key(0)``), as in a whole
    network that is initialised by that key.
    """
    features = variables["params"]["head"]["kernel"].shape[0]
    return _with_head(variables, features, num_classes, key)


def with_input_channels(variables: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return the variables with a stem for images of another number of channels.

    From several to one: the kernels are summed, so that a grey image gets the logits of the same
    image repeated over the channels. From one to several: the kernel is repeated and divided by
    their number, which is the inverse.

    Raises:
        ResNetJaxError: from several to several others there is no such rule.
    """
    stem = variables["params"]["stem"]
    kernel = np.asarray(stem["conv"]["kernel"])
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
    stem = {**stem, "conv": {"kernel": kernel}}
    return {**variables, "params": {**variables["params"], "stem": stem}}


def class_count(state_dict: Mapping[str, Any]) -> int | None:
    """Return how many classes weights by torchvision's names know; None without a head."""
    entries, names = _named(state_dict, warn=False)
    return _sizes(entries, names)[0]


def as_array(value: Any) -> np.ndarray:
    """Return a torch tensor, or anything that numpy takes, as an array."""
    if not hasattr(value, "detach"):  # so that torch need not be there
        return np.asarray(value)
    tensor = value.detach().cpu()
    try:
        array: np.ndarray = tensor.numpy()
    except TypeError:  # bfloat16, which numpy does not know
        array = tensor.float().numpy()
    return array


def translate(path: Path, names: Names) -> str:
    """Return the name of one of our variables.

    >>> translate(("params", "stage2_unit1", "shortcut_norm", "scale"), TORCHVISION)
    'layer2.0.downsample.1.weight'
    """
    _, *modules, leaf = path
    module = "/".join(modules)
    if found := _UNIT.fullmatch(module):
        stage, unit, layer = found.groups()
        layer = names.get(layer, layer.replace("norm", "bn"))
        return f"{names['stage/unit'].format(stage, int(unit) - 1)}.{layer}.{LEAVES[leaf]}"
    if module not in names:
        raise ResNetJaxError(
            f"torchvision has no name for {module}: it is not a layer of resnet_jax.ResNet"
        )
    return f"{names[module]}.{LEAVES[leaf]}"


def shapes_of(model: ResNet, channels: int) -> dict[Path, tuple[int, ...]]:
    """Return the shapes of a model's variables by their path; nothing is computed."""
    images = jnp.zeros((1, 32, 32, channels))
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


def row_of(model: ResNet) -> str | None:
    """Return the name of a model in the table of variants; None for another one."""
    for name, row in VARIANTS.items():
        if (row().stage_sizes, row().unit) == (model.stage_sizes, model.unit):
            return name
    return None


def _to_torch(value: np.ndarray, path: Path) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _to_ours(value: np.ndarray, path: Path) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _with_head(
    variables: Mapping[str, Any], features: int, num_classes: int, key: jax.Array | None
) -> dict[str, Any]:
    if num_classes < 1:
        raise ResNetJaxError(f"num_classes must be at least 1, got {num_classes}")
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    # A stem and a head alone: Flax draws by the layer's name, whatever lies between them.
    model = ResNet((), BasicUnit, num_classes, features, stem="small", param_dtype=kernel.dtype)
    key = jax.random.key(0) if key is None else key
    fresh = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1, 1, 1)), train=False))(key)
    head = jax.tree.map(np.asarray, fresh["params"]["head"])
    return {**variables, "params": {**variables["params"], "head": head}}


def _named(
    state_dict: Mapping[str, Any] | Iterable[tuple[str, Any]], warn: bool = True
) -> tuple[dict[str, np.ndarray], Names]:
    """Return the entries without a prefix that all names share, and whose names they are."""
    try:
        entries = {str(name): as_array(value) for name, value in dict(state_dict).items()}
    except (TypeError, ValueError) as error:
        given = type(state_dict).__name__
        raise ResNetJaxError(
            f"weights must be a state_dict, arrays by name, got {given}"
        ) from error
    for names in (BOOK, TORCHVISION):
        first = names["stage/unit"].format(1, 0) + ".conv1.weight"
        prefixes = [name.removesuffix(first) for name in entries if name.endswith(first)]
        prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
        if not prefixes:
            continue
        prefix, *more = prefixes
        if more:
            listed = ", ".join(prefixes)
            raise ResNetJaxError(f"the weights are of several networks, under {listed}: give one")
        bare = {name.removeprefix(prefix): value for name, value in entries.items()}
        others = [n for n in entries if not n.startswith(prefix) and not _is_counter(n)]
        if others:
            raise ResNetJaxError(
                f"the weights are those of {_likely_name(bare, names)} under {prefix} and of a "
                f"larger network ({len(others)} entries: {', '.join(sorted(others)[:3])}, ...), in "
                f"which it may compute something else (FCN's and DeepLab's is dilated): give the "
                f"entries under {prefix} alone where it does not"
            )
        if prefix and warn:
            log.warning("the names of the weights begin with %s, which is left out", prefix)
        return bare, names
    return entries, BOOK if any(name.startswith("net.") for name in entries) else TORCHVISION


def _is_counter(name: str) -> bool:
    return name.split(".")[-1] in _COUNTERS


def _sizes(entries: Mapping[str, np.ndarray], names: Names) -> tuple[int | None, int]:
    """Return the number of classes, None without a head, and of the images' channels."""
    bias, kernel = entries.get(f"{names['head']}.bias"), entries.get(f"{names['head']}.weight")
    stem = entries.get(f"{names['stem/conv']}.weight")
    sizes = [value.shape[0] for value in (kernel, bias) if value is not None and value.ndim]
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    return (sizes or [None])[0], channels or 3


def _stage_sizes(entries: Iterable[str], names: Names) -> tuple[int, ...]:
    first = names["stage/unit"].replace(".", r"\.").format(r"(\d)", r"\d+") + r"\.conv1\."
    stages = [int(found[1]) for found in map(re.compile(first).match, entries) if found]
    return tuple(stages.count(stage) for stage in range(1, max(stages, default=0) + 1))


def _is_bottleneck(entries: Iterable[str]) -> bool:
    return any(".conv3." in name for name in entries)


def _nearest(entries: Mapping[str, np.ndarray], names: Names, residual: bool) -> ResNet:
    """Return the row of the table with the nearest stages; width and stem by the stem's shape."""
    unit = BottleneckUnit if _is_bottleneck(entries) else BasicUnit
    rows = [row() for row in VARIANTS.values() if row().unit is unit]
    sizes = _stage_sizes(entries, names)

    def distance(row: ResNet) -> int:
        return sum(abs(a - b) for a, b in zip_longest(row.stage_sizes, sizes, fillvalue=0))

    nearest = min(rows, key=distance)
    stem = entries.get(f"{names['stem/conv']}.weight", np.zeros((64, 3, 7, 7)))
    whole = stem.ndim == 4
    return nearest.clone(
        width=(stem.shape[0] if whole else 0) or 64,
        stem="small" if whole and stem.shape[2:] == (3, 3) else "imagenet",
        residual=residual,
    )


def _read(
    entries: Mapping[str, np.ndarray],
    names: Names,
    expected: Mapping[Path, tuple[int, ...]],
    model: ResNet,
    guessed: bool,
) -> dict[str, Any]:
    """Return the expected variables; refuse entries that do not fit."""
    if not model.residual:
        unused = tuple(f".{names[layer]}." for layer in ("shortcut_conv", "shortcut_norm"))
        entries = {n: v for n, v in entries.items() if not any(part in n for part in unused)}
    shapes = {
        translate(path, names): _to_torch(np.empty(shape, np.bool_), path).shape
        for path, shape in expected.items()
    }
    stem_bias = f"{names['stem/conv']}.bias"
    if names is BOOK and stem_bias in entries:  # torchvision's convolution has none
        shapes[stem_bias] = (model.width,)
    if complaints := _complaints(entries, shapes):
        raise ResNetJaxError(_refusal(entries, names, model, guessed, complaints))
    flat = {}
    for path in expected:
        value = _to_ours(entries[translate(path, names)], path)
        # ml_dtypes' bfloat16 is no numpy floating type: `kind` is "V".
        wide = value.dtype in (np.float32, np.float64)
        flat[path] = np.ascontiguousarray(value if wide else value.astype(np.float32))
    if stem_bias in shapes:
        # The norm subtracts its running mean: of x + b it is mean, of x alone mean - b.
        mean = ("batch_stats", "stem", "norm", "mean")
        flat[mean] = flat[mean] - entries[stem_bias].astype(flat[mean].dtype)
    variables: dict[str, Any] = traverse_util.unflatten_dict(flat)
    return variables


def _complaints(
    entries: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
    """Return what does not fit, by kind."""
    numbers = {name: value for name, value in entries.items() if name in shapes}
    # Half precision from ml_dtypes is not of numpy's own kinds.
    whole = {n: v for n, v in numbers.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    found = {
        "missing": [name for name in shapes if name not in entries],
        "unknown": [n for n in entries if n not in shapes and not _is_counter(n)],
        "of another shape": [
            f"{name} {list(value.shape)}, expected {list(shapes[name])}"
            for name, value in numbers.items()
            if value.shape != shapes[name]
        ],
        "not floating-point": [f"{n} {v.dtype}" for n, v in numbers.items() if n not in whole],
        "with NaN, infinity or a negative variance": [
            name
            for name, value in whole.items()
            if not np.isfinite(value).all() or ("running_var" in name and (value < 0).any())
        ],
    }
    return {kind: sorted(names) for kind, names in found.items() if names}


def _refusal(
    entries: Mapping[str, np.ndarray],
    names: Names,
    model: ResNet,
    guessed: bool,
    complaints: Mapping[str, list[str]],
) -> str:
    """Say in one line what the weights are, as far as one can see, and what does not fit."""
    sizes = _stage_sizes(entries, names)
    if not sizes:
        first = ", ".join(sorted(entries)[:3]) or "nothing"
        return (
            f"the weights are not those of a residual network ({len(entries)} entries: {first}, "
            f"...): expected torchvision's names, conv1.weight to fc.bias"
        )
    row, likely = row_of(model), _likely_name(entries, names)
    text = f"the weights do not fit {'' if model.residual else 'plain '}"
    text += f"{row or f'a network of {model.stage_sizes} units'} "
    text += f"(width {model.width}, stem {model.stem})"
    text += "" if likely == row else f", they look like {likely}"
    for count, (kind, found) in enumerate(complaints.items()):
        listed = ", ".join([*found[:_LISTED], *["..."] * (len(found) > _LISTED)])
        text += f"{'; ' if count else ': '}{len(found)} {kind}: {listed}"
    if complaints.keys() == {"missing"} and all(
        name.startswith(f"{names['head']}.") for name in complaints["missing"]
    ):
        text += "; give num_classes for a fresh head"
    elif guessed and model.stage_sizes != sizes and likely not in VARIANTS:
        unit = model.unit.__name__
        text += f"; of any depth: give model=rj.ResNet({sizes}, rj.{unit}, num_classes=...)"
    return text


def _likely_name(entries: Mapping[str, np.ndarray], names: Names) -> str:
    """Return what torchvision or timm call the network that names and shapes point to."""
    bottleneck, sizes = _is_bottleneck(entries), _stage_sizes(entries, names)
    depth = 2 + sum(sizes) * (3 if bottleneck else 2)
    name = f"resnet{depth}"
    norm = entries.get(f"{names['stem/norm']}.weight")
    kernel = entries.get(f"{names['stage/unit'].format(1, 0)}.conv2.weight")
    if bottleneck and norm is not None and kernel is not None and kernel.ndim == 4:
        features, inputs = kernel.shape[:2]
        if 0 < inputs < features:
            name = f"resnext{depth}_{features // inputs}x{inputs}d"
        elif features != norm.size:
            name = f"wide_resnet{depth}_{features / max(norm.size, 1):g}"
    if any(".se." in entry for entry in entries):
        name = f"se{name}"
    if f"{names['stem/conv']}.0.weight" in entries:
        name += "d"  # a stem of three convolutions
    return name
