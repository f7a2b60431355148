"""A run's network in a file that others can use, checked on real digits before it is in place."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data import load_dataset
from resnet_jax.data.augment import preprocess
from resnet_jax.errors import ResNetJaxError
from resnet_jax.interop.files import save_weights, write_whole
from resnet_jax.interop.torchvision import to_torchvision
from resnet_jax.models import ResNet
from resnet_jax.training.program import make_model

if TYPE_CHECKING:
    from resnet_jax.run import Checkpoint, Run

Format = Literal["torchvision", "stablehlo", "onnx"]
SUFFIXES: dict[str, str] = {
    "torchvision": ".safetensors",
    "stablehlo": ".stablehlo",
    "onnx": ".onnx",
}
PLATFORMS = ("cpu", "cuda", "tpu")
# Largest difference to the run's own network: of logits relative to the largest, of probabilities.
TOLERANCE = 1e-5
DIGITS = 100

Outputs = dict[str, Any]  # "logits" and "probabilities", float32[N, K]


def export(
    run: "Run",
    format: Format,
    output: str | Path | None = None,
    *,
    checkpoint: "Checkpoint" = "best",
) -> Path:
    """Writes a run's network for use elsewhere.

    - ``torchvision``: weights by torchvision's names, in a ``.safetensors`` file whose metadata
      hold class names and preprocessing as JSON.
    - ``stablehlo``: the whole network for cpu, cuda and tpu, which
      ``jax.export.deserialize(file).call(images)`` runs with jax alone.
    - ``onnx``: the whole network, checked with onnxruntime.

    The whole network maps ``uint8[N, H, W, C]`` images, as they come from the data set, to
    ``logits`` and ``probabilities``; preprocessing is inside.

    >>> run = rj.Run.open("runs/quickstart-seed0")  # doctest: +SKIP
    >>> rj.interop.export(run, "onnx")  # doctest: +SKIP
    PosixPath('runs/quickstart-seed0/export/resnet18.onnx')

    Args:
        run: an opened run.
        format: which of the three.
        output: the file. Default: ``export/MODEL.SUFFIX`` in the run's folder.
        checkpoint: whose parameters.

    Returns:
        The file.

    Raises:
        ResNetJaxError: the format has no such network, a package is missing, the file cannot be
            written, or what it computes is not what the run computes; then no file is left.
    """
    name = f"{'' if run.config.model.residual else 'plain_'}{run.config.model.name}"
    path = Path(output) if output else run.path / "export" / f"{name}{SUFFIXES[format]}"
    variables = jax.tree.map(np.asarray, run.variables(checkpoint))
    facts = describe(run, checkpoint)
    match format:
        case "torchvision":
            save_weights(
                path,
                to_torchvision(variables),
                {key: json.dumps(value) for key, value in facts.items()},
            )
        case "stablehlo":
            content = to_stablehlo(run, variables, facts)
            exported = jax.export.deserialize(bytearray(content))
            _check(format, run, variables, checkpoint, exported.call)
            write_whole(path, content)
        case "onnx":
            from resnet_jax.interop.onnx import runner, to_onnx

            content = to_onnx(reference(run), variables, facts)
            _check(format, run, variables, checkpoint, runner(content))
            write_whole(path, content)
        case _:
            raise ResNetJaxError(f"format {format} is not known: give one of {', '.join(SUFFIXES)}")
    return path


def describe(run: "Run", checkpoint: str) -> dict[str, Any]:
    """What travels with the weights: model, class names, preprocessing, where they come from."""
    from resnet_jax import __version__

    data = run.config.data
    height, width, channels = run.image_shape
    settings = run.config.model
    return {
        "class_names": list(run.class_names),
        "preprocessing": {
            "images": f"uint8[N, {height}, {width}, {channels}]",
            "image_shape": [height, width, channels],
            "resize": data.image_size,
            "center_crop": data.center_crop,
            "scale": 255,
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "model": {
            "name": settings.name,
            "residual": settings.residual,
            "width": settings.width,
            "stem": settings.stem,
        },
        "made_by": {
            "resnet_jax": __version__,
            "data": data.name,
            "checkpoint": checkpoint,
        },
    }


def to_stablehlo(run: "Run", variables: Any, facts: dict[str, Any]) -> bytes:
    """The network for a symbolic number of uint8 images, serialised by ``jax.export``.

    ``jax.export`` keeps no texts beside a function. The facts are therefore a key of what the
    function returns: ``json.loads(*exported.call(images)["about"])``.
    """
    apply = network(run, make_model(run.config, len(run.class_names)))
    about = json.dumps(facts)

    def call(images: jax.Array) -> Outputs:
        return {**apply(variables, images), "about": {about: None}}

    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *run.image_shape), jnp.uint8)
    return bytes(jax.export.export(jax.jit(call), platforms=PLATFORMS)(images).serialize())


def network(run: "Run", model: ResNet) -> Callable[[Any, jax.Array], Outputs]:
    """``(variables, uint8 images) -> logits and probabilities``, preprocessing inside."""
    data = run.config.data
    mean, std = jnp.asarray(data.mean), jnp.asarray(data.std)
    normalise = partial(
        preprocess,
        image_size=data.image_size,
        center_crop=data.center_crop,
        mean=mean,
        std=std,
    )

    def apply(variables: Any, images: jax.Array) -> Outputs:
        logits = model.apply(variables, normalise(images), train=False)
        assert isinstance(logits, jax.Array)
        outputs = {"logits": logits, "probabilities": jax.nn.softmax(logits)}
        return jax.tree.map(lambda x: x.astype(jnp.float32), outputs)

    return apply


def reference(run: "Run") -> ResNet:
    """The run's model by XLA's own convolutions, in float32."""
    model = make_model(run.config, len(run.class_names))
    return model.clone(lowering="reference", dtype=jnp.float32, param_dtype=jnp.float32)


def reference_outputs(run: "Run", variables: Any, images: np.ndarray) -> Outputs:
    """What `reference` makes of uint8 images."""
    outputs: Outputs = jax.device_get(jax.jit(network(run, reference(run)))(variables, images))
    return outputs


def digits(shape: tuple[int, ...], count: int = DIGITS) -> np.ndarray:
    """The first test images of ``mnist_5k``, brought to ``(H, W, C)``: uint8[count, H, W, C].

    They come with an installed package, so that an export can be checked where the run's own
    data are not at hand.
    """
    images = load_dataset("mnist_5k").test.read(np.arange(count))[0]
    rows, columns = (
        np.arange(size) * before // size
        for size, before in zip(shape[:2], images.shape[1:3], strict=True)
    )
    return np.repeat(images[:, rows][:, :, columns], shape[2], axis=3)


def _check(
    format: str,
    run: "Run",
    variables: Any,
    checkpoint: "Checkpoint",
    exported: Callable[[np.ndarray], Outputs],
) -> None:
    """Compares with the reference's logits, and with what the run itself predicts."""
    images = digits(run.image_shape)
    expected = reference_outputs(run, variables, images)
    got = jax.device_get(exported(images))
    scale = np.abs(expected["logits"]).max()
    differences = {
        "logits": np.abs(got["logits"] - expected["logits"]).max() / scale,
        "probabilities": np.abs(got["probabilities"] - run.predict(images, checkpoint)).max(),
    }
    # In bfloat16 the run itself is that far from the reference.
    tolerance = TOLERANCE if run.config.model.dtype != "bfloat16" else 0.05
    for what, difference in differences.items():
        if not difference <= tolerance:
            raise ResNetJaxError(
                f"{format} export differs from the run by {difference:.1e} in {what} on "
                f"{len(images)} digits (at most {tolerance:g}): nothing was written; please report "
                f"this with the versions in {run.path / 'config.yaml'}"
            )
