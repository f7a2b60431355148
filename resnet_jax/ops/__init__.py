"""Convolution and pooling as pure functions, each with the lowering its platform runs fastest."""

from resnet_jax.ops.conv import conv2d
from resnet_jax.ops.pool import max_pool

__all__ = ["conv2d", "max_pool"]
