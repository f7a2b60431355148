"""Augmentation and preprocessing on the device: pure functions to call inside a jitted step."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from resnet_jax.data.randaugment import draw_operations, warp
from resnet_jax.errors import ResNetJaxError

# Random erasing: torchvision's areas (arXiv 1708.04896 goes to 0.4) and the paper's aspect ratios.
ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT = (0.3, 1 / 0.3)
# Width to height of a random resized crop (arXiv 1409.4842, section 6).
CROP_ASPECT = (3 / 4, 4 / 3)
# Standard deviation in pixels of the Gaussian that smooths elastic displacements (Simard,
# Steinkraus and Platt, ICDAR 2003, section 2).
ELASTIC_SMOOTHING = 4.0


def augment(
    images: Float[Array, "n h w c"],
    key: jax.Array,
    *,
    flip: bool = False,
    crop: int = 0,
    resized_crop: float = 0.0,
    image_size: int | None = None,
    randaugment: int = 0,
    magnitude: float = 9.0,
    shift: float = 0.0,
    rotation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    elastic: float = 0.0,
    erase: float = 0.0,
    fill: float = 0.0,
) -> Float[Array, "n new_h new_w c"]:
    """Return the images, each cropped, flipped, recoloured, moved and partly erased at random.

    `resnet_jax.AugmentConfig` describes the settings. The settings from ``shift`` to ``shear`` form
    one affine map about the image's centre, which is applied with ``elastic`` in one resampling. A
    setting of 0 costs nothing. The random draws of one setting do not depend on the others.

    Args:
        images: float32[N, H, W, C]; in [0, 255] for ``randaugment``.
        key: a key of ``jax.random``; the same key gives the same result.
        image_size: the side to which ``resized_crop`` resizes crops. Default: the images' size.
        fill: the background level of padding and of erased pixels, in the images' own units.

    Returns:
        float32[N, H, W, C]; with ``resized_crop``, float32[N, image_size, image_size, C].

    Example:
        >>> images = jnp.zeros((8, 28, 28, 1))
        >>> augment(images, jax.random.key(0), shift=2, rotation=10, erase=0.1).shape
        (8, 28, 28, 1)
    """
    # Folded into the key: 1 to 5 and 7 here, 6 by `mix`, 8 for a run's network. The next is 9.
    if resized_crop:
        size = images.shape[1:3] if image_size is None else (image_size, image_size)
        boxes = _draw_boxes(images.shape[:3], jax.random.fold_in(key, 2), resized_crop)
        images = cut_out(images, boxes, size)
    if crop:
        images = _padded_crop(images, jax.random.fold_in(key, 3), crop, fill)
    if flip:
        chosen = jax.random.bernoulli(jax.random.fold_in(key, 4), shape=images.shape[:1])
        images = jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)
    if randaugment:
        operations_key = jax.random.fold_in(key, 5)
        images = draw_operations(images, operations_key, randaugment, magnitude, fill=fill)
    if shift or rotation or scale or shear or elastic:
        inverse, translation = _draw_affine(images.shape[0], key, shift, rotation, scale, shear)
        elastic_key = jax.random.fold_in(key, 7)
        moves = _draw_elastic(images.shape[:3], elastic_key, elastic) if elastic else None
        images = warp(images, inverse, translation, moves, fill=fill)
    if erase:
        mask = _draw_erased(images.shape[:3], jax.random.fold_in(key, 1), erase)
        images = jnp.where(mask[..., None], jnp.asarray(fill, images.dtype), images)
    return images


def mix(
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    key: jax.Array,
    *,
    num_classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Float[Array, "n h w c"], Int[Array, " n"] | Float[Array, "n k"]]:
    """Mix each image with its predecessor in the batch, and their labels in the same proportions.

    The share that an image keeps is drawn from Beta(a, a) for each image. ``mixup`` is the a of a
    weighted mean of the two images (arXiv 1710.09412); ``cutmix`` is the a of a rectangle pasted
    from the predecessor, centred anywhere and cut off at the rim (arXiv 1905.04899). With both,
    each image gets one or the other with equal probability. Labels become soft labels float[N, K]
    whose rows sum to 1; with neither, images and labels are returned unchanged.
    """
    if not (mixup or cutmix):
        return images, labels
    mixup_key, cutmix_key, choice_key = jax.random.split(jax.random.fold_in(key, 6), 3)
    count, height, width, _ = images.shape
    if mixup:
        kept = jax.random.beta(mixup_key, mixup, mixup, (count, 1, 1))
        own = jnp.broadcast_to(kept, (count, height, width))
    if cutmix:
        outside = ~_draw_pasted((count, height, width), cutmix_key, cutmix)
        either = jax.random.bernoulli(choice_key, shape=(count, 1, 1))
        own = jnp.where(either, own, outside) if mixup else outside.astype(jnp.float32)
    weights = own[..., None].astype(images.dtype)
    mixed = weights * images + (1 - weights) * jnp.roll(images, 1, axis=0)
    share = own.mean((1, 2))[:, None]
    one_hot = jax.nn.one_hot(labels.astype(jnp.int32), num_classes)
    return mixed, share * one_hot + (1 - share) * jnp.roll(one_hot, 1, axis=0)


def cut_out(
    images: Float[Array, "n h w c"], boxes: Float[Array, "n 4"], size: tuple[int, ...]
) -> Float[Array, "n new_h new_w c"]:
    """Resize a rectangle of each image bilinearly, with a low-pass filter where it shrinks.

    Rows of ``boxes`` are top, left, height and width in pixels, within the image.
    """

    def one(image: jax.Array, box: jax.Array) -> jax.Array:
        scale, shape = jnp.asarray(size, jnp.float32) / box[2:], (*size, image.shape[-1])
        shift = -box[:2] * scale
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, shift, "bilinear")

    return jax.vmap(one)(images, boxes)


def _draw_boxes(shape: tuple[int, ...], key: jax.Array, least: float) -> jax.Array:
    """Draw the rectangles of random resized crops, as `cut_out` takes them."""
    count, height, width = shape
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    # A long image has no crop of an allowed aspect that covers its whole area.
    most = min(1, CROP_ASPECT[1] * height / width, width / (CROP_ASPECT[0] * height))
    share = jax.random.uniform(area_key, (count,), minval=min(least, most), maxval=most)
    area = share * height * width
    low = jnp.maximum(CROP_ASPECT[0], area / height**2)
    aspect = _draw_aspect(aspect_key, low, jnp.minimum(CROP_ASPECT[1], width**2 / area))
    tall = jnp.minimum(jnp.sqrt(area / aspect), height)
    wide = jnp.minimum(jnp.sqrt(area * aspect), width)
    place = jax.random.uniform(place_key, (2, count))
    return jnp.stack([place[0] * (height - tall), place[1] * (width - wide), tall, wide], -1)


def _draw_aspect(key: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Draw aspects from those that fit, uniformly in the logarithm, as torchvision does.

    The area stays uniform; torchvision redraws both on a misfit, which makes large crops rarer.
    """
    draw = jax.random.uniform(key, low.shape)
    return jnp.exp(jnp.log(low) + draw * (jnp.log(high) - jnp.log(low)))


