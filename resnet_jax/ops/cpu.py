"""Convolution on a CPU as matrix products: several formulations, of which ``rule.py`` chooses.

XLA's own convolution on CPU is slow, and pathological on small maps; its matrix product is fast.
Every formulation here exists for the three faces of a convolution,

    forward      x, kernel -> y
    input_grad   grad, kernel -> gradient of x
    kernel_grad  x, grad -> gradient of kernel

and works on float[N, H, W, C], float[kh, kw, C, K] and float[N, OH, OW, K], whose static shape is a
:class:`Geometry` with the kernel already cut to the taps that touch the image. The batch may be
symbolic.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.ops import rule
from resnet_jax.ops.geometry import Axis, Geometry

ROWS, COLUMNS = 1, 2  # the spatial dimensions of NHWC


# --- shifts: what one tap reads, and where its gradient goes -------------------------------------


def _reach(axis: Axis, tap: int) -> tuple[int, int, int]:
    """First output and number of outputs that read the image through a tap, and the first input."""
    first = max(0, -((tap - axis.low) // axis.stride))
    last = min(axis.out - 1, (axis.size - 1 + axis.low - tap) // axis.stride)
    return first, max(0, last - first + 1), first * axis.stride + tap - axis.low


def pad(
    x: jax.Array, dim: int, low: int, high: int, interior: int = 0, value: float = 0.0
) -> jax.Array:
    """``lax.pad`` along one dimension."""
    if low == high == interior == 0:
        return x
    config = [(0, 0, 0)] * x.ndim
    config[dim] = (low, high, interior)
    return lax.pad(x, jnp.array(value, x.dtype), config)


def gather(x: jax.Array, dim: int, axis: Axis, tap: int, outside: float = 0.0) -> jax.Array:
    """What each output position of one axis reads through one tap."""
    first, count, start = _reach(axis, tap)
    if count == 0:
        return jnp.full((*x.shape[:dim], axis.out, *x.shape[dim + 1 :]), outside, x.dtype)
    stop = start + (count - 1) * axis.stride + 1
    read = lax.slice_in_dim(x, start, stop, axis.stride, dim)
    return pad(read, dim, first, axis.out - first - count, value=outside)


def spread(grads: list[jax.Array], dim: int, axis: Axis) -> jax.Array:
    """The transpose of :func:`gather` over all taps: each tap's values added where it read.

    Done for each residue of the position modulo the stride, which are then interleaved: additions
    of shifted slices, with no scattering.
    """
    stride, phases = axis.stride, []
    length = -(-axis.size // stride)
    for phase in range(min(stride, axis.size)):
        total = None
        for tap, grad in enumerate(grads):
            shift, rest = divmod(phase + axis.low - tap, stride)
            if rest:
                continue  # this tap never reads this residue
            # Position phase + stride * u is read through the tap by output u + shift.
            first, last = max(0, -shift), min(length, axis.out - shift)
            if first >= last:
                continue
            part = lax.slice_in_dim(grad, first + shift, last + shift, 1, dim)
            part = pad(part, dim, first, length - last)
            total = part if total is None else total + part
        if total is None:
            total = jnp.zeros_like(grads[0], shape=_with(grads[0].shape, dim, length))
        phases.append(total)
    return interleave(phases, dim, axis.size)


def interleave(phases: list[jax.Array], dim: int, size: int) -> jax.Array:
    """One element of each in turn, along one dimension, cut to ``size``."""
    if len(phases) == 1:
        return lax.slice_in_dim(phases[0], 0, size, 1, dim)
    stacked = jnp.stack(phases, dim + 1)
    shape = _with(phases[0].shape, dim, len(phases) * phases[0].shape[dim])
    return lax.slice_in_dim(stacked.reshape(shape), 0, size, 1, dim)


def _with(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _dot(
    a: jax.Array, b: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
    # Partial products are added outside, so half precision is kept wider until then.
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=wide)


# --- order ---------------------------------------------------------------------------------------


def after(x: jax.Array, event: jax.Array) -> jax.Array:
    """float[N, ...] ``x``, with which nothing is computed before float[N, ...] ``event`` is there.

    The shifted copies that a gradient makes of its input, several times the input, need nothing
    else, and the way forward may make the same: XLA makes them there, once, and keeps them until
    the way back. Here they wait, and are made again. ``lax.optimization_barrier`` does not hinder
    it, since XLA has removed those by the time it merges and orders.

    Nothing is above infinity and NaN compares as false, so that the values are ``x``'s own, to the
    bit; XLA does not see it (``tests/ops`` would). Each example waits for its own event: a batch
    split over devices needs nothing from another one.
    """
    if 0 in event.shape[1:]:
        return x
    dims = range(1, event.ndim)
    first = reduce(lambda first, dim: lax.slice_in_dim(first, 0, 1, 1, dim), dims, event)
    return jnp.where(first > jnp.inf, jnp.zeros_like(x), x)


# --- one product over patches --------------------------------------------------------------------


def _side_by_side(x: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """What each output position of one axis reads through all taps, along the channels."""
    return jnp.concatenate([gather(x, dim, axis, tap) for tap in range(axis.kernel)], -1)


def _patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """float[N, OH, OW, kh * kw * C]: what each output position reads, in the kernel's order."""
    return _side_by_side(_side_by_side(x, COLUMNS, geometry.columns), ROWS, geometry.rows)


