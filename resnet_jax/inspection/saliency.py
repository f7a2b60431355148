"""Where a network looks (Grad-CAM) and what it sees there (feature maps).

Nothing in the model knows of this: Linen lets a caller stand between a module and its output.
"""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import ResNet
from resnet_jax.training.jax_settings import configured_for_run

if TYPE_CHECKING:
    from resnet_jax.run import Checkpoint, Run

# A coarser map says little about where.
SMALLEST_MAP = 4
# Images explained at a time.
BATCH = 64


def grad_cam(
    model: ResNet,
    variables: Any,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    stage: int | None = None,
) -> jax.Array:
    """Where the evidence for a class is in each image (arXiv 1610.02391, equations 1 and 2).

    The channels of a stage's output are weighted by the mean gradient of the class's logit, added
    up, and cut off below zero. Each map is then divided by its largest value; one without
    evidence for the class stays zero. Compiled once for each shape of ``images``.

    >>> import jax, jax.numpy as jnp, resnet_jax as rj
    >>> model = rj.ResNet18(num_classes=10, width=8)
    >>> images = jnp.zeros((2, 32, 32, 1))
    >>> variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    >>> rj.inspection.grad_cam(model, variables, images).shape
    (2, 4, 4)

    Args:
        model: a `resnet_jax.ResNet`.
        variables: its collections ``params`` and ``batch_stats``.
        images: ``float[N, H, W, C]``, preprocessed as for the model.
        labels: ``int[N]``, the class to explain in each image. None: the predicted one.
        stage: whose output, 1 to the number of stages. None: the deepest one whose map is at
            least 4x4, or the first where none is.

    Returns:
        ``float32[N, h, w]`` in [0, 1], of the size of the stage's map; see `overlay`.

    Raises:
        ResNetJaxError: there is no such stage or class, or not a label for each image.
    """
    if stage is not None and not 1 <= stage <= len(model.stage_sizes):
        raise ResNetJaxError(f"stage {stage} is not there: give 1 to {len(model.stage_sizes)}")
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != np.shape(images)[:1]:
            raise ResNetJaxError(
                f"labels are {list(labels.shape)} for images {list(np.shape(images))}: "
                f"give one for each image"
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < model.num_classes:
            raise ResNetJaxError(
                f"labels are {labels.min()} to {labels.max()}: give 0 to {model.num_classes - 1}"
            )
    return _grad_cam(model, variables, images, labels, stage)


def feature_maps(model: ResNet, variables: Any, images: ArrayLike) -> dict[str, jax.Array]:
    """The outputs of the stem and of each stage's last unit.

    Args:
        model: a `resnet_jax.ResNet`.
        variables: its collections.
        images: ``float[N, H, W, C]``, preprocessed as for the model.

    Returns:
        ``stem`` and ``stage1``, ``stage2``, ...: ``float[N, h, w, features]`` each.
    """
    maps = _feature_maps(model, variables, images)
    return {name: maps[name] for name in in_order(maps)}


def in_order(maps: Iterable[str]) -> list[str]:
    """Names of maps as the network makes them; jit gives them back sorted."""
    return sorted(maps, key=lambda name: (name != "stem", len(name), name))


def last_features(model: ResNet, variables: Any, images: ArrayLike) -> jax.Array:
    """What the head sees of each image: the pooled features, ``float[N, D]``.

    Args:
        model: a `resnet_jax.ResNet`.
        variables: its collections.
        images: ``float[N, H, W, C]``, preprocessed as for the model.
    """
    return _last_features(model, variables, images)


class Forward(NamedTuple):
    """One pass through a network, with what happens inside."""

    logits: jax.Array  # float[N, K]
    features: jax.Array  # float[N, D], what the head sees
    maps: dict[str, jax.Array]  # float[N, h, w, features], of stem, stage1, stage2, ...


def forward(
    model: ResNet, variables: Any, images: jax.Array, shifts: dict[str, jax.Array] | None = None
) -> Forward:
    """Evaluates the network and notes what happens inside.

    Args:
        model: a `resnet_jax.ResNet`.
        variables: its collections.
        images: ``float[N, H, W, C]``, preprocessed as for the model.
        shifts: arrays to add to some of the maps; zeros are something to differentiate by.
    """
    names = {(f"stage{k}_unit{n}",): f"stage{k}" for k, n in enumerate(model.stage_sizes, 1)}
    names["stem",] = "stem"
    maps, features = {}, []

    def note(next_method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_method(*args, **kwargs)
        if context.method_name != "__call__":
            return output
        if name := names.get(context.module.path):
            output = maps[name] = output + (shifts or {}).get(name, 0)
        elif context.module.path == ("head",):
            features.append(args[0])
        return output

    with nn.intercept_methods(note):
        logits = model.apply(variables, images, train=False)
    assert isinstance(logits, jax.Array)
    return Forward(logits, features[0], maps)


def forward_and_saliency(
    model: ResNet,
    variables: Any,
    images: jax.Array,
    labels: jax.Array | None = None,
    stage: int | None = None,
) -> tuple[Forward, jax.Array]:
    """`forward`, and `grad_cam` by the same pass; pure, to be jitted by the caller."""
    # What is frozen has no gradient in training; here it must have one.
    model = model.clone(frozen_stages=None)
    shapes = jax.eval_shape(partial(forward, model), variables, images).maps
    if stage is None:
        stages = range(1, len(model.stage_sizes) + 1)
        fine = [k for k in stages if min(shapes[f"stage{k}"].shape[1:3]) >= SMALLEST_MAP]
        stage = max(fine, default=1)
    name = f"stage{stage}"

    def logits_of(shift: jax.Array) -> tuple[jax.Array, Forward]:
        found = forward(model, variables, images, {name: shift})
        return found.logits, found

    zeros = jnp.zeros(shapes[name].shape, shapes[name].dtype)
    logits, pullback, found = jax.vjp(logits_of, zeros, has_aux=True)
    labels = logits.argmax(-1) if labels is None else labels
    # An image's logits depend on its own map alone, so that one pass gives all the gradients.
    (gradient,) = pullback(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype))
    weights = gradient.astype(jnp.float32).mean((1, 2), keepdims=True)
    evidence = nn.relu((weights * found.maps[name].astype(jnp.float32)).sum(-1))
    largest = evidence.max((1, 2), keepdims=True)
    return found, evidence / jnp.where(largest > 0, largest, 1)


# Each compiles what it returns and nothing else of the pass.
_grad_cam = jax.jit(
    lambda model, *args: forward_and_saliency(model, *args)[1], static_argnums=(0, 4)
)
_feature_maps = jax.jit(lambda model, *args: forward(model, *args).maps, static_argnums=0)
_last_features = jax.jit(lambda model, *args: forward(model, *args).features, static_argnums=0)


@configured_for_run
def explain(
    run: "Run",
    images: np.ndarray,
    labels: ArrayLike | None = None,
    *,
    stage: int | None = None,
    checkpoint: "Checkpoint" = "best",
) -> np.ndarray:
    """`grad_cam` of a run's network, for images as they come from the data set.

    Args:
        run: an opened run.
        images: ``uint8[N, H, W, C]``, as for `Run.predict`.
        labels: ``int[N]``, the class to explain in each image. None: the predicted one.
        stage: see `grad_cam`.
        checkpoint: whose parameters.

    Returns:
        ``float32[N, h, w]`` in [0, 1].

    Raises:
        ResNetJaxError: as `grad_cam`; the images have another type or shape than the run's.
    """
    pixels = run.preprocess(images)
    if labels is not None and len(np.asarray(labels)) != len(pixels):
        raise ResNetJaxError(f"{len(np.asarray(labels))} labels for {len(pixels)} images")
    variables = run.variables(checkpoint)
    parts = []
    for start in range(0, len(pixels), BATCH):
        part = slice(start, start + BATCH)
        chosen = None if labels is None else np.asarray(labels)[part]
        parts.append(np.asarray(grad_cam(run.model, variables, pixels[part], chosen, stage=stage)))
    if not parts:
        return np.zeros((0, 1, 1), np.float32)
    return on_whole_images(run, np.concatenate(parts))


def on_whole_images(run: "Run", maps: ArrayLike) -> np.ndarray:
    """Maps of what the network saw as maps of its images: `overlay` lays them on those.

    Only ``--data.center-crop`` makes a difference; around it they are zero.

    Args:
        run: whose settings.
        maps: ``float[N, h, w]``, as `grad_cam` returns them.
    """
    maps = np.asarray(maps)
    size = run.config.data.image_size
    if not run.config.data.center_crop or size is None:
        return maps
    enlarged = jax.image.resize(jnp.asarray(maps), (len(maps), size, size), "bilinear")
    before = [(side - size) // 2 for side in run.image_shape[:2]]
    margins = [(b, side - size - b) for b, side in zip(before, run.image_shape[:2], strict=True)]
    return np.pad(np.asarray(enlarged), [(0, 0), *margins])


def overlay(images: np.ndarray, maps: ArrayLike, *, opacity: float = 0.6) -> np.ndarray:
    """Maps laid over their images, for the eye.

    Each map is enlarged bilinearly to its image's size and drawn in the colours of ``inferno``
    (dark to bright in equal steps, so that it reads without colour too), the more opaque the
    stronger it is.

    Args:
        images: ``uint8[N, H, W, C]``, C being 1 or 3.
        maps: ``float[N, h, w]`` in [0, 1], as `grad_cam` returns them.
        opacity: of the strongest places, in [0, 1].

    Returns:
        ``uint8[N, H, W, 3]``.
    """
    from matplotlib import colormaps

    images = np.asarray(images)
    enlarged = np.asarray(jax.image.resize(jnp.asarray(maps), images.shape[:3], "bilinear"))
    strength = np.clip(enlarged, 0, 1)[..., None]
    colours = colormaps["inferno"](strength[..., 0])[..., :3]
    share = opacity * strength
    blended = images / 255 * (1 - share) + colours * share
    return np.round(blended * 255).astype(np.uint8)
