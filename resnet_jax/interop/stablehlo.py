"""Export a whole network as one function of uint8 images, for JAX on any platform."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from resnet_jax.errors import ResNetJaxError
from resnet_jax.interop.network import Network, Outputs
from resnet_jax.storage import write_whole

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(path: Path, network: Network) -> None:
    """Write a network for cpu, cuda and tpu, compared with itself before the file is in place.

    ``jax.export.deserialize(file).call(images)`` maps ``uint8[N, H, W, C]`` images to ``logits``
    and ``probabilities``. ``jax.export`` keeps no texts beside a function: the network's metadata
    are therefore a key of what it returns, ``json.loads(*outputs["about"])``.
    """
    try:
        import flatbuffers  # noqa: F401  (what jax.export writes and reads files with)
    except ImportError as error:
        raise ResNetJaxError(
            "export to StableHLO needs the package flatbuffers: `pip install flatbuffers`"
        ) from error
    about = json.dumps(network.metadata())

    def call(images: jax.Array) -> Outputs:
        return {**network.apply(network.variables, images), "about": {about: None}}

    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *network.preprocessing.image_shape), jnp.uint8)
    exported = jax.export.export(jax.jit(call), platforms=PLATFORMS)(images)
    content = exported.serialize()
    network.check("stablehlo", jax.export.deserialize(content).call)
    write_whole(path, bytes(content))
