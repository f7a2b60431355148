"""Read and write weights: safetensors without torch, ``.pth`` with torch, another run's weights.

Nothing in a file may run code, and nothing but a regular file is ever replaced.
"""

import argparse
import json
import logging
import pickle
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.config import TrainConfig
from resnet_jax.data.image import read_bytes
from resnet_jax.errors import MALFORMED, ResNetJaxError, importing
from resnet_jax.interop import torchvision
from resnet_jax.interop.network import SHAPING, Network
from resnet_jax.interop.state_dict import StateDict, as_array
from resnet_jax.models import ResNet, has_parameters, make_model
from resnet_jax.storage import PathLike, expanded, write_whole
from resnet_jax.training.run_folder import RunFolder

log = logging.getLogger(__name__)

# Variables; class names, and the mean and deviation of the training images, if they are known.
Start = tuple[dict[str, Any], tuple[str, ...] | None, tuple[Any, Any]]
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # .pth.tar is a zip file or a pickle too
# Architectures that have a ResNet's names and shapes but compute something else, and, for settings
# that change what a network computes, the values with which it computes what the package's does.
OTHERS = re.compile(r"resnet(aa|blur)|deeplab|fcn|dilated")
SAME_FUNCTION = {
    "output_stride": 32,
    "replace_stride_with_dilation": False,
    "global_pool": "avg",
    "act_layer": "relu",
    "aa_layer": "",
}


