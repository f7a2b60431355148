"""Parts of the algorithms: shifts along one axis, products, data dependencies."""

from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.ops.geometry import Axis

ROWS, COLUMNS = 1, 2  # the spatial dimensions of NHWC


def pad(x: jax.Array, dim: int, low: int, high: int, value: float = 0.0) -> jax.Array:
    """Pad one dimension as `lax.pad` does."""
    if low == high == 0:
        return x
    config = [(0, 0, 0)] * x.ndim
    config[dim] = (low, high, 0)
    return lax.pad(x, jnp.array(value, x.dtype), config)


def shift(x: jax.Array, dim: int, axis: Axis, tap: int, outside: float = 0.0) -> jax.Array:
    """Return what each output position reads through one tap, `outside` where that is padding."""
    # The first and last outputs whose input lies inside the image.
    first = max(0, -((tap - axis.low) // axis.stride))
    last = min(axis.out - 1, (axis.size - 1 + axis.low - tap) // axis.stride)
    if last < first:
        shape = (*x.shape[:dim], axis.out, *x.shape[dim + 1 :])
        return jnp.full(shape, outside, x.dtype)
    start, stop = (o * axis.stride + tap - axis.low for o in (first, last))
    read = lax.slice_in_dim(x, start, stop + 1, axis.stride, dim)
    return pad(read, dim, first, axis.out - 1 - last, outside)


def taps(x: jax.Array, dim: int, axis: Axis, outside: float = 0.0) -> list[jax.Array]:
    """Return what each output position reads through each tap of one axis."""
    return [shift(x, dim, axis, tap, outside) for tap in range(axis.kernel)]


def contract(a: jax.Array, b: jax.Array, of_a: tuple[int, ...], of_b: tuple[int, ...]) -> jax.Array:
    """Contract dimensions of `a` and `b`; the result is at least float32, to be summed further."""
    return lax.dot_general(a, b, ((of_a, of_b), ((), ())), preferred_element_type=sum_type(a.dtype))


def sum_type(dtype: jnp.dtype) -> jnp.dtype:
    """Return the type in which sums of `dtype` are kept: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def depends_on(x: jax.Array, event: jax.Array) -> jax.Array:
    """Return `x`, float[N, ...], with a data dependency of each example on its `event`.

    A gradient's shifted copies of its input are several times as large as the input, and XLA would
    keep those of the forward pass; the dependency has them made again. (XLA's CPU compiler drops
    `lax.optimization_barrier` early.) Nothing is above infinity, so the values are those of `x`.
    """
    if 0 in event.shape[1:]:
        return x
    dims = range(1, event.ndim)
    first = reduce(lambda first, dim: lax.slice_in_dim(first, 0, 1, 1, dim), dims, event)
    return jnp.where(first > jnp.inf, jnp.zeros_like(x), x)
