"""A network as exported files hold it, from uint8 images to probabilities; export to StableHLO."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import __version__
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import ResNetJaxError, importing
from resnet_jax.interop.torchvision import row_of
from resnet_jax.models import ResNet, has_parameters
from resnet_jax.storage import PathLike, write_whole

TOLERANCE = 1e-5  # relative to the largest logit, or probability
CHECKED_IMAGES = 16
# Attributes that decide the shapes of a model's parameters, besides its row of `VARIANTS`.
SHAPING = ("residual", "width", "stem", "shortcut")

Outputs = dict[str, Any]  # "logits" and "probabilities", float32[N, K]


@dataclass(frozen=True, eq=False)
class Network:
    """A model with its variables, and what an exported file says about them.

    Attributes:
        model: a `resnet_jax.ResNet`.
        variables: its collections ``params`` and ``batch_stats``.
        preprocessing: from uint8 images to the model's input.
        class_names: K names.
        made_by: the network's origin, as texts under any names.
    """

    model: ResNet
    variables: Mapping[str, Any]
    preprocessing: Preprocessing
    class_names: Sequence[str]
    made_by: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, ResNet):
            raise ResNetJaxError(
                f"a file holds one of the package's networks, and this is a "
                f"{type(self.model).__name__}: jax.export writes any function"
            )
        if not 0 < self.model.num_classes == len(self.class_names):
            raise ResNetJaxError(
                f"the network has {self.model.num_classes} classes and there are "
                f"{len(self.class_names)} class_names: give a name for each class"
            )
        shape, variables = self.preprocessing.input_shape, dict(self.variables or {})
        if not has_parameters(self.model, shape, variables):
            raise ResNetJaxError(
                "variables have other names or shapes than the model's for images of "
                f"{list(shape)}: give a model, variables and preprocessing that belong together"
            )

    def apply(self, variables: Any, images: jax.Array) -> Outputs:
        """Map ``uint8[N, H, W, C]`` images to ``logits`` and ``probabilities``."""
        logits = self.model.apply(variables, self.preprocessing(images), train=False)
        assert isinstance(logits, jax.Array)
        outputs = {"logits": logits, "probabilities": jax.nn.softmax(logits)}
        return jax.tree.map(lambda x: x.astype(jnp.float32), outputs)

    def metadata(self) -> dict[str, Any]:
        """Return an exported file's metadata: class names, preprocessing, model and origin."""
        model = self.model
        described = {name: getattr(model, name) for name in SHAPING}
        return {
            "class_names": list(map(str, self.class_names)),
            "preprocessing": self.preprocessing.to_metadata(),
            "model": {"name": row_of(model) or "resnet", **described},
            "made_by": {"resnet_jax": __version__, "jax": jax.__version__, **self.made_by},
        }

    def check(self, format: str, exported: Callable[[np.ndarray], Outputs]) -> None:
        """Refuse an export that disagrees with the network or with XLA's convolutions in float32.

        A deep network amplifies rounding errors without a known bound. So the difference may be as
        large as that from rounding the weights to 18 (float16: 8, bfloat16: 5) bits of mantissa.
        """
        plain = {"lowering": "reference", "dtype": jnp.float32, "param_dtype": jnp.float32}
        reference = jax.jit(replace(self, model=self.model.clone(**plain)).apply)
        bits = {7: 5, 10: 8}.get(jnp.finfo(jnp.dtype(self.model.dtype)).nmant, 18)  # to keep
        rounded = jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, bits), self.variables)
        images = noise(self.preprocessing.image_shape)
        expected, rough = (reference(variables, images) for variables in (self.variables, rounded))
        own, got = jax.jit(self.apply)(self.variables, images), exported(images)
        own, got, expected, rough = jax.device_get((own, got, expected, rough))
        if not all(np.isfinite(x).all() for x in own.values()):
            raise ResNetJaxError(
                "the network's outputs are not finite: give another --checkpoint, or train again "
                "with a smaller --optim.learning-rate"
            )

        def distance(one: Outputs, other: Outputs) -> Any:
            return np.max(
                [np.abs(one[k] - other[k]).max() / (np.abs(expected[k]).max() or 1) for k in own]
            )

        difference = np.maximum(distance(got, own), distance(got, expected))
        most = np.maximum(TOLERANCE, distance(rough, expected))
        if not difference <= most:
            raise ResNetJaxError(
                f"{format} export differs from the network by {difference:.1e} of the largest "
                f"output (at most {most:.1e}), and is not written; please report this and jax's "
                "version"
            )


def noise(image_shape: tuple[int, int, int], count: int = CHECKED_IMAGES) -> np.ndarray:
    """Return random images from dim to bright, uint8[count, H, W, C], always the same."""
    random = np.random.default_rng(0)
    bright = np.linspace(32, 256, count, dtype=int)[:, None, None, None]
    return random.integers(0, bright, (count, *image_shape)).astype(np.uint8)


def export_stablehlo(path: PathLike, network: Network) -> None:
    """Write a network as StableHLO for cpu, cuda and tpu, if the outputs agree with its own.

    ``jax.export.deserialize(bytearray(path.read_bytes())).call(images)`` maps ``uint8[N, H, W, C]``
    to ``logits`` and ``probabilities``. The outputs also hold the network's metadata:
    ``json.loads(*outputs["about"])``. An export that differs raises `ResNetJaxError`.
    """
    with importing("export to StableHLO", "flatbuffers"):
        import flatbuffers  # noqa: F401  (jax.export reads and writes files with it)
    about = json.dumps(network.metadata())

    def call(images: jax.Array) -> Outputs:
        return {**network.apply(network.variables, images), "about": {about: None}}

    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *network.preprocessing.image_shape), jnp.uint8)
    with jax.default_matmul_precision("highest"):  # in the file, whatever the run's setting
        exported = jax.export.export(jax.jit(call), platforms=("cpu", "cuda", "tpu"))(images)
        content = exported.serialize()
        network.check("stablehlo", jax.export.deserialize(content).call)
    write_whole(path, bytes(content))