def load_weights(path: PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """Read a file of named arrays.

    Args:
        path: ``.safetensors``, or torch's ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` and ``.pth.tar``,
            which need torch and are read without objects (``weights_only=True``). The state_dict
            may be nested in a training script's dictionaries.
        key: which of several to read. Default: the largest one not averaged (EMA), with a warning.

    Returns:
        Arrays by name, in the file's precision (a pickle's bfloat16 as float32).

    Raises:
        ResNetJaxError: the file is missing, damaged, of another kind or tries to run code, or the
            file or its ``config.json`` names a network that computes something else.
    """
    path = _file(path)
    with suppress(OSError, *MALFORMED):  # timm's description, beside the file
        config = json.loads(read_bytes(path.with_name("config.json")))
        _refuse_others(path, config["architecture"], config | (config.get("model_args") or {}))
    if path.suffix == ".safetensors":
        if key:
            raise ResNetJaxError(f"{path} holds one state_dict, and key is {key}: leave it out")
        with _open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix in PICKLES:
        return _load_pickle(path, key)
    raise ResNetJaxError(f"{path} is none of .safetensors, {', '.join(PICKLES)}: give one of them")


def _file(path: PathLike) -> Path:
    if not (file := expanded(path)).is_file():
        raise ResNetJaxError(f"{file} is not a file: give a .safetensors or .pth file of weights")
    return file


def load_metadata(path: PathLike) -> dict[str, str]:
    """Return the texts that a ``.safetensors`` file holds beside its arrays; {} for other kinds.

    A missing file raises `ResNetJaxError`.
    """
    if (path := _file(path)).suffix != ".safetensors":
        return {}
    with _open_safetensors(path) as file:
        return dict(file.metadata() or {})


def save_weights(
    path: PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a ``.safetensors`` file, whole or not at all; refuse a name with a pickle's suffix."""
    if expanded(path).suffix in PICKLES:
        raise ResNetJaxError(
            f"{path} would hold safetensors: give a name that ends in .safetensors"
        )
    from safetensors.numpy import save

    # The format "pt" marks a file that torch's loaders may read.
    marks = {"format": "pt", **(metadata or {})}
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_whole(path, save(contiguous, metadata=marks))


def export_torchvision(path: PathLike, network: Network) -> None:
    """Write a network's weights under torchvision's names, in a ``.safetensors`` file.

    The file's metadata are the network's, as JSON. Raises `ResNetJaxError` if torchvision lacks the
    network (see `to_torchvision`; also shortcut ``pad`` or ``projection-all``, and stem ``conv``).
    """
    torchvision.check_written(network.model)
    metadata = {key: json.dumps(value) for key, value in network.metadata().items()}
    save_weights(path, torchvision.to_torchvision(network.variables), metadata)


def initial_variables(
    config: TrainConfig, model: Any, class_names: tuple[str, ...], channels: int, key: jax.Array
) -> tuple[dict[str, Any], str]:
    """Return the variables that a run starts from (``--init-from``): a file's or another run's.

    ``--init-head`` chooses the head; auto compares classes by name if the weights come with names,
    otherwise by number. The second result is a sentence that says what became of the variables.
    """
    source = expanded(config.init_from or "")
    if not source.exists():
        raise ResNetJaxError(
            f"--init-from {source} is not there: give a file of weights or the folder of a run"
        )
    if source.is_dir() and not RunFolder(source).exists:
        found = sorted(p.name for p in source.iterdir() if p.suffix in (".safetensors", *PICKLES))
        if found:  # otherwise `_of_run` raises
            but = f"and holds {', '.join(found[:3])}: give that file"
            raise ResNetJaxError(f"--init-from {source} is not a run, {but}")
    start = _of_run(source, config, model) if source.is_dir() else _of_file(source, model)
    variables, known, pixels = start
    params = variables["params"]
    count = len(params["head"]["bias"]) if "head" in params else None
    if config.init_head == "keep" and count != len(class_names):
        raise ResNetJaxError(
            f"{source} knows {count or 'no'} classes, {config.data.name} has {len(class_names)}: "
            f"give --init-head fresh"
        )
    given, own = (unicodedata.normalize("NFC", str(names)) for names in (known, class_names))
    same = count == len(class_names) and (known is None or given == own)
    # Cast to the run's precision, so that a fresh head is drawn as in the run's network.
    kind = model.param_dtype
    types = {"params": kind, "batch_stats": jnp.promote_types(kind, jnp.float32)}  # as `BatchNorm`
    variables = {part: optax.tree.cast(tree, types[part]) for part, tree in variables.items()}
    inputs = params["stem"][torchvision.first_convolution(params["stem"])]["kernel"].shape[2]
    variables = torchvision.with_input_channels(variables, channels)
    head = first = "kept"
    if config.init_head == "fresh" or (config.init_head == "auto" and not same):
        variables = torchvision.with_fresh_head(variables, len(class_names), key)
        head = f"drawn fresh for {len(class_names)} classes"
    if inputs != channels:
        first = "summed to grey" if channels == 1 else f"spread to {channels} channels"
    rest = "other layers and running statistics kept"
    if channels == 1:  # a grey image has about the average of the colours' mean and deviation
        mean, std = (values and (sum(values) / len(values),) for values in pixels)
        pixels = mean, std
    scales: tuple[Any, ...] = (*pixels, config.data.mean, config.data.std)
    # As the sentence shows them; one number is for all channels.
    each = [v and [f"{x:g}" for x in v] * (channels if len(v) == 1 else 1) for v in scales]
    if None not in each and each[:2] != each[2:] and len(each[0]) == channels:
        means, stds = (" ".join(f"{value:g}" for value in values) for values in pixels)
        rest += f"; they were trained with --data.mean {means} --data.std {stds}"
    return variables, f"starts from {source}: head {head}, stem {first}, {rest}"


def _of_run(folder: Path, config: TrainConfig, model: ResNet) -> Start:
    run = RunFolder(folder)
    record = run.read_record()
    theirs, names = record.config, record.class_names
    one, other = (
        {"name": c.model.name} | {name: getattr(make_model(c, 1), name) for name in SHAPING}
        for c in (theirs, config)
    )
    different = [
        f"--model.{name} {one[name]}, not {other[name]}" for name in one if one[name] != other[name]
    ]
    if different:
        raise _different(folder, different)
    variables = run.read_variables("best")
    if not has_parameters(model.clone(num_classes=len(names)), record.image_shape, variables):
        raise ResNetJaxError(  # it trained a custom network
            f"{folder} was trained with parameters of other names or shapes than those of "
            f"{config.model.title}: give a run of the same network"
        )
    return variables, names, (theirs.data.mean, theirs.data.std)


def _different(source: Path, settings: list[str]) -> ResNetJaxError:
    return ResNetJaxError(f"{source} was trained with {', '.join(settings)}: give the same")


def _of_file(path: Path, model: ResNet) -> Start:
    weights, metadata = load_weights(path), load_metadata(path)
    names: tuple[str, ...] | None = None
    pixels: tuple[Any, Any] = None, None
    with suppress(*MALFORMED):  # another program's metadata; then they count as absent
        names = tuple(map(str, json.loads(metadata["class_names"])))
    with suppress(*MALFORMED):
        own = json.loads(metadata["preprocessing"])
        pixels = tuple(map(float, own["mean"])), tuple(map(float, own["std"]))
    with suppress(*MALFORMED):
        # Names and shapes show everything else; for this, their error would say less.
        if json.loads(metadata["model"])["residual"] is (not model.residual):
            raise _different(path, [f"--model.residual {not model.residual}, not {model.residual}"])
    try:
        count = StateDict.of(weights).num_classes or 0
        return torchvision.from_torchvision(weights, model, num_classes=count), names, pixels
    except ResNetJaxError as error:
        raise ResNetJaxError(f"{path}: {error}") from error


def _refuse_others(path: Path, architecture: Any, settings: Any) -> None:
    """Refuse a network that computes something else, by what a file of any program says of it."""
    named = architecture if isinstance(architecture, str) else ""  # a list's str() may be terabytes
    settings = settings if isinstance(settings, dict) else {}
    other = [
        f"{name} {settings[name]}"
        for name, usual in SAME_FUNCTION.items()
        if isinstance(settings.get(name), str | int | float) and settings[name] != usual
    ]
    if other or OTHERS.search(named.lower()):
        raise ResNetJaxError(
            f"{path} is of {' with '.join([named, *other])}, which has a ResNet's names and "
            "computes something else: there is no such network here"
        )


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    from safetensors import safe_open

    with _reading(path), safe_open(path, framework="numpy") as file:
        yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a failure to read a file, which may be any exception, into an error of one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        reason = f"is damaged or not what its name says: {words}"
        if isinstance(error, pickle.UnpicklingError):
            # torch's message, which advises switching the protection off, is not shown.
            reason = "is damaged or holds more than numbers and names, and a pickle can run code: "
            reason += "save its state_dict() alone"
        elif "TorchScript" in str(error):  # torch's message advises the same
            reason = "is a TorchScript program: save its state_dict() alone"
        elif isinstance(error, AttributeError) and path.suffix == ".safetensors":  # such as float8
            reason = f"holds numbers that are not read ({words}): save them as float16 or float32"
        raise ResNetJaxError(f"{path} {reason}") from error


def _load_pickle(path: Path, key: str | None) -> dict[str, np.ndarray]:
    with importing(f"{path}, which is no .safetensors file,", "torch"):
        import torch
    # Allow what training scripts save too: their options (plain values) and NumPy's numbers.
    scalar = np.float64().__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}
    allowed: list[Any] = [argparse.Namespace, np.dtype, *kinds]
    allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with _reading(path), torch.serialization.safe_globals(allowed):
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    found = _state_dicts(content, torch, path.stat().st_size)
    if not found or key not in (None, *found):
        names = ", ".join(name or "a bare state_dict" for name in found)
        what = f"{names} and no {key}" if found else "no state_dict of dense tensors"
        raise ResNetJaxError(f"{path} holds {what}: give a file with one, and its key")
    args = content.get("args")
    options = args if isinstance(args, dict) else getattr(args, "__dict__", {})
    named = content.get("arch") or options.get("model")
    _refuse_others(path, named, options.get("model_kwargs"))
    if key is None:  # the largest (a loss has weights too); averaged ones only if there is no other
        key, *others = sorted(found, key=lambda name: ("ema" in name, -len(found[name])))
        if others:
            more = ", ".join(others)
            log.warning("%s: %s is read; it also holds %s (load_weights' key)", path, key, more)
    return {str(name): as_array(value) for name, value in found[key].items()}


def _state_dicts(
    content: Any, torch: Any, size: int, where: str = "", depth: int = 0
) -> dict[str, dict[str, Any]]:
    """Return the dictionaries of dense tensors in a file's content, by their path of keys."""
    if not isinstance(content, dict) or depth > 3:
        return {}
    dense = all(isinstance(v, torch.Tensor) and v.layout == torch.strided for v in content.values())
    # Tensors that share numbers take little room in the file, but any amount of memory. Some tie
    # a few, and some compress their files.
    dense = dense and sum(v.nbytes for v in content.values() if not v.is_meta) <= 4 * size
    # An optimiser's dictionaries hold tensors too, under other names.
    if dense and any(str(name).endswith("weight") for name in content):
        return {where: content}
    found: dict[str, dict[str, Any]] = {}
    for name, value in content.items():
        below = f"{where}.{name}" if where else str(name)
        found |= _state_dicts(value, torch, size, below, depth + 1)
    return found
