"""Winograd's minimal filtering F(m x m, 3x3), for 3x3 kernels at stride 1.

The product of polynomials with m and with 3 coefficients is determined by its values at m + 1
points and at infinity (Toom and Cook), with one multiplication each. The transpose of that product
filters a tile d of m + 2 inputs with 3 taps g into m outputs y:

    y = A^T [(G g) * (B^T d)]

where A and G evaluate at the points and B interpolates. Along rows and columns, m x m outputs take
(m + 2)^2 products instead of 9 m^2: 16 instead of 36 with m = 2, 36 instead of 144 with m = 4. Each
is one matrix product over channels, for all tiles at once. The gradients are

    input gradient   the forward pass of dy with the flipped kernel
    weight gradient  dg = G^T [(B^T d) * (A dy)]

Source: Lavin and Gray, arXiv 1509.09308, section 4.1; for the points Barabasz, Anderson, Soodhalter
and Gregg, arXiv 1803.10986.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnet_jax.ops.geometry import Axis, Geometry
from resnet_jax.ops.primitives import COLUMNS, ROWS, depends_on, pad, sum_type, taps


class Filtering(NamedTuple):
    """The matrices of F(m, 3) for the input, the kernel and the output; it takes n products."""

    bt: np.ndarray  # B^T [n, m + 2]
    g: np.ndarray  # G [n, 3]
    a: np.ndarray  # A [n, m]


def toom_cook(points: Sequence[Fraction], outputs: int) -> Filtering:
    """Return the filtering that evaluates at `outputs + 1` points and at infinity."""
    others = [[q for q in points if q != p] for p in points]
    # Coefficients, lowest first, of the polynomials that vanish at all points but one, then at all.
    zeros = [reduce(np.convolve, [np.array([-q, 1]) for q in roots]) for roots in [*others, points]]
    bt = [[*row, *[0] * (len(points) + 1 - len(row))] for row in zeros]
    values = [prod(p - q for q in roots) for p, roots in zip(points, others, strict=True)]
    g = [[p**k / value for k in range(3)] for p, value in zip(points, values, strict=True)]
    a = [[p**k for k in range(outputs)] for p in points]
    last = [0] * (outputs - 1)
    return Filtering(
        *(np.array(matrix, float) for matrix in (bt, [*g, [0, 0, 1]], [*a, [*last, 1]]))
    )


TWO = toom_cook([Fraction(p) for p in (0, 1, -1)], 2)
# Of the points tried, these have the smallest error in float32: three times the error of `TWO`.
FOUR = toom_cook([Fraction(p) for p in ("0", "2/3", "-2/3", "3/2", "-3/2")], 4)
# Two pixels between zeros, y0 = g1 d0 + g2 d1 and y1 = g0 d0 + g1 d1, take three products instead
# of four, as in Karatsuba's algorithm.
TWO_ALONE = Filtering(
    np.array([(0, 1), (1, 1), (1, 0)]),
    np.array([(0, -1, 1), (0, 1, 0), (1, -1, 0)]),
    np.array([(1, 0), (1, 1), (0, 1)]),
)


def _tiling(axis: Axis, outputs: int) -> tuple[Filtering, Axis, Axis]:
    """Return a filtering for one axis, and how its tiles lie on the input and on the output."""
    if (axis.size, axis.low, axis.high) == (2, 1, 1):
        return TWO_ALONE, Axis(2, 2, 2, 0, 0), Axis(2, 2, 2, 0, 0)
    filtering = FOUR if outputs == 4 else TWO
    count = -(-axis.out // outputs)
    high = outputs * count + 2 - axis.low - axis.size
    inputs = Axis(axis.size, outputs + 2, outputs, axis.low, high)
    return filtering, inputs, Axis(axis.out, outputs, outputs, 0, outputs * count - axis.out)


def _apply(matrix: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Multiply a matrix by a vector of arrays, without the products by 0, 1 and -1."""

    def row(coefficients: np.ndarray) -> jax.Array:
        total: Any = None
        for coefficient, term in zip(coefficients, terms, strict=True):
            if coefficient == 0:
                continue
            if abs(coefficient) != 1:
                term = term * jnp.asarray(abs(coefficient), term.dtype)
            if total is None:
                total = term if coefficient > 0 else -term
            else:
                total = total + term if coefficient > 0 else total - term
        return total

    return [row(coefficients) for coefficients in matrix]


