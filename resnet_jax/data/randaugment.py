"""RandAugment (arXiv 1909.13719), and the affine warp with which it moves images."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

# The list in section 3. Those before "rotate" change pixels in place, the others move them.
OPERATIONS = (
    "identity", "autocontrast", "equalize", "posterize", "solarize",
    "color", "contrast", "brightness", "sharpness",
    "rotate", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
# What magnitude 10 stands for: AutoAugment's ranges (arXiv 1805.09501, table 6).
GREATEST_MAGNITUDE = 10
DEGREES, SHEAR, TRANSLATION = 30.0, 0.3, 150 / 331  # the last as a share of the side
FACTOR, BITS = 0.9, 4  # color to sharpness by 1 ± 0.9; 4 of 8 bits dropped


def draw_operations(
    images: jax.Array, key: jax.Array, operations: int, magnitude: float, *, fill: float = 0.0
) -> jax.Array:
    """Return float32[N, H, W, C] images in [0, 255], each after ``operations`` random operations.

    The operations are Pillow's, except that shear is about the image's centre, not its corner. The
    last five go either way with equal probability, as do the factors of color, contrast, brightness
    and sharpness. A greater magnitude (0 to 10, the paper's M) changes more in most of them, as in
    torchvision, whose 9 of 30 is 3 here. Color needs three channels; it leaves a single one as is.
    """

    def layer(images: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        which_key, sign_key = jax.random.split(key)
        which = jax.random.randint(which_key, images.shape[:1], 0, len(OPERATIONS))
        signs = jax.random.rademacher(sign_key, images.shape[:1], jnp.float32)
        return apply(images, which, signs * (magnitude / GREATEST_MAGNITUDE), fill=fill), None

    return jax.lax.scan(layer, images, jax.random.split(key, operations))[0]


def apply(
    images: jax.Array, which: jax.Array, strength: jax.Array, *, fill: float = 0.0
) -> jax.Array:
    """Return each image after the operation ``OPERATIONS[which]``.

    ``strength`` is float32[N] from -1 to 1, a share of the greatest magnitude. Its sign is the
    direction, for the operations that have one.
    """
    # Every operation is computed for every image, and one is taken: a vectorised branch for each
    # image would compute all of them too.
    moved = warp(images, *_geometry(images.shape, which, strength), fill=fill)
    which, strength = (a[:, None, None, None] for a in (which, strength))
    amount, factor = jnp.abs(strength), 1 + FACTOR * strength
    grey, step = _grey(images), 2.0 ** jnp.round(BITS * amount)
    in_place = [
        images,
        _autocontrast(images),
        _equalize(images),
        jnp.where(step > 1, jnp.floor(jnp.round(images) / step) * step, images),
        jnp.where(images >= 256 * (1 - amount), 255 - images, images),
        _blend(grey, images, factor),
        _blend(grey.mean((1, 2, 3), keepdims=True), images, factor),
        _blend(jnp.zeros_like(images), images, factor),
        _blend(_smooth(images), images, factor),
    ]
    chosen = [which == k for k in range(len(in_place))]
    return jnp.select(chosen, in_place, moved)


def _geometry(
    shape: tuple[int, ...], which: jax.Array, strength: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return matrices and translations for `warp`: the identity unless the operation moves."""
    _, height, width, _ = shape
    of = {name: jnp.where(which == k, strength, 0.0) for k, name in enumerate(OPERATIONS)}
    angle = math.radians(DEGREES) * of["rotate"]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    inverse = jnp.asarray([[cos, -sin + SHEAR * of["shear_y"]], [sin + SHEAR * of["shear_x"], cos]])
    sides = TRANSLATION * jnp.asarray([height, width], jnp.float32)
    translation = sides * jnp.stack([of["translate_y"], of["translate_x"]], -1)
    return jnp.moveaxis(inverse, -1, 0), translation


def _grey(images: jax.Array) -> jax.Array:
    """Return the luminance (ITU-R 601) of three channels, otherwise the mean of the channels."""
    if images.shape[-1] != 3:
        return images.mean(-1, keepdims=True)
    return (images * jnp.asarray([0.299, 0.587, 0.114], images.dtype)).sum(-1, keepdims=True)


def _blend(start: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolate from ``start`` (factor 0) to ``images`` (factor 1), or extrapolate beyond."""
    return jnp.clip(start + factor * (images - start), 0, 255)


def _autocontrast(images: jax.Array) -> jax.Array:
    """Stretch each channel to [0, 255]."""
    low, high = (f(images, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    return jnp.where(high > low, (images - low) * (255 / jnp.maximum(high - low, 1e-3)), images)


def _equalize(images: jax.Array) -> jax.Array:
    """Flatten each channel's histogram by Pillow's formula in integers."""

    def channel(plane: jax.Array) -> jax.Array:
        levels = jnp.round(plane).astype(jnp.int32)
        counts = jnp.zeros(256, jnp.int32).at[levels].add(1)
        step = (levels.size - counts[levels.max()]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[levels].astype(plane.dtype), plane)

    return jax.vmap(jax.vmap(channel, in_axes=-1, out_axes=-1))(images)


def _smooth(images: jax.Array) -> jax.Array:
    """Apply Pillow's filter SMOOTH: neighbours weigh 1, the centre 5; the image's rim stays."""
    zero = jnp.zeros((), images.dtype)
    around = jax.lax.reduce_window(images, zero, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
    inside = images[:, 1:-1, 1:-1]
    return images.at[:, 1:-1, 1:-1].set((around + 4 * inside) / 13)


def warp(
    images: Float[Array, "n h w c"],
    inverse: Float[Array, "n 2 2"],
    translation: Float[Array, "n 2"],
    moves: Float[Array, "n 2 h w"] | None = None,
    *,
    fill: float = 0.0,
) -> Float[Array, "n h w c"]:
    """Resample bilinearly: ``output[p] = image[inverse @ p + translation + moves[p]]``.

    Points are (row, column) from the image's centre, in pixels; what lies outside the image is
    ``fill``.
    """
    _, height, width, _ = images.shape
    centre = jnp.asarray([(height - 1) / 2, (width - 1) / 2], jnp.float32)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - centre[0]
    columns = jnp.arange(width, dtype=jnp.float32)[None, :] - centre[1]

    def warp_one(
        image: jax.Array, matrix: jax.Array, offset: jax.Array, move: jax.Array | None
    ) -> jax.Array:
        # Written out rather than as a matrix product: exact in float32 on every platform.
        source = [matrix[i, 0] * rows + matrix[i, 1] * columns + offset[i] for i in (0, 1)]
        at = [source[i] + centre[i] for i in (0, 1)]
        at = at if move is None else [at[i] + move[i] for i in (0, 1)]
        sample = partial(map_coordinates, coordinates=at, order=1, mode="constant", cval=fill)
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(warp_one)(images, inverse, translation, moves)
