"""Grad-CAM++ and Grad-CAM (where a network looks) and feature maps (what it sees there).

The model has no code for this: Linen lets a caller intercept a module's output.
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from PIL import Image

from resnet_jax.data.image import Box
from resnet_jax.data.sampler import padded_order
from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import ResNet
from resnet_jax.run import Checkpoint, Run
from resnet_jax.training.metrics import class_numbers

# A coarser map says little about the place: 7x7 is stage 1 for a digit, stage 4 for a photograph.
# This side and the default method were chosen by experiments/saliency.
MIN_MAP_SIDE = 7
Method = Literal["grad-cam", "grad-cam++"]
DEFAULT_METHOD: Method = "grad-cam++"
BATCH = 64  # images explained at a time


class Forward(NamedTuple):
    """The results of one pass through a network, with the feature maps inside."""

    logits: jax.Array  # float[N, K]
    features: jax.Array  # float[N, D], the head's input
    maps: Mapping[str, jax.Array]  # stem, stage1, stage2, ...: float[N, h, w, features]


def forward(
    model: ResNet, variables: Any, images: jax.Array, stage: int = 0, shift: Any = None
) -> Forward:
    """Evaluate the network and record its feature maps; ``shift`` is added to that of ``stage``."""
    # Frozen stages stop the gradient, which is needed here. Under remat, a unit runs in a trace
    # of its own, whose tracers cannot be recorded outside it.
    model = _known(model).clone(frozen_stages=None, remat=False)
    paths = ["stem", *(f"stage{k}_unit{n}" for k, n in enumerate(model.stage_sizes, 1))]
    inside: dict[str, jax.Array] = {}

    def note(next_method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        name = "/".join(context.module.path)
        # Of calls within each other the outermost counts: a unit may call that of its base class.
        if context.method_name != "__call__" or name not in {*paths, "head"} - inside.keys():
            return next_method(*args, **kwargs)
        inside[name] = args[0]
        output = next_method(*args, **kwargs)
        if shift is not None and name == paths[stage]:
            output += shift
        if name != "head":
            inside[name] = output
        return output

    with nn.intercept_methods(note):
        logits = model.apply(variables, images, train=False)
    assert isinstance(logits, jax.Array)
    # JAX keeps this order, but sorts a dict's names.
    maps = OrderedDict((path.partition("_")[0], inside[path]) for path in paths)
    return Forward(logits, inside.get("head", logits), maps)


def default_stage(maps: Mapping[str, Any]) -> int:
    """Choose the stage to explain by the shapes of a network's feature maps (the stem's first)."""
    fine = [k for k, x in enumerate(maps.values()) if k and min(x.shape[1:3]) >= MIN_MAP_SIDE]
    return max(fine, default=1)


def forward_and_saliency(
    model: ResNet,
    variables: Any,
    images: jax.Array,
    labels: jax.Array | None = None,
    stage: int | None = None,
    method: Method = DEFAULT_METHOD,
) -> tuple[Forward, jax.Array]:
    """Compute `forward` and `grad_cam` in one pass; a pure function for the caller to jit."""
    shapes = jax.eval_shape(partial(forward, model), variables, images).maps
    stage = default_stage(shapes) if stage is None else stage

    def logits_of(shift: jax.Array) -> tuple[jax.Array, Forward]:
        passed = forward(model, variables, images, stage, shift)
        return passed.logits, passed

    name = f"stage{stage}"
    logits, pullback, passed = jax.vjp(logits_of, jnp.zeros_like(shapes[name]), has_aux=True)
    labels = logits.argmax(-1) if labels is None else labels
    # An image's logits depend on its own map alone, so one pass gives all images' gradients.
    (gradient,) = pullback(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype))
    weights, activation = gradient.astype(jnp.float32), passed.maps[name].astype(jnp.float32)
    # Equation 19 for the exponential of the logit, with g^2 cancelled; the sum can be below 0 only
    # if no ReLU ends the stage.
    if method == "grad-cam++":
        total, weights = nn.relu(activation.sum((1, 2), keepdims=True)), nn.relu(weights)
        weights = weights / (2 + total * weights)
    evidence = nn.relu((weights.mean((1, 2), keepdims=True) * activation).sum(-1))
    largest = evidence.max((1, 2), keepdims=True)
    return passed, evidence / jnp.where(largest > 0, largest, 1)


_forward = jax.jit(forward, static_argnums=0)
_grad_cam = jax.jit(
    lambda model, *args: forward_and_saliency(model, *args)[1], static_argnums=(0, 4, 5)
)


def grad_cam(
    model: ResNet,
    variables: Any,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    stage: int | None = None,
    method: Method = DEFAULT_METHOD,
) -> jax.Array:
    """Compute Grad-CAM++ maps: where in each image the evidence for a class is.

    The channels of a stage's output are weighted, added up, cut off below zero and divided by the
    largest value; without positive evidence the map is zero. The weights of ``grad-cam`` (arXiv
    1610.02391, equations 1 and 2) are the mean gradient of the class's logit, those of
    ``grad-cam++`` (arXiv 1710.11063, equation 19) a weighted mean of its positive parts.

    >>> import jax, jax.numpy as jnp, resnet_jax as rj
    >>> model = rj.ResNet18(num_classes=10, width=8)
    >>> images = jnp.zeros((2, 32, 32, 1))
    >>> init = jax.jit(model.init, static_argnames="train")
    >>> variables = init(jax.random.key(0), images, train=False)
    >>> rj.inspection.grad_cam(model, variables, images).shape
    (2, 8, 8)

    Args:
        model: a `resnet_jax.ResNet`.
        variables: its collections ``params`` and ``batch_stats``.
        images: ``float[N, H, W, C]``, preprocessed as for the model.
        labels: ``int[N]``, the class to explain in each image. None: the predicted one.
        stage: whose output (for pre-activation units, their sum) to explain, 1 to the number of
            stages. None: the deepest one whose map is at least 7x7, or the first if there is none.
        method: ``grad-cam++`` or ``grad-cam``.

    Returns:
        ``float32[N, h, w]`` in [0, 1], as large as the stage's map; see `overlay`.

    Raises:
        ResNetJaxError: there is no such stage, class or method, or not one label for each image.
    """
    labels = _checked(model, images, labels, stage, method)
    return _grad_cam(model, variables, images, labels, stage, method)


def _known(model: nn.Module, name: str = "model") -> ResNet:
    if not isinstance(model, ResNet):
        raise ResNetJaxError(f"{name} is a {type(model).__name__}: to look inside give a ResNet")
    return model


def _checked(
    model: ResNet, images: ArrayLike, labels: ArrayLike | None, stage: int | None, method: Method
) -> np.ndarray | None:
    if method not in get_args(Method):
        raise ResNetJaxError(f"method must be {' or '.join(get_args(Method))}, got {method}")
    _known(model)
    if stage is not None and not 1 <= stage <= len(model.stage_sizes):
        raise ResNetJaxError(f"stage must be 1 to {len(model.stage_sizes)}, got stage {stage}")
    if not model.num_classes:
        raise ResNetJaxError("the network has no classes to explain: give one with num_classes")
    if labels is None:
        return None
    count, *_ = np.shape(images) or (0,)
    return class_numbers("labels", labels, count, model.num_classes).astype(np.int32)


def feature_maps(model: ResNet, variables: Any, images: ArrayLike) -> dict[str, jax.Array]:
    """Compute the outputs of the stem and of each stage's last unit, by name.

    The arguments are those of `grad_cam`. ``stem``, ``stage1``, ``stage2``, ... are
    ``float[N, h, w, features]`` each.
    """
    return dict(_forward(model, variables, images).maps)


def last_features(model: ResNet, variables: Any, images: ArrayLike) -> jax.Array:
    """Compute the head's input, the pooled features ``float[N, D]``; arguments as of `grad_cam`."""
    return _forward(model, variables, images).features