def _padded_crop(images: jax.Array, key: jax.Array, pixels: int, fill: float) -> jax.Array:
    count, *shape = images.shape
    sides = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    padded = jnp.pad(images, sides, constant_values=fill)
    corners = jax.random.randint(key, (count, 2), 0, 2 * pixels + 1)
    cut = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))
    return cut(padded, corners)


def _draw_pasted(shape: tuple[int, ...], key: jax.Array, parameter: float) -> jax.Array:
    """Draw the mask of pixels that cutmix takes from the other image: bool[N, H, W]."""
    count, height, width = shape
    share_key, place_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(share_key, parameter, parameter, (count,)))
    place = jax.random.uniform(place_key, (2, count))
    inside = [
        jnp.abs(jnp.arange(n) + 0.5 - n * centre[:, None]) < n * side[:, None] / 2
        for n, centre in zip((height, width), place, strict=True)
    ]
    return inside[0][:, :, None] & inside[1][:, None, :]


def _draw_affine(
    count: int, key: jax.Array, shift: float, rotation: float, scale: float, shear: float
) -> tuple[jax.Array, jax.Array]:
    """Draw ``count`` maps from output points to input points: float32[N, 2, 2], float32[N, 2]."""
    # All numbers are drawn whatever the settings, so that changing one keeps the draws of others.
    # The draws use the very key that the other keys are folded from. A separate key would be right,
    # but runs of 0.1.0 must keep their images.
    draws = jax.random.uniform(key, (5, count), jnp.float32, -1.0, 1.0)
    angle = math.radians(rotation) * draws[0]
    factor = 1.0 + scale * draws[1]
    slant = jnp.tan(math.radians(shear) * draws[2])
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # The rotation matrix times the shear matrix [[1, 0], [slant, 1]].
    inverse = jnp.asarray([[cos - sin * slant, -sin], [sin + cos * slant, cos]]) / factor
    return jnp.moveaxis(inverse, -1, 0), shift * draws[3:].T


