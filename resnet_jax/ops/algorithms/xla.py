"""XLA's own convolution, `lax.conv_general_dilated`, and its transposes."""

import jax
from jax import lax

from resnet_jax.ops.geometry import Geometry


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, geometry.stride, geometry.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2] if kernel.shape[2] else 1,
    )  # fmt: skip


def input_grad(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    x = jax.ShapeDtypeStruct((grad.shape[0], *geometry.size, kernel.shape[2]), grad.dtype)
    return jax.linear_transpose(lambda x: forward(x, kernel, geometry), x)(grad)[0]


def weight_grad(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((*geometry.kernel, x.shape[-1], grad.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: forward(x, kernel, geometry), kernel)(grad)[0]
