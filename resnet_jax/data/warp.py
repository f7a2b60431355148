"""An affine map of each image: what augmentation turns, shears and moves by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def warp(
    images: jax.Array, inverse: jax.Array, translation: jax.Array, *, fill: float = 0.0
) -> jax.Array:
    """Resample each image bilinearly: ``output[p] = image[inverse @ p + translation]``.

    Points are (row, column) measured from the image's centre, in pixels. What lies outside the
    image is ``fill``. ``inverse`` is float32[N, 2, 2], from output points back to input points,
    ``translation`` float32[N, 2].
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