def _draw_elastic(shape: tuple[int, ...], key: jax.Array, pixels: float) -> jax.Array:
    """Draw a smooth field of displacements for each image: float32[N, 2, H, W], in pixels."""

    def smoothing(side: int) -> jax.Array:
        """Weigh noise at knots one deviation apart, up to 3 past the rim: float32[side, knots]."""
        last = math.ceil((side - 1) / ELASTIC_SMOOTHING)
        knots = jnp.arange(-3, last + 4, dtype=jnp.float32)
        distance = jnp.arange(side, dtype=jnp.float32)[:, None] / ELASTIC_SMOOTHING - knots
        weights = jnp.exp(-(distance**2) / 2)
        return weights / jnp.linalg.norm(weights, axis=1, keepdims=True)  # keeps the variance

    count, height, width = shape
    rows, columns = smoothing(height), smoothing(width)
    noise = jax.random.normal(key, (count, 2, rows.shape[1], columns.shape[1]), jnp.float32)
    return pixels * (rows @ noise @ columns.T)


def _draw_erased(shape: tuple[int, ...], key: jax.Array, probability: float) -> jax.Array:
    """Draw the pixels to erase: bool[N, H, W], one rectangle or none for each image."""
    count, height, width = shape
    whether, area_key, aspect_key, place_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (count,), minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    low = jnp.maximum(ERASED_ASPECT[0], area * height / width)
    aspect = _draw_aspect(aspect_key, low, jnp.minimum(ERASED_ASPECT[1], height / (width * area)))
    pixels = area * height * width
    tall = jnp.clip(jnp.round(jnp.sqrt(pixels * aspect)), 1, height)
    wide = jnp.clip(jnp.round(jnp.sqrt(pixels / aspect)), 1, width)
    place = jax.random.uniform(place_key, (2, count))
    top = jnp.floor(place[0] * (height - tall + 1))[:, None]
    left = jnp.floor(place[1] * (width - wide + 1))[:, None]
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= top) & (rows < top + tall[:, None])
    in_columns = (columns >= left) & (columns < left + wide[:, None])
    chosen = jax.random.uniform(whether, (count,)) < probability
    return in_rows[:, :, None] & in_columns[:, None, :] & chosen[:, None, None]


def preprocess(
    images: ArrayLike,
    *,
    image_size: int | None = None,
    center_crop: bool = False,
    mean: ArrayLike | tuple[float, ...] = 0,
    std: ArrayLike | tuple[float, ...] = 1,
) -> Float[Array, "n new_h new_w c"]:
    """Return the network's input: resized, scaled from [0, 255] to [0, 1], normalised.

    Args:
        images: uint8[N, H, W, C], or float32 in [0, 255] (augmented images).
        image_size: the new height and width in pixels, interpolated as Pillow and torchvision do
            but not rounded to whole grey levels. None keeps the size.
        center_crop: cut a square of ``image_size`` out of the middle instead of resizing; an
            ``image_size`` larger than the images raises `ResNetJaxError`.
        mean: subtracted from the pixels in [0, 1]: a number, or float[C], one for each channel.
        std: divides the difference: a number, or one for each channel.

    Returns:
        float32[N, image_size, image_size, C].

    Example:
        >>> pixels = jnp.full((1, 28, 28, 1), 255, jnp.uint8)
        >>> float(preprocess(pixels, image_size=32, mean=0.5, std=0.5).max())
        1.0
    """
    pixels = jnp.asarray(images, jnp.float32)
    count, height, width, channels = pixels.shape
    for size in {jnp.asarray(of).size for of in (mean, std)} - {1, channels}:  # broadcasts or fails
        raise ResNetJaxError(f"mean and std have {size} numbers for images of {channels} channels")
    if image_size is not None and center_crop:
        if image_size > (most := min(height, width)):
            raise ResNetJaxError(f"image_size must be at most {most} to crop, got {image_size}")
        top, left = (height - image_size) // 2, (width - image_size) // 2
        pixels = pixels[:, top : top + image_size, left : left + image_size]
    elif image_size is not None and (height, width) != (image_size, image_size):
        pixels = jax.image.resize(pixels, (count, image_size, image_size, channels), "bilinear")
    return (pixels / 255 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
