"""A whole network as one function of uint8 images, exported for JAX on any platform."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import ResNetJaxError
from resnet_jax.interop.weights import describe
from resnet_jax.models import ResNet
from resnet_jax.storage import write_whole

PLATFORMS = ("cpu", "cuda", "tpu")
# Largest difference to the network itself: of logits relative to the largest, of probabilities.
TOLERANCE = 1e-5
CHECKED_IMAGES = 16

Outputs = dict[str, Any]  # "logits" and "probabilities", float32[N, K]


def export_stablehlo(
    path: Path,
    model: ResNet,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    **made_by: str,
) -> None:
    """Write a network for cpu, cuda and tpu, compared with itself before the file is in place.

    ``jax.export.deserialize(file).call(images)`` maps ``uint8[N, H, W, C]`` images to ``logits``
    and ``probabilities``. ``jax.export`` keeps no texts beside a function: the facts of `describe`
    are therefore a key of what it returns, ``json.loads(*outputs["about"])``.
    """
    try:
        import flatbuffers  # noqa: F401  (what jax.export writes and reads files with)
    except ImportError as error:
        raise ResNetJaxError(
            "export to StableHLO needs the package flatbuffers: `pip install flatbuffers`"
        ) from error
    apply = network(model, preprocessing)
    about = json.dumps(describe(model, preprocessing, class_names, **made_by))

    def call(images: jax.Array) -> Outputs:
        return {**apply(variables, images), "about": {about: None}}

    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *preprocessing.image_shape), jnp.uint8)
    exported = jax.export.export(jax.jit(call), platforms=PLATFORMS)(images)
    content = exported.serialize()
    check("stablehlo", jax.export.deserialize(content).call, model, variables, preprocessing)
    write_whole(path, bytes(content))


def network(model: ResNet, preprocessing: Preprocessing) -> Callable[[Any, jax.Array], Outputs]:
    """Return ``(variables, uint8 images) -> logits and probabilities``, preprocessing inside."""

    def apply(variables: Any, images: jax.Array) -> Outputs:
        logits = model.apply(variables, preprocessing(images), train=False)
        assert isinstance(logits, jax.Array)
        outputs = {"logits": logits, "probabilities": jax.nn.softmax(logits)}
        return jax.tree.map(lambda x: x.astype(jnp.float32), outputs)

    return apply


def check(
    format: str,
    exported: Callable[[np.ndarray], Outputs],
    model: ResNet,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> None:
    """Compare an export with the network, and with XLA's own convolutions in float32.

    Raises:
        ResNetJaxError: they differ.
    """
    reference = model.clone(lowering="reference", dtype=jnp.float32, param_dtype=jnp.float32)
    images = noise(preprocessing.image_shape)
    own, expected = (
        jax.device_get(jax.jit(network(net, preprocessing))(variables, images))
        for net in (model, reference)
    )
    got = jax.device_get(exported(images))
    scale = np.abs(expected["logits"]).max()
    differences = {
        "logits": np.abs(got["logits"] - expected["logits"]).max() / scale,
        "probabilities": np.abs(got["probabilities"] - own["probabilities"]).max(),
    }
    # In bfloat16 the network itself is that far from the reference.
    tolerance = 0.05 if model.dtype == jnp.bfloat16 else TOLERANCE
    for what, difference in differences.items():
        if not difference <= tolerance:
            raise ResNetJaxError(
                f"{format} export differs from the network by {difference:.1e} in {what} on "
                f"{len(images)} images (at most {tolerance:g}): nothing was written; please report "
                f"this with the versions of resnet_jax and jax"
            )


def noise(image_shape: tuple[int, int, int], count: int = CHECKED_IMAGES) -> np.ndarray:
    """Return random images from dim to bright, uint8[count, H, W, C], always the same."""
    random = np.random.default_rng(0)
    bright = np.linspace(32, 256, count, dtype=int)[:, None, None, None]
    return random.integers(0, bright, (count, *image_shape)).astype(np.uint8)