def _tiles(x: jax.Array, dim: int, axis: Axis) -> list[jax.Array]:
    """Return, for each position within a tile, what all tiles read there."""
    x = pad(x, dim, axis.low, axis.high)  # once, not for each of the positions
    return taps(x, dim, Axis(x.shape[dim], axis.kernel, axis.stride, 0, 0))


def _transform(
    x: jax.Array, rows: tuple[np.ndarray, Axis], columns: tuple[np.ndarray, Axis]
) -> list[jax.Array]:
    """Return, for each product along columns, float[products along rows, tiles, C]."""
    # In bfloat16 the sums of the transform would be rounded, which triples the error.
    x = x.astype(sum_type(x.dtype))
    # Rows are stacked, columns are not: few kernels to compile, and products to run in parallel.
    x = jnp.stack(_apply(rows[0], _tiles(x, ROWS, rows[1])))
    parts = _apply(columns[0], _tiles(x, COLUMNS + 1, columns[1]))
    return [part.reshape(len(part), -1, part.shape[-1]) for part in parts]


def _correlate(x: jax.Array, kernel: jax.Array, geometry: Geometry, dim: int, m: int) -> jax.Array:
    """Return the forward pass, contracted over dimension `dim` of the kernel."""
    (rows, r_in, r_out), (columns, c_in, c_out) = (_tiling(axis, m) for axis in geometry)
    inputs = _transform(x, (rows.bt, r_in), (columns.bt, c_in))
    kernel = kernel.astype(sum_type(kernel.dtype))
    kernel = jnp.stack(_apply(rows.g, list(kernel)))
    kernels = _apply(columns.g, [kernel[:, tap] for tap in range(3)])
    products = [
        lax.dot_general(u, v, (((2,), (dim - 1,)), ((0,), (0,))))
        for u, v in zip(inputs, kernels, strict=True)
    ]
    tiles = r_out.out, c_out.out
    products = [p.reshape(len(p), x.shape[0], *tiles, p.shape[-1]) for p in products]
    # [products along rows, N, tiles, tiles, outputs, K]
    y = jnp.stack(_apply(columns.a.T, products), 4)
    y = y.reshape(*y.shape[:3], -1, y.shape[-1])
    y = jnp.stack(_apply(rows.a.T, list(y)), 2)
    y = y.reshape(y.shape[0], -1, *y.shape[3:])
    return y[:, : geometry.out[0], : geometry.out[1]]


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry, m: int) -> jax.Array:
    return _correlate(x, kernel, geometry, 2, m)


def input_grad(grad: jax.Array, kernel: jax.Array, geometry: Geometry, m: int) -> jax.Array:
    return _correlate(grad, kernel[::-1, ::-1], geometry.transposed(), 3, m)


def weight_grad(x: jax.Array, grad: jax.Array, geometry: Geometry, m: int) -> jax.Array:
    (rows, r_in, r_out), (columns, c_in, c_out) = (_tiling(axis, m) for axis in geometry)
    inputs = _transform(depends_on(x, grad), (rows.bt, r_in), (columns.bt, c_in))
    outputs = _transform(grad, (rows.a, r_out), (columns.a, c_out))
    products = [
        lax.dot_general(u, v, (((1,), (1,)), ((0,), (0,))))
        for u, v in zip(inputs, outputs, strict=True)
    ]
    out = jnp.stack(_apply(columns.g.T, products), 1)
    return jnp.stack(_apply(rows.g.T, list(out)))
