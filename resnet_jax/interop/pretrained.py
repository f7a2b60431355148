"""The weights that a run starts from (``--init-from``): a file's or another run's."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from resnet_jax.config import TrainConfig
from resnet_jax.errors import ResNetJaxError
from resnet_jax.interop.adapt import with_input_channels
from resnet_jax.interop.files import load_metadata, load_weights
from resnet_jax.interop.torchvision import from_torchvision
from resnet_jax.training.program import Program

# Variables, and the names of the classes where they are known.
Pretrained = tuple[dict[str, Any], tuple[str, ...] | None]

# What decides the shapes of the parameters.
_SHAPING = ("name", "residual", "width", "stem")


def load_pretrained(program: Program) -> dict[str, Any]:
    """Variables for a program to start from, brought to its classes and input channels.

    The head is left out where it is to start fresh: by ``--init-head``, or where the weights are
    for other classes. Classes are compared by their names where the weights carry names (those of
    a run or of its export), else by their number.

    Raises:
        ResNetJaxError: the weights cannot be read or do not fit the program's network.
    """
    config = program.config
    source = Path(config.init_from or "")
    given = _of_run(source, config) if source.is_dir() else _of_file(source, program)
    variables, class_names = given
    variables = with_input_channels(variables, program.image_shape[2])
    count = len(variables["params"]["head"]["bias"])
    if class_names is None:
        same = count == len(program.class_names)
    else:
        same = class_names == program.class_names
    if config.init_head == "keep" and count != len(program.class_names):
        raise ResNetJaxError(
            f"{source} knows {count} classes, {config.data.name} has {len(program.class_names)}: "
            f"give --init-head fresh"
        )
    if config.init_head == "fresh" or (config.init_head == "auto" and not same):
        params = {name: part for name, part in variables["params"].items() if name != "head"}
        variables = {**variables, "params": params}
    return variables


def _of_run(folder: Path, config: TrainConfig) -> Pretrained:
    from resnet_jax.run import Run

    run = Run.open(folder)
    settings, theirs = dataclasses.asdict(config.model), dataclasses.asdict(run.config.model)
    different = [
        f"--model.{name} {theirs[name]}, not {settings[name]}"
        for name in _SHAPING
        if theirs[name] != settings[name]
    ]
    if different:
        raise ResNetJaxError(f"{folder} was trained with {', '.join(different)}: give the same")
    return run.variables("best"), run.class_names


def _of_file(path: Path, program: Program) -> Pretrained:
    weights = load_weights(path)
    head = weights.get("fc.bias", weights.get("net.7.bias"))
    model = program.model
    if model.unit.preactivation:
        raise ResNetJaxError(
            f"{path}: files hold torchvision's networks, and {program.config.model.name} is none: "
            f"give a run's folder"
        )
    if head is not None and head.ndim == 1:
        model = model.clone(num_classes=len(head))
    try:
        variables = from_torchvision(weights, model)
    except ResNetJaxError as error:
        raise ResNetJaxError(f"{path}: {error}") from error
    try:
        names = json.loads(load_metadata(path).get("class_names", "null"))
        return variables, None if names is None else tuple(map(str, names))
    except (ValueError, TypeError):
        # Someone else's metadata under the same name.
        return variables, None
