"""Augmentation and preprocessing on the device: pure functions to call inside a jitted step."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

# Random erasing's ranges, after arXiv 1708.04896, section 4 (s_l, s_h, r_1).
ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT = (0.3, 1 / 0.3)


def augment(
    images: jax.Array,
    key: jax.Array,
    *,
    shift: float = 0.0,
    rotation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    erase: float = 0.0,
    fill: float = 0.0,
) -> jax.Array:
    """Returns the images, each moved, turned, scaled, sheared and partly erased at random.

    The four geometric settings make one affine map about the image's centre, sampled once with
    bilinear interpolation. Each is drawn uniformly for each image, from [-a, a]. A setting of 0
    costs nothing: settings are Python numbers, and what they do not ask for is not traced.

    Args:
        images: float32[N, H, W, C].
        key: a key of ``jax.random``; the same key gives the same result.
        shift: the largest shift along each axis, in pixels.
        rotation: the largest turn, in degrees.
        scale: the largest change of size, a fraction: 0.1 draws a factor from [0.9, 1.1].
        shear: the largest shear angle, in degrees.
        erase: the probability that a rectangle of an image is erased: 2 to 33 % of its area,
            height to width 0.3 to 3.3 (arXiv 1708.04896), filled with the background rather
            than the paper's noise.
        fill: the background, in the images' own units.

    Returns:
        float32[N, H, W, C].

    Example:
        >>> images = jnp.zeros((8, 28, 28, 1))
        >>> augment(images, jax.random.key(0), shift=2, rotation=10, erase=0.1).shape
        (8, 28, 28, 1)
    """
    if shift or rotation or scale or shear:
        inverse, translation = _draw_affine(images.shape[0], key, shift, rotation, scale, shear)
        images = warp(images, inverse, translation, fill=fill)
    if erase:
        mask = _draw_erased(images.shape[:3], jax.random.fold_in(key, 1), erase)
        images = jnp.where(mask[..., None], jnp.asarray(fill, images.dtype), images)
    return images


def warp(
    images: jax.Array, inverse: jax.Array, translation: jax.Array, *, fill: float = 0.0
) -> jax.Array:
    """Resamples each image: ``output[p] = image[inverse @ p + translation]``, bilinearly.

    Points are (row, column) measured from the image's centre, in pixels. What lies outside the
    image is ``fill``.

    Args:
        images: float32[N, H, W, C].
        inverse: float32[N, 2, 2], the map from output points back to input points.
        translation: float32[N, 2].
        fill: the background.

    Returns:
        float32[N, H, W, C].
    """
    _, height, width, _ = images.shape
    centre = jnp.asarray([(height - 1) / 2, (width - 1) / 2], jnp.float32)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - centre[0]
    columns = jnp.arange(width, dtype=jnp.float32)[None, :] - centre[1]

    def warp_one(image: jax.Array, matrix: jax.Array, offset: jax.Array) -> jax.Array:
        # Written out rather than as a matrix product: exact in float32 on every platform.
        source = [matrix[i, 0] * rows + matrix[i, 1] * columns + offset[i] for i in (0, 1)]
        coordinates = [source[i] + centre[i] for i in (0, 1)]

        def channel(plane: jax.Array) -> jax.Array:
            return map_coordinates(plane, coordinates, order=1, mode="constant", cval=fill)

        return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(warp_one)(images, inverse, translation)


def _draw_affine(
    count: int, key: jax.Array, shift: float, rotation: float, scale: float, shear: float
) -> tuple[jax.Array, jax.Array]:
    """Draws ``count`` maps from output points to input points: float32[N, 2, 2], float32[N, 2]."""
    # All numbers are drawn, whatever the settings: one setting changed leaves the others' draws.
    draws = jax.random.uniform(key, (5, count), jnp.float32, -1.0, 1.0)
    angle = math.radians(rotation) * draws[0]
    factor = 1.0 + scale * draws[1]
    slant = jnp.tan(math.radians(shear) * draws[2])
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotate = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
    one, zero = jnp.ones_like(slant), jnp.zeros_like(slant)
    slope = jnp.stack([jnp.stack([one, zero], -1), jnp.stack([slant, one], -1)], -2)
    inverse = jnp.einsum("nij,njk->nik", rotate, slope, precision="highest")
    return inverse / factor[:, None, None], shift * draws[3:].T


def _draw_erased(shape: tuple[int, ...], key: jax.Array, probability: float) -> jax.Array:
    """Draws the pixels to erase: bool[N, H, W], one rectangle or none for each image."""
    count, height, width = shape
    whether, area_key, aspect_key, place_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (count,), minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    # The paper draws again until the rectangle fits. Here the aspect's range is cut to what fits
    # the image, which is the same for a given area. Its logarithm is uniform, so that tall and
    # wide are equally likely.
    low = jnp.maximum(ERASED_ASPECT[0], area * height / width)
    high = jnp.minimum(ERASED_ASPECT[1], height / (width * area))
    draw = jax.random.uniform(aspect_key, (count,))
    aspect = jnp.exp(jnp.log(low) + draw * (jnp.log(high) - jnp.log(low)))
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
    images: ArrayLike, *, image_size: int | None = None, mean: ArrayLike = 0, std: ArrayLike = 1
) -> jax.Array:
    """Returns the network's input: resized, scaled from [0, 255] to [0, 1], normalised.

    Args:
        images: uint8[N, H, W, C], or float32 in [0, 255] (augmented images).
        image_size: the new height and width in pixels, by bilinear interpolation between pixel
            centres (as Pillow and torchvision, which round the result to whole grey levels; like
            theirs, it is low-passed when the image shrinks). None keeps the size.
        mean: subtracted from the pixels in [0, 1]: a number, or float[C], one for each channel.
        std: divides what is left: likewise.

    Returns:
        float32[N, image_size, image_size, C].

    Example:
        >>> pixels = jnp.full((1, 28, 28, 1), 255, jnp.uint8)
        >>> float(preprocess(pixels, image_size=32, mean=0.5, std=0.5).max())
        1.0
    """
    pixels = jnp.asarray(images, jnp.float32)
    count, height, width, channels = pixels.shape
    if image_size is not None and (height, width) != (image_size, image_size):
        pixels = jax.image.resize(pixels, (count, image_size, image_size, channels), "bilinear")
    return (pixels / 255 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
