"""The convolution as one dense matrix (doubly block Toeplitz at stride 1), for tiny maps.

With stride s and padding p, and zero where the kernel has no such tap,

    T[(h, w, c), (oh, ow, k)] = kernel[h - s oh + p, w - s ow + p, c, k]

    forward  Y = X T        input gradient  dX = dY T^T        weight gradient  dT = X^T dY

where X and Y have a row for each example. The kernel's gradient is the sum of the blocks of dT in
which each tap occurs. Where few taps fall on padding, few entries of T are zero.

Source: Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 9.1.
"""

from collections.abc import Iterator
from functools import reduce
from itertools import product

import jax
import jax.numpy as jnp

from resnet_jax.ops.geometry import Geometry
from resnet_jax.ops.primitives import contract

Position = tuple[int, int]


def _positions(shape: tuple[int, int]) -> Iterator[Position]:
    return product(range(shape[0]), range(shape[1]))


def _tap(geometry: Geometry, position: Position, output: Position) -> Position:
    """Return the tap that meets a position of the input at an output, inside the kernel or not."""
    rows, columns = geometry
    return (
        position[0] + rows.low - output[0] * rows.stride,
        position[1] + columns.low - output[1] * columns.stride,
    )


def _matrix(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return T as float[H * W * C, OH * OW * K]."""
    taps, zeros = set(_positions(geometry.kernel)), jnp.zeros(kernel.shape[2:], kernel.dtype)

    def blocks(position: Position) -> jax.Array:
        row = [_tap(geometry, position, output) for output in _positions(geometry.out)]
        return jnp.concatenate([kernel[tap] if tap in taps else zeros for tap in row], 1)

    return jnp.concatenate([blocks(position) for position in _positions(geometry.size)])


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    out = contract(x.reshape(x.shape[0], -1), _matrix(kernel, geometry), (1,), (0,))
    return out.reshape(x.shape[0], *geometry.out, kernel.shape[-1])


def input_grad(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    out = contract(grad.reshape(grad.shape[0], -1), _matrix(kernel, geometry), (1,), (1,))
    return out.reshape(grad.shape[0], *geometry.size, kernel.shape[2])


def weight_grad(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    c, k = x.shape[-1], grad.shape[-1]
    blocks = contract(x.reshape(x.shape[0], -1), grad.reshape(grad.shape[0], -1), (0,), (0,))
    blocks = blocks.reshape(*geometry.size, c, *geometry.out, k)

    def total(tap: Position) -> jax.Array:
        met = [
            blocks[(*position, slice(None), *output)]
            for output in _positions(geometry.out)
            for position in _positions(geometry.size)
            if _tap(geometry, position, output) == tap
        ]
        return reduce(jnp.add, met) if met else jnp.zeros((c, k), blocks.dtype)

    taps = [total(tap) for tap in _positions(geometry.kernel)]
    return jnp.stack(taps).reshape(*geometry.kernel, c, k)