def explain(
    run: Run,
    images: np.ndarray,
    labels: ArrayLike | None = None,
    *,
    stage: int | None = None,
    method: Method = DEFAULT_METHOD,
    checkpoint: Checkpoint = "best",
) -> np.ndarray:
    """Compute `grad_cam` of a run's network, for ``uint8[N, H, W, C]`` as `Run.predict` takes it.

    Returns ``float32[N, h, w]``, see `grad_cam`; with ``--data.center-crop`` maps are as large as
    the whole picture and zero outside the crop. The other arguments, and the errors, are those of
    `grad_cam` and `Run.predict`; a network that is not a `ResNet` is an error too.
    """
    model = _known(run.model, f"the network of {run.path}")
    with run.jax_settings():
        images, variables = run.preprocessing.checked(images), run.variables(checkpoint)
        labels = _checked(model, images, labels, stage, method)
        maps = [np.zeros((0, 1, 1), np.float32)] * (not len(images))
        few = 1 << max(0, len(images) - 1).bit_length()  # a power of 2, to compile few programs
        for part in padded_order(len(images), min(BATCH, few)):
            pixels, chosen = run.preprocess(images[part]), None if labels is None else labels[part]
            maps.append(np.asarray(_grad_cam(model, variables, pixels, chosen, stage, method)))
        return run.preprocessing.uncrop(np.concatenate(maps)[: len(images)])