def _forward_patches(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return _dot(_patches(x, geometry), kernel.reshape(-1, kernel.shape[-1]), ((3,), (0,)))


def _kernel_grad_patches(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    # Patches of a 1x1 kernel are no more than the input, and those of an image of few colours are
    # slower to make again (a twentieth of a step at 224x224) than they are large.
    if geometry.kernel != (1, 1) and x.shape[-1] > rule.COLOURS:
        x = after(x, grad)
    out = _dot(_patches(x, geometry), grad, ((0, 1, 2), (0, 1, 2)))
    return out.reshape(*geometry.kernel, x.shape[-1], grad.shape[-1])


def _input_grad_patches(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    _, kw, c, k = kernel.shape
    taps = _dot(grad, kernel.reshape(-1, k), ((3,), (1,)))
    for dim, axis, width in ((ROWS, geometry.rows, kw * c), (COLUMNS, geometry.columns, c)):
        parts = [taps[..., tap * width :][..., :width] for tap in range(axis.kernel)]
        taps = spread(parts, dim, axis)
    return taps


# --- column shifts side by side, one product, row shifts added -----------------------------------


def _forward_columns(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    kh, kw, c, k = kernel.shape
    wide = kernel.transpose(1, 2, 0, 3).reshape(kw * c, kh * k)
    taps = _dot(_side_by_side(x, COLUMNS, geometry.columns), wide, ((3,), (0,)))
    rows = [gather(taps[..., i * k :][..., :k], ROWS, geometry.rows, i) for i in range(kh)]
    return reduce(jnp.add, rows)


def _kernel_grad_columns(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    (kh, kw), c, k = geometry.kernel, x.shape[-1], grad.shape[-1]
    back = geometry.rows.transposed()
    shifted = jnp.concatenate([gather(grad, ROWS, back, kh - 1 - i) for i in range(kh)], -1)
    columns = _side_by_side(after(x, grad), COLUMNS, geometry.columns)
    out = _dot(shifted, columns, ((0, 1, 2), (0, 1, 2)))
    return out.reshape(kh, k, kw, c).transpose(0, 2, 3, 1)


def _input_grad_columns(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return _forward_columns(grad, flipped, geometry.transposed())


# --- fewer multiplications: minimal filtering over tiles of two outputs ---------------------------


class _Tiles(NamedTuple):
    """Two outputs of a three-tap convolution from a minimum of products (arXiv 1509.09308).

    ``y = outputs.T @ ((kernel @ k) * (inputs @ x))`` for the inputs ``x`` of one tile and the taps
    ``k``. The transposed matrices give the gradients.
    """

    inputs: tuple[tuple[float, ...], ...]  # [products, inputs of a tile]
    kernel: tuple[tuple[float, ...], ...]  # [products, 3]
    outputs: tuple[tuple[float, ...], ...]  # [products, 2]


# F(2, 3) of section 4.1: four products where six are plain.
_TILE_OF_FOUR = _Tiles(
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    outputs=((1, 0), (1, 1), (1, -1), (0, -1)),
)
# A row of two pixels between zeros: y0 = k1 x0 + k2 x1, y1 = k0 x0 + k1 x1. Three products (as
# Karatsuba's) where four are plain.
_ROW_OF_TWO = _Tiles(
    inputs=((0, 1), (1, 1), (1, 0)),
    kernel=((0, -1, 1), (0, 1, 0), (1, -1, 0)),
    outputs=((1, 0), (1, 1), (0, 1)),
)


def _tiles(axis: Axis) -> tuple[_Tiles, Axis, Axis]:
    """The algorithm for one axis, how its tiles read the input and how they read the output."""
    count = -(-axis.out // 2)
    outputs = Axis(axis.out, 2, 2, 0, 2 * count - axis.out)
    if (axis.size, axis.low, axis.high) == (2, 1, 1):
        return _ROW_OF_TWO, Axis(2, 2, 2, 0, 0), outputs
    return (
        _TILE_OF_FOUR,
        Axis(axis.size, 4, 2, axis.low, 2 * count + 2 - axis.low - axis.size),
        outputs,
    )


def _combine(matrix: Iterable[Sequence[float]], terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Sums of terms with the coefficients of each row, which are 0, 1, -1, 0.5 or -0.5."""

    def row(coefficients: Sequence[float]) -> jax.Array:
        total = None
        for coefficient, term in zip(coefficients, terms, strict=True):
            if coefficient == 0:
                continue
            if abs(coefficient) != 1:
                term = term * jnp.asarray(abs(coefficient), term.dtype)
            if total is None:
                total = term if coefficient > 0 else -term
            else:
                total = total + term if coefficient > 0 else total - term
        assert total is not None
        return total

    return [row(coefficients) for coefficients in matrix]


Grid = list[list[jax.Array]]  # one array for each product of the rows' and the columns' algorithm


def _tile_inputs(x: jax.Array, geometry: Geometry) -> Grid:
    (by_row, rows, _), (by_column, columns, _) = map(_tiles, (geometry.rows, geometry.columns))
    return [
        _combine(by_column.inputs, [gather(r, COLUMNS, columns, j) for j in range(columns.kernel)])
        for r in _combine(by_row.inputs, [gather(x, ROWS, rows, i) for i in range(rows.kernel)])
    ]


def _tile_outputs(grad: jax.Array, geometry: Geometry) -> Grid:
    (by_row, _, rows), (by_column, _, columns) = map(_tiles, (geometry.rows, geometry.columns))
    return [
        _combine(by_column.outputs, [gather(r, COLUMNS, columns, j) for j in range(2)])
        for r in _combine(by_row.outputs, [gather(grad, ROWS, rows, i) for i in range(2)])
    ]


def _tile_kernel(kernel: jax.Array, geometry: Geometry) -> Grid:
    (by_row, _, _), (by_column, _, _) = map(_tiles, (geometry.rows, geometry.columns))
    return [_combine(by_column.kernel, list(row)) for row in _combine(by_row.kernel, list(kernel))]


def _forward_tiles(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    (by_row, _, _), (by_column, _, _) = map(_tiles, (geometry.rows, geometry.columns))
    products = [
        [_dot(v, u, ((3,), (0,))) for v, u in zip(*both, strict=True)]
        for both in zip(_tile_inputs(x, geometry), _tile_kernel(kernel, geometry), strict=True)
    ]
    rows = [
        interleave(_combine(zip(*by_column.outputs, strict=True), row), COLUMNS, geometry.out[1])
        for row in products
    ]
    return interleave(_combine(zip(*by_row.outputs, strict=True), rows), ROWS, geometry.out[0])


def _input_grad_tiles(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    (by_row, rows, _), (by_column, columns, _) = map(_tiles, (geometry.rows, geometry.columns))
    products = [
        [_dot(m, u, ((3,), (1,))) for m, u in zip(*both, strict=True)]
        for both in zip(_tile_outputs(grad, geometry), _tile_kernel(kernel, geometry), strict=True)
    ]
    parts = [
        spread(_combine(zip(*by_column.inputs, strict=True), row), COLUMNS, columns)
        for row in products
    ]
    return spread(_combine(zip(*by_row.inputs, strict=True), parts), ROWS, rows)


def _kernel_grad_tiles(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    (by_row, _, _), (by_column, _, _) = map(_tiles, (geometry.rows, geometry.columns))
    inputs = _tile_inputs(after(x, grad), geometry)
    rows = [
        [_dot(v, m, ((0, 1, 2), (0, 1, 2))) for v, m in zip(*both, strict=True)]
        for both in zip(inputs, _tile_outputs(grad, geometry), strict=True)
    ]
    taps = [jnp.stack(_combine(zip(*by_column.kernel, strict=True), row)) for row in rows]
    return jnp.stack(_combine(zip(*by_row.kernel, strict=True), taps))


# --- one dense product over all positions of a tiny map ------------------------------------------


def _dense_kernel(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """float[H * W * C, OH * OW * K]: the convolution's matrix, where no border is left out."""
    rows, columns = geometry.rows, geometry.columns
    zeros = jnp.zeros(kernel.shape[2:], kernel.dtype)

    def tap(h: int, w: int, oh: int, ow: int) -> jax.Array:
        i = h + rows.low - oh * rows.stride
        j = w + columns.low - ow * columns.stride
        return kernel[i, j] if 0 <= i < rows.kernel and 0 <= j < columns.kernel else zeros

    outputs = [(oh, ow) for oh in range(rows.out) for ow in range(columns.out)]
    return jnp.concatenate(
        [
            jnp.concatenate([tap(h, w, oh, ow) for oh, ow in outputs], 1)
            for h in range(rows.size)
            for w in range(columns.size)
        ]
    )


def _forward_dense(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    out = _dot(x.reshape(x.shape[0], -1), _dense_kernel(kernel, geometry), ((1,), (0,)))
    return out.reshape(x.shape[0], *geometry.out, kernel.shape[-1])


def _input_grad_dense(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    out = _dot(grad.reshape(grad.shape[0], -1), _dense_kernel(kernel, geometry), ((1,), (1,)))
    return out.reshape(grad.shape[0], *geometry.size, kernel.shape[2])


def _kernel_grad_dense(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    rows, columns, c, k = geometry.rows, geometry.columns, x.shape[-1], grad.shape[-1]
    dense = _dot(x.reshape(x.shape[0], -1), grad.reshape(grad.shape[0], -1), ((0,), (0,)))
    dense = dense.reshape(*geometry.size, c, *geometry.out, k)

    def tap(i: int, j: int) -> jax.Array:
        met = [
            dense[oh * rows.stride + i - rows.low, ow * columns.stride + j - columns.low, :, oh, ow]
            for oh in range(rows.out)
            for ow in range(columns.out)
            if 0 <= oh * rows.stride + i - rows.low < rows.size
            and 0 <= ow * columns.stride + j - columns.low < columns.size
        ]
        return reduce(jnp.add, met) if met else jnp.zeros((c, k), dense.dtype)

    taps = [tap(i, j) for i in range(rows.kernel) for j in range(columns.kernel)]
    return jnp.stack(taps).reshape(*geometry.kernel, c, k)


# --- XLA's own -----------------------------------------------------------------------------------


def _forward_native(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """``lax.conv_general_dilated``."""
    return lax.conv_general_dilated(
        x, kernel, geometry.stride, geometry.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _input_grad_native(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The transpose of ``lax.conv_general_dilated`` with respect to its input."""
    x = jax.ShapeDtypeStruct((grad.shape[0], *geometry.size, kernel.shape[2]), grad.dtype)
    return jax.linear_transpose(lambda x: _forward_native(x, kernel, geometry), x)(grad)[0]


def _kernel_grad_native(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    """The transpose of ``lax.conv_general_dilated`` with respect to its kernel."""
    shape = (*geometry.kernel, x.shape[-1], grad.shape[-1])
    kernel = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda kernel: _forward_native(x, kernel, geometry), kernel)(grad)[
        0
    ]


FORMULATIONS: dict[str, dict[str, Callable[[jax.Array, jax.Array, Geometry], jax.Array]]] = {
    "forward": {
        "native": _forward_native,
        "patches": _forward_patches,
        "columns": _forward_columns,
        "tiles": _forward_tiles,
        "dense": _forward_dense,
    },
    "input_grad": {
        "native": _input_grad_native,
        "patches": _input_grad_patches,
        "columns": _input_grad_columns,
        "tiles": _input_grad_tiles,
        "dense": _input_grad_dense,
    },
    "kernel_grad": {
        "native": _kernel_grad_native,
        "patches": _kernel_grad_patches,
        "columns": _kernel_grad_columns,
        "tiles": _kernel_grad_tiles,
        "dense": _kernel_grad_dense,
    },
}
