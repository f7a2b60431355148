"""im2col: gather what each output position reads into one row of a matrix; take one product.

With stride s and padding p,

    P[(n, oh, ow), (i, j, c)] = x[n, s oh + i - p, s ow + j - p, c]     zero outside the image

turns the kernel's [kh kw C, K] matrix W into all three passes:

    forward          Y  = P W
    weight gradient  dW = P^T dY
    input gradient   dX = col2im(dY W^T), P's transpose, which adds each value where P had read

Source: Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document
Processing", 2006; Caffe's im2col and GEMM.
"""

from functools import partial

import jax
import jax.numpy as jnp

from resnet_jax.ops.geometry import Geometry
from resnet_jax.ops.primitives import COLUMNS, ROWS, contract, depends_on, taps

# The most input channels of what counts as an image. Its weight gradient keeps the forward pass's
# columns: making them again takes a twentieth of a step at 224x224, and they are not large.
MAX_IMAGE_CHANNELS = 3


def _im2col(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Return P as float[N, OH, OW, kh * kw * C]."""
    for dim, axis in ((COLUMNS, geometry.columns), (ROWS, geometry.rows)):
        x = jnp.concatenate(taps(x, dim, axis), -1)
    return x


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return contract(_im2col(x, geometry), kernel.reshape(-1, kernel.shape[-1]), (3,), (0,))


def weight_grad(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    # A 1x1 kernel's columns are no larger than the input, so they may be kept too.
    if geometry.kernel != (1, 1) and x.shape[-1] > MAX_IMAGE_CHANNELS:
        x = depends_on(x, grad)
    out = contract(_im2col(x, geometry), grad, (0, 1, 2), (0, 1, 2))
    return out.reshape(*geometry.kernel, x.shape[-1], grad.shape[-1])


def input_grad(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    columns = contract(grad, kernel.reshape(-1, kernel.shape[-1]), (3,), (1,))
    x = jax.ShapeDtypeStruct((grad.shape[0], *geometry.size, kernel.shape[2]), columns.dtype)
    return jax.linear_transpose(partial(_im2col, geometry=geometry), x)(columns)[0]
