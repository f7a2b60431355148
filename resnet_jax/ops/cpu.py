"""Convolution on a CPU as matrix products: several formulations and the rule that chooses.

XLA's own convolution on CPU is slow, and pathological on small maps; its matrix product is fast.
Every formulation here exists for the three faces of a convolution,

    forward      x, kernel -> y
    input_grad   grad, kernel -> gradient of x
    kernel_grad  x, grad -> gradient of kernel

and works on float[N, H, W, C], float[kh, kw, C, K] and float[N, OH, OW, K], whose static shape is a
:class:`Geometry` with the kernel already cut to the taps that touch the image. The batch may be
symbolic: nothing is decided by it.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax

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


def scatter(grad: jax.Array, dim: int, axis: Axis, tap: int) -> jax.Array:
    """The transpose of :func:`gather`: each output's value put where it was read."""
    first, count, start = _reach(axis, tap)
    if count == 0:
        return jnp.zeros((*grad.shape[:dim], axis.size, *grad.shape[dim + 1 :]), grad.dtype)
    stop = start + (count - 1) * axis.stride + 1
    read = lax.slice_in_dim(grad, first, first + count, 1, dim)
    return pad(read, dim, start, axis.size - stop, axis.stride - 1)


def _dot(
    a: jax.Array, b: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
    # Partial products are added outside, so half precision is kept wider until then.
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=wide)


# --- one product over patches --------------------------------------------------------------------


def _side_by_side(x: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """What each output position of one axis reads through all taps, along the channels."""
    return jnp.concatenate([gather(x, dim, axis, tap) for tap in range(axis.kernel)], -1)


def _patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """float[N, OH, OW, kw * kh * C]: what each output position reads."""
    return _side_by_side(_side_by_side(x, ROWS, geometry.rows), COLUMNS, geometry.columns)


def _forward_patches(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    kernel = kernel.swapaxes(0, 1).reshape(-1, kernel.shape[-1])
    return _dot(_patches(x, geometry), kernel, ((3,), (0,)))


def _kernel_grad_patches(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    (kh, kw), c, k = geometry.kernel, x.shape[-1], grad.shape[-1]
    out = _dot(_patches(x, geometry), grad, ((0, 1, 2), (0, 1, 2)))
    return out.reshape(kw, kh, c, k).swapaxes(0, 1)


def _input_grad_patches(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    kh, _, c, k = kernel.shape
    taps = _dot(grad, kernel.swapaxes(0, 1).reshape(-1, k), ((3,), (1,)))
    for dim, axis, width in ((COLUMNS, geometry.columns, kh * c), (ROWS, geometry.rows, c)):
        parts = [
            scatter(taps[..., tap * width :][..., :width], dim, axis, tap)
            for tap in range(axis.kernel)
        ]
        taps = reduce(jnp.add, parts)
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
    shifted = jnp.concatenate([scatter(grad, ROWS, geometry.rows, i) for i in range(kh)], -1)
    columns = _side_by_side(x, COLUMNS, geometry.columns)
    out = _dot(shifted, columns, ((0, 1, 2), (0, 1, 2)))
    return out.reshape(kh, k, kw, c).transpose(0, 2, 3, 1)


def _input_grad_columns(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return _forward_columns(grad, flipped, geometry.transposed())


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
        "dense": _forward_dense,
    },
    "input_grad": {
        "native": _input_grad_native,
        "patches": _input_grad_patches,
        "columns": _input_grad_columns,
        "dense": _input_grad_dense,
    },
    "kernel_grad": {
        "native": _kernel_grad_native,
        "patches": _kernel_grad_patches,
        "columns": _kernel_grad_columns,
        "dense": _kernel_grad_dense,
    },
}

# --- the rule ------------------------------------------------------------------------------------

# Milliseconds at batch 64 and 256, float32, 2 cores, on the shapes of ResNet-18 with a 32x32 input;
# experiments/cpu_speed/README.md has them all. Each line is asked in turn.


def choose(face: str, geometry: Geometry) -> str:
    """The formulation of one face of a convolution, from its static shape after trimming."""
    positions = geometry.size[0] * geometry.size[1] * geometry.out[0] * geometry.out[1]
    if geometry.kernel == (1, 1):
        return "patches"  # a strided slice and a product
    if positions <= 16:
        return "dense"
    if geometry.stride == (1, 1):
        return "columns"
    return "patches"


def fits(name: str, face: str, geometry: Geometry) -> bool:
    """Whether a formulation can compute a face: shifted columns transpose at stride 1 only."""
    return name != "columns" or face != "input_grad" or geometry.stride == (1, 1)
