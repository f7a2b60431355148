"""Shift and add: im2col along columns, one product for all kernel rows, then shifts and a sum.

It needs stride 1. With the kernel as [kw C, kh K] and P of im2col along columns alone,

    Z = P W                                  [N, H, OW, kh K]
    Y[n, oh, ow] = sum_i Z[n, oh + i - p, ow, i]

so that kw copies of the input are made instead of kh kw, and kh partial results are added. The
input gradient is a forward pass with the flipped kernel; the weight gradient shifts dY by rows
where the forward pass shifts Z, and is one product again.

Source: for the rows, "shift-add" of Vasudevan, Anderson and Gregg, arXiv 1704.04428 (kn2row).
"""

from functools import reduce

import jax
import jax.numpy as jnp

from resnet_jax.ops.geometry import Geometry
from resnet_jax.ops.primitives import COLUMNS, ROWS, contract, depends_on, shift, taps


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    kh, kw, c, k = kernel.shape
    matrix = kernel.transpose(1, 2, 0, 3).reshape(kw * c, kh * k)
    columns = jnp.concatenate(taps(x, COLUMNS, geometry.columns), -1)
    z = contract(columns, matrix, (3,), (0,))
    rows = [shift(z[..., i * k :][..., :k], ROWS, geometry.rows, i) for i in range(kh)]
    return reduce(jnp.add, rows)


def input_grad(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return forward(grad, flipped, geometry.transposed())


def weight_grad(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    (kh, kw), c, k = geometry.kernel, x.shape[-1], grad.shape[-1]
    back = geometry.rows.transposed()
    shifted = jnp.concatenate([shift(grad, ROWS, back, kh - 1 - i) for i in range(kh)], -1)
    columns = jnp.concatenate(taps(depends_on(x, grad), COLUMNS, geometry.columns), -1)
    out = contract(shifted, columns, (0, 1, 2), (0, 1, 2))
    return out.reshape(kh, k, kw, c).transpose(0, 2, 3, 1)