def as_picture(image: np.ndarray) -> np.ndarray:
    """Return an image of any number of channels to be shown, uint8[H, W] or uint8[H, W, 3].

    Two channels become their mean; of more than three, the first three are kept.
    """
    return image[..., :3] if image.shape[-1] > 2 else image.mean(-1).astype(np.uint8)


def overlay(images: np.ndarray, maps: ArrayLike, *, opacity: float = 0.6) -> np.ndarray:
    """Draw maps, such as those of `grad_cam`, over their images: ``uint8[N, H, W, 3]``.

    Each map is enlarged bilinearly and drawn in the colours of ``inferno``, which can be read in
    greyscale too; where the map is stronger, it is more opaque.

    Args:
        images: ``uint8[N, H, W, C]``.
        maps: ``float[N, h, w]`` in [0, 1].
        opacity: of the places where a map is 1, in [0, 1].
    """
    images = np.asarray(images)
    shape = np.shape(maps)
    if images.dtype != np.uint8 or images.ndim != 4 or shape[:1] != images.shape[:1]:
        found = f"{images.dtype}{list(images.shape)} with maps of {list(shape)}"
        raise ResNetJaxError(f"images are {found}: give uint8[N, H, W, C] and a map for each")
    drawn = np.zeros((*images.shape[:3], 3), np.uint8)
    for k, evidence in enumerate(np.asarray(maps)):
        drawn[k] = draw_map(Image.fromarray(as_picture(images[k])), evidence, opacity=opacity)
    return drawn


def draw_map(
    picture: Image.Image, evidence: np.ndarray, box: Box = (0, 0, 1, 1), opacity: float = 0.6
) -> Image.Image:
    """Draw a map, float[h, w], over the part of a picture that the network saw; see `overlay`."""
    from matplotlib import colormaps

    levels = Image.fromarray(np.round(255 * np.clip(evidence, 0, 1)).astype(np.uint8))
    left, top, right, bottom = box
    # The picture's rectangle in pixels of the map; outside the map there is no evidence.
    across, down = levels.width / (right - left), levels.height / (bottom - top)
    extent = (-left * across, -top * down, (1 - left) * across, (1 - top) * down)
    bilinear = Image.Resampling.BILINEAR
    levels = levels.transform(picture.size, Image.Transform.EXTENT, extent, bilinear)
    colours = levels.copy()
    colours.putpalette(colormaps["inferno"](range(256), bytes=True)[:, :3].tobytes())
    mask = levels.point(lambda level: opacity * level)
    return Image.composite(colours.convert("RGB"), picture.convert("RGB"), mask)
