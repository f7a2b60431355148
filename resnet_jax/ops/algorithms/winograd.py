"""Winograd's minimal filtering F(2x2, 3x3), for 3x3 kernels at stride 1.

Two outputs y of three taps g, from a tile d of four inputs, take four products instead of six
(section 4.1 of Lavin and Gray, arXiv 1509.09308):

    y = A^T [(G g) * (B^T d)]

and 2x2 outputs, by the same along rows and columns, 16 instead of 36: for each of them one product
of matrices, over channels, for all tiles at once. The transposed matrices give the gradients:

    input gradient   d += B [(G g) * (A dy)]      weight gradient  g += G^T [(B^T d) * (A dy)]
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.ops.geometry import Axis, Geometry
from resnet_jax.ops.primitives import (
    COLUMNS,
    ROWS,
    col2im,
    contract,
    depends_on,
    interleave,
    shift,
    wide,
)

Grid = list[list[jax.Array]]  # one array for each pair of a product along rows and along columns

BT = np.array([(1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)])
G = np.array([(1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)])
A = np.array([(1, 0), (1, 1), (1, -1), (0, -1)])
# Two pixels between zeros: y0 = g1 d0 + g2 d1, y1 = g0 d0 + g1 d1. Three products, as Karatsuba's,
# instead of four.
BT_OF_TWO = np.array([(0, 1), (1, 1), (1, 0)])
G_OF_TWO = np.array([(0, -1, 1), (0, 1, 0), (1, -1, 0)])
A_OF_TWO = np.array([(1, 0), (1, 1), (0, 1)])


class Tiles(NamedTuple):
    """How tiles read an array along one axis, and the matrix that transforms them."""

    matrix: np.ndarray  # [products, positions of a tile]
    axis: Axis


def _tiling(axis: Axis) -> tuple[Tiles, np.ndarray, Tiles]:
    """Return the tiles of the input, the kernel's matrix, and the tiles of the output."""
    count = -(-axis.out // 2)
    outputs = Axis(axis.out, 2, 2, 0, 2 * count - axis.out)
    if (axis.size, axis.low, axis.high) == (2, 1, 1):
        return Tiles(BT_OF_TWO, Axis(2, 2, 2, 0, 0)), G_OF_TWO, Tiles(A_OF_TWO, outputs)
    inputs = Axis(axis.size, 4, 2, axis.low, 2 * count + 2 - axis.low - axis.size)
    return Tiles(BT, inputs), G, Tiles(A, outputs)


def _apply(matrix: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Multiply a matrix of 0, 1, -1, 0.5 and -0.5 by a vector of arrays, with additions."""

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


def _transform(x: jax.Array, rows: Tiles, columns: Tiles) -> Grid:
    def along(x: jax.Array, dim: int, tiles: Tiles) -> list[jax.Array]:
        positions = range(tiles.axis.kernel)
        return _apply(tiles.matrix, [shift(x, dim, tiles.axis, i) for i in positions])

    # In bfloat16 the transforms' own sums would be rounded, to three times the error.
    x = x.astype(wide(x.dtype))
    return [along(row, COLUMNS, columns) for row in along(x, ROWS, rows)]


def _transform_kernel(kernel: jax.Array, rows: np.ndarray, columns: np.ndarray) -> Grid:
    kernel = kernel.astype(wide(kernel.dtype))
    return [_apply(columns, list(row)) for row in _apply(rows, list(kernel))]


def _products(a: Grid, b: Grid, over: tuple[int, ...], and_: tuple[int, ...]) -> Grid:
    return [
        [contract(u, v, over, and_) for u, v in zip(*both, strict=True)]
        for both in zip(a, b, strict=True)
    ]


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    (rows, g_rows, y_rows), (columns, g_columns, y_columns) = map(_tiling, geometry)
    inputs = _transform(x, rows, columns)
    grid = _products(inputs, _transform_kernel(kernel, g_rows, g_columns), (3,), (0,))
    height, width = geometry.out
    parts = [interleave(_apply(y_columns.matrix.T, row), COLUMNS, width) for row in grid]
    return interleave(_apply(y_rows.matrix.T, parts), ROWS, height)


def input_grad(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    (rows, g_rows, y_rows), (columns, g_columns, y_columns) = map(_tiling, geometry)
    outputs = _transform(grad, y_rows, y_columns)
    grid = _products(outputs, _transform_kernel(kernel, g_rows, g_columns), (3,), (1,))
    parts = [col2im(_apply(columns.matrix.T, row), COLUMNS, columns.axis) for row in grid]
    return col2im(_apply(rows.matrix.T, parts), ROWS, rows.axis)


def weight_grad(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    (rows, g_rows, y_rows), (columns, g_columns, y_columns) = map(_tiling, geometry)
    inputs = _transform(depends_on(x, grad), rows, columns)
    grid = _products(inputs, _transform(grad, y_rows, y_columns), (0, 1, 2), (0, 1, 2))
    taps = [jnp.stack(_apply(g_columns.T, row)) for row in grid]
    return jnp.stack(_apply(g_rows.T, taps))
