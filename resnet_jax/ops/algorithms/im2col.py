"""im2col: one row for each output position, with all that it reads, and one product.

With stride s and padding p,

    P[(n, oh, ow), (i, j, c)] = x[n, s oh + i - p, s ow + j - p, c]     zero outside the image

turns the kernel's [kh kw C, K] matrix W into all three passes:

    forward          Y  = P W
    weight gradient  dW = P^T dY
    input gradient   dX = col2im(dY W^T), which adds each value where P had read

Source: Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document
Processing", 2006; Caffe's im2col and GEMM.
"""

import jax

from resnet_jax.ops import primitives
from resnet_jax.ops.geometry import Geometry
from resnet_jax.ops.primitives import COLUMNS, ROWS, col2im, contract, depends_on

# An image of up to this many channels is one whose columns are slower to make again in the weight
# gradient (a twentieth of a step at 224x224) than they are large.
MAX_IMAGE_CHANNELS = 3


def _im2col(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Return P as float[N, OH, OW, kh * kw * C]."""
    x = primitives.im2col(x, COLUMNS, geometry.columns)
    return primitives.im2col(x, ROWS, geometry.rows)


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return contract(_im2col(x, geometry), kernel.reshape(-1, kernel.shape[-1]), (3,), (0,))


def weight_grad(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    # A 1x1 kernel's columns are no more than the input.
    if geometry.kernel != (1, 1) and x.shape[-1] > MAX_IMAGE_CHANNELS:
        x = depends_on(x, grad)
    out = contract(_im2col(x, geometry), grad, (0, 1, 2), (0, 1, 2))
    return out.reshape(*geometry.kernel, x.shape[-1], grad.shape[-1])


def input_grad(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    _, kw, c, k = kernel.shape
    out = contract(grad, kernel.reshape(-1, k), (3,), (1,))
    for dim, axis, width in ((ROWS, geometry.rows, kw * c), (COLUMNS, geometry.columns, c)):
        taps = [out[..., tap * width :][..., :width] for tap in range(axis.kernel)]
        out = col2im(taps, dim, axis)
    return out
