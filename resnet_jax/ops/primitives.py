"""Parts of the algorithms: shifts along one axis, their transpose, products, data dependencies."""

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.ops.geometry import Axis

ROWS, COLUMNS = 1, 2  # the spatial dimensions of NHWC


def pad(x: jax.Array, dim: int, low: int, high: int, value: float = 0.0) -> jax.Array:
    """`lax.pad` along one dimension."""
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
        return jnp.full(_resized(x, dim, axis.out), outside, x.dtype)
    start, stop = (o * axis.stride + tap - axis.low for o in (first, last))
    read = lax.slice_in_dim(x, start, stop + 1, axis.stride, dim)
    return pad(read, dim, first, axis.out - 1 - last, outside)


def im2col(x: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """Concatenate what each output position reads through all taps of one axis, in channels."""
    return jnp.concatenate([shift(x, dim, axis, tap) for tap in range(axis.kernel)], -1)


def col2im(taps: Sequence[jax.Array], dim: int, axis: Axis) -> jax.Array:
    """Add each tap's values to the positions that it read: the transpose of all taps' `shift`.

    Each residue of the position modulo the stride is a sum of shifted slices, and the residues are
    interleaved: nothing is scattered.
    """
    stride, phases = axis.stride, []
    length = -(-axis.size // stride)
    for phase in range(min(stride, axis.size)):
        total = None
        for tap, values in enumerate(taps):
            offset, rest = divmod(phase + axis.low - tap, stride)
            # Output u + offset reads position phase + stride * u through the tap, if any does.
            first, last = max(0, -offset), min(length, axis.out - offset)
            if rest or first >= last:
                continue
            part = lax.slice_in_dim(values, first + offset, last + offset, 1, dim)
            part = pad(part, dim, first, length - last)
            total = part if total is None else total + part
        if total is None:
            total = jnp.zeros_like(taps[0], shape=_resized(taps[0], dim, length))
        phases.append(total)
    x = phases[0]
    if len(phases) > 1:
        x = jnp.stack(phases, dim + 1).reshape(_resized(x, dim, len(phases) * length))
    return lax.slice_in_dim(x, 0, axis.size, 1, dim)


def _resized(x: jax.Array, dim: int, size: int) -> tuple[int, ...]:
    return (*x.shape[:dim], size, *x.shape[dim + 1 :])


def contract(a: jax.Array, b: jax.Array, of_a: tuple[int, ...], of_b: tuple[int, ...]) -> jax.Array:
    """Contract dimensions of `a` with those of `b`, in at least float32, to be added up later."""
    return lax.dot_general(a, b, ((of_a, of_b), ((), ())), preferred_element_type=sum_type(a.dtype))


def sum_type(dtype: jnp.dtype) -> jnp.dtype:
    """Return the type in which sums of `dtype` are kept: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def depends_on(x: jax.Array, event: jax.Array) -> jax.Array:
    """Return `x`, float[N, ...], with a data dependency of each example on its `event`.

    A gradient's shifted copies of its input are several times the input, and XLA would keep those
    of the forward pass: with the dependency they are made again. (XLA's CPU compiler drops
    `lax.optimization_barrier` early.) Nothing is above infinity: the values are those of `x`.
    """
    if 0 in event.shape[1:]:
        return x
    dims = range(1, event.ndim)
    first = reduce(lambda first, dim: lax.slice_in_dim(first, 0, 1, 1, dim), dims, event)
    return jnp.where(first > jnp.inf, jnp.zeros_like(x), x)
