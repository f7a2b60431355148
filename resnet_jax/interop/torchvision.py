"""Weights under torchvision's names, both ways and exact.

    ours                                torchvision, timm           the book (NNDL: Practice, 5.4)
    stem/conv, stem/norm                conv1, bn1                  net.0.0, net.0.1
    stageS_unitU/convK, normK           layerS.(U-1).convK, bnK     net.S.(U-1).convK, bnK
    stageS_unitU/shortcut_conv, _norm   layerS.(U-1).downsample.0/1 net.S.(U-1).shortcut, bn3
    head                                fc                          net.7

Kernels are HWIO here and OIHW there; values are copied, never computed with.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax.errors import ResNetJaxError
from resnet_jax.interop.adapt import with_fresh_head, with_input_channels
from resnet_jax.models import VARIANTS, BottleneckUnit, ResNet

Path = tuple[str, ...]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_UNIT = re.compile(r"layer(\d+)\.(\d+)\.")
_BOOK_UNIT = re.compile(r"net\.([1-9])\.(\d+)\.(.+)")
_BOOK_MODULES = {"net.0.0.": "conv1.", "net.0.1.": "bn1.", "net.7.": "fc."}
_TORCHVISION = {name: make() for name, make in VARIANTS.items() if not make().unit.preactivation}


def from_torchvision(
    state_dict: Mapping[str, np.ndarray],
    model: ResNet | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    residual: bool = True,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """Variables for a model's ``apply`` from weights by torchvision's, timm's or the book's names.

    >>> import numpy as np, resnet_jax as rj
    >>> state_dict = rj.interop.load_weights("resnet50.safetensors")  # doctest: +SKIP
    >>> variables = rj.interop.from_torchvision(state_dict)  # doctest: +SKIP
    >>> rj.ResNet50(num_classes=1000).apply(variables, images, train=False)  # doctest: +SKIP

    Args:
        state_dict: arrays by name. ``num_batches_tracked`` may be missing and is not used.
        model: the network that the weights are for. Default: inferred from names and shapes.
        num_classes: of the result. Where the weights have another number, the head starts fresh.
            Default: ``model``'s, else the weights'.
        in_channels: of the result. From several to one the stem's kernel is summed, which gives a
            grey image the logits of the same image as grey RGB; from one to several it is spread.
        residual: False reads a plain network, and leaves out shortcut weights that the book's
            carries and does not use. With ``model``, the model decides.
        key: draws the fresh head. Default: ``jax.random.key(0)``.

    Returns:
        ``{"params", "batch_stats"}`` of numpy arrays, in the weights' own precision (half
        precision becomes float32).

    Raises:
        ResNetJaxError: an entry is missing, unknown, misshapen or holds a number that no trained
            network has (NaN, infinity, a negative variance); every one is named.
    """
    given = {name: np.asarray(value) for name, value in state_dict.items()}
    book = any(name.startswith("net.") for name in given)
    named = _rename_book(given) if book else {name: name for name in given}
    entries = {name: given[origin] for name, origin in named.items()}
    classes = None if model is None or num_classes is not None else model.num_classes
    if model is None:
        model = _infer(entries, residual)
    expected = _expected(model, entries, classes)
    _refuse_strangers(entries, expected)
    if not model.residual:
        entries = {name: value for name, value in entries.items() if ".downsample." not in name}
    _check(entries, expected, named, _describe(model))

    flat = {}
    for path, shape in expected.items():
        value = _to_ours(entries[torchvision_name(path)], path)
        assert value.shape == shape
        # ml_dtypes' bfloat16 is no numpy floating type: `kind` is "V".
        wide = value.dtype in (np.float32, np.float64)
        flat[path] = np.ascontiguousarray(value if wide else value.astype(np.float32))
    if named.get("conv1.bias") == "net.0.0.bias":
        # The norm subtracts its running mean: of x + b it is mean, of x alone mean - b.
        mean = ("batch_stats", "stem", "norm", "mean")
        flat[mean] = flat[mean] - entries["conv1.bias"].astype(flat[mean].dtype)
    variables = traverse_util.unflatten_dict(flat)
    if in_channels is not None:
        variables = with_input_channels(variables, in_channels)
    if num_classes is not None and num_classes != len(variables["params"]["head"]["bias"]):
        variables = with_fresh_head(variables, num_classes, key)
    return variables


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state_dict of numpy arrays under torchvision's names: the inverse of `from_torchvision`.

    ``num_batches_tracked``, which nothing here counts, is written as int64 0.

    Raises:
        ResNetJaxError: torchvision has no names for this network (pre-activation units).
    """
    flat = traverse_util.flatten_dict(
        {collection: variables[collection] for collection in ("params", "batch_stats")}
    )
    if ("params", "norm", "scale") in flat:
        raise ResNetJaxError(
            "torchvision has no pre-activation network: export this one as stablehlo or onnx"
        )
    state_dict = {}
    for path, value in flat.items():
        name = torchvision_name(path)
        state_dict[name] = np.ascontiguousarray(_to_torch(np.asarray(value), path))
        if path[-1] == "var":
            state_dict[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state_dict


def torchvision_name(path: Path) -> str:
    """The name of one of our variables.

    >>> torchvision_name(("params", "stage2_unit1", "shortcut_norm", "scale"))
    'layer2.0.downsample.1.weight'
    """
    _, *modules, leaf = path
    match modules:
        case ["head"]:
            module = "fc"
        case ["stem", "conv"]:
            module = "conv1"
        case ["stem", "norm"]:
            module = "bn1"
        case [unit, layer] if found := re.fullmatch(r"stage(\d+)_unit(\d+)", unit):
            layer = {"shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}.get(
                layer, layer.replace("norm", "bn")
            )
            module = f"layer{found[1]}.{int(found[2]) - 1}.{layer}"
        case _:
            raise ResNetJaxError(
                f"torchvision has no name for {'/'.join(modules)}: it is not a layer of "
                f"resnet_jax.ResNet"
            )
    return f"{module}.{_LEAVES[leaf]}"


def _to_torch(value: np.ndarray, path: Path) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _to_ours(value: np.ndarray, path: Path) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _rename_book(given: Mapping[str, np.ndarray]) -> dict[str, str]:
    """torchvision's names for the book's, each with the name it had."""
    named = {}
    for origin in given:
        name = origin
        for book, torchvision in _BOOK_MODULES.items():
            if origin.startswith(book):
                name = torchvision + origin.removeprefix(book)
        if found := _BOOK_UNIT.fullmatch(origin):
            stage, unit, rest = found.groups()
            rest = re.sub(r"^shortcut\.", "downsample.0.", rest)
            rest = re.sub(r"^bn3\.", "downsample.1.", rest)
            name = f"layer{stage}.{unit}.{rest}"
        named[name] = origin
    return named


def _infer(entries: Mapping[str, np.ndarray], residual: bool) -> ResNet:
    """The row of the table whose units are nearest to those named, with width and stem by shape."""
    bottleneck = any(_UNIT.match(name) and ".conv3." in name for name in entries)
    sizes = [0, 0, 0, 0]
    for name in entries:
        if (found := _UNIT.match(name)) and 1 <= int(found[1]) <= 4:
            stage = int(found[1]) - 1
            sizes[stage] = max(sizes[stage], int(found[2]) + 1)

    def distance(model: ResNet) -> int:
        return sum(abs(a - b) for a, b in zip(sizes, model.stage_sizes, strict=True))

    rows = [m for m in _TORCHVISION.values() if issubclass(m.unit, BottleneckUnit) == bottleneck]
    nearest = min(rows, key=distance)
    stem = entries.get("conv1.weight", np.zeros((64, 3, 7, 7)))
    whole = stem.ndim == 4
    return nearest.clone(
        width=stem.shape[0] if whole else 64,
        stem="small" if whole and stem.shape[2:] == (3, 3) else "imagenet",
        residual=residual,
    )


def _expected(
    model: ResNet, entries: Mapping[str, np.ndarray], classes: int | None
) -> dict[Path, tuple[int, ...]]:
    """Shapes of the model's variables, with the weights' channels, and classes unless given."""
    stem, head = entries.get("conv1.weight"), entries.get("fc.weight")
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    if classes is None:
        classes = head.shape[0] if head is not None and head.ndim == 2 else model.num_classes
    return shapes_of(model.clone(num_classes=classes), channels)


def shapes_of(model: ResNet, channels: int) -> dict[Path, tuple[int, ...]]:
    """Shapes of a model's variables by their path; nothing is computed."""
    images = jnp.zeros((1, 32, 32, channels))
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    flat = traverse_util.flatten_dict(tree)
    return {path: leaf.shape for path, leaf in flat.items()}


def _refuse_strangers(
    entries: Mapping[str, np.ndarray], expected: Mapping[Path, tuple[int, ...]]
) -> None:
    """Of another architecture nothing fits: that is said once, not for a thousand entries."""
    names = {torchvision_name(path) for path in expected}
    if len(names & entries.keys()) * 4 < len(names):
        first = ", ".join(sorted(entries)[:3]) or "nothing"
        raise ResNetJaxError(
            f"the weights are not those of a residual network ({len(entries)} entries: {first}, "
            f"...): expected torchvision's names, conv1.weight to fc.bias"
        )


def _check(
    entries: Mapping[str, np.ndarray],
    expected: Mapping[Path, tuple[int, ...]],
    named: Mapping[str, str],
    what: str,
) -> None:
    shapes = {torchvision_name(path): _torch_shape(path, shape) for path, shape in expected.items()}
    if named.get("conv1.bias") == "net.0.0.bias":
        shapes["conv1.bias"] = (shapes["conv1.weight"][0],)
    surplus = [
        name
        for name in entries
        if name not in shapes and name.replace("num_batches_tracked", "running_var") not in shapes
    ]
    # Half precision from ml_dtypes is not of numpy's own kinds.
    numbers = {name: value for name, value in entries.items() if name in shapes}
    wrong_type = [n for n, v in numbers.items() if not jnp.issubdtype(v.dtype, jnp.floating)]
    misshapen = [n for n, v in numbers.items() if v.shape != shapes[n]]
    bad = [
        name
        for name, value in numbers.items()
        if name not in wrong_type
        and (not np.isfinite(value).all() or ("running_var" in name and (value < 0).any()))
    ]
    origin = dict(named)
    if any(name.startswith("net.") for name in named.values()):
        # What the book's file lacks is named as the book would.
        origin |= {name: _book_name(name) for name in shapes if name not in named}
    complaints = {
        "missing": [origin.get(name, name) for name in shapes.keys() - entries.keys()],
        "unknown": [origin[name] for name in surplus],
        "of another shape": [
            f"{origin[n]} {list(entries[n].shape)}, expected {list(shapes[n])}" for n in misshapen
        ],
        "not floating-point": [f"{origin[name]} {entries[name].dtype}" for name in wrong_type],
        "with NaN, infinity or a negative variance": [origin[name] for name in bad],
    }
    if any(complaints.values()):
        listing = "; ".join(
            f"{len(names)} {kind}: {', '.join(sorted(names))}"
            for kind, names in complaints.items()
            if names
        )
        raise ResNetJaxError(f"the weights do not fit {what}: {listing}")


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    return _to_torch(np.empty(shape, np.bool_), path).shape


def _book_name(name: str) -> str:
    for book, torchvision in _BOOK_MODULES.items():
        if name.startswith(torchvision):
            return book + name.removeprefix(torchvision)
    name = re.sub(r"^layer", "net.", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "bn3")


def _describe(model: ResNet) -> str:
    row = [n for n, m in _TORCHVISION.items() if _same_row(m, model)]
    name = row[0] if row else f"a network of {model.stage_sizes} units"
    plain = "" if model.residual else "plain "
    return f"{plain}{name} (width {model.width}, stem {model.stem})"


def _same_row(one: ResNet, other: ResNet) -> bool:
    return one.stage_sizes == other.stage_sizes and one.unit is other.unit
