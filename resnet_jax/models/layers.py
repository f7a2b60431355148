"""Convolution and batch norm by torch's definitions, and `Affine`, batch norm's scale and bias.

Padding is explicit and symmetric and the running variance is unbiased, so that torchvision's
weights give torchvision's logits here and a training step updates the same statistics.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer, variance_scaling

from resnet_jax import ops

# He et al. 2015 (arXiv 1502.01852), fan-out: keeps the variance of the gradient, for ReLU.
# Normal and not truncated, as torchvision's ResNets start.
he_fan_out: Initializer = variance_scaling(2.0, "fan_out", "normal")

# PyTorch's default for convolutions and dense layers, U(-1/sqrt(fan_in), 1/sqrt(fan_in)):
# a uniform distribution of variance 1 / (3 fan_in).
torch_default: Initializer = variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """A 2-D convolution without bias: NHWC images, HWIO kernel, ``kernel_size // 2`` zeros around.

    Attributes:
        features: number of output channels.
        kernel_size: side of the square kernel.
        strides: step between windows, in pixels, the same in both directions.
        groups: of channels that are convolved apart.
        lowering: see `resnet_jax.ops.conv2d`.
        kernel_init: initialiser of the kernel.
        dtype: type of the computation.
        param_dtype: type of the kernel.
    """

    features: int
    kernel_size: int
    strides: int = 1
    groups: int = 1
    lowering: str = "auto"
    kernel_init: Initializer = he_fan_out
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, H, W, C]`` to ``[N, H', W', features]``."""
        side, inputs = self.kernel_size, x.shape[-1]
        shape = (side, side, inputs // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        return ops.conv2d(
            x.astype(self.dtype),
            kernel,
            stride=self.strides,
            padding=side // 2,
            groups=self.groups,
            lowering=self.lowering,
        )


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167) by torch's definitions.

    Training normalises with the batch's mean and biased variance and moves the running mean and
    the running *unbiased* variance (``n / (n - 1)``) towards the batch's; evaluation normalises
    with the running ones. Under `jax.jit` over a mesh of devices the batch is the global one; in
    `jax.shard_map` it is the device's own part.

    The variance is computed in two passes and the statistics in at least float32, whatever
    ``dtype`` is: ``E[x^2] - E[x]^2`` loses all digits where the mean is large.

    Attributes:
        momentum: share of the running statistics kept at a step; torch's 0.1 is 0.9 here.
        epsilon: added to the variance.
        scale_init: initialiser of the scale (torch's ``weight``).
        dtype: type of the result.
        param_dtype: type of scale and bias, and of running statistics where it is wide enough.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``[N, H, W, C]`` to the same shape; ``train`` uses and updates the statistics."""
        features = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, features, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, features, self.param_dtype)
        wide = jnp.promote_types(self.param_dtype, jnp.float32)  # bfloat16 loses what a step adds
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, wide)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, wide)

        if train:
            mean, var = _moments(x)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                # A single value has no unbiased variance: torch refuses it, flax and this take 0.
                unbiased = var * (count / jax.core.max_dim(count - 1, 1))  # it may be symbolic
                keep = self.momentum
                for running, now in ((running_mean, mean), (running_var, unbiased)):
                    moved = keep * running.value + (1 - keep) * now
                    running.value = moved.astype(wide)
        else:
            mean, var = running_mean.value, running_var.value

        return _normalise(x, mean, var, scale, bias, self.epsilon).astype(self.dtype)


# Jitted separately, so that layers of one shape are traced and lowered once in a network.
@jax.jit
def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    return mean, jnp.square(wide - mean).mean(axes)


@jax.jit
def _normalise(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    return (x - mean) * (scale * jax.lax.rsqrt(var + epsilon)) + bias


class Affine(nn.Module):
    """Batch norm without the normalisation: its scale and bias by channel, the same parameters.

    For networks that show what batch norm does: ``rj.ResNet(..., norm=Affine)``. There are no
    running statistics, and training and evaluation compute the same. Of `BatchNorm`'s attributes
    it has ``scale_init``, ``dtype`` and ``param_dtype``.
    """

    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``[N, H, W, C]`` to the same shape; ``train`` changes nothing."""
        features = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, features, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, features, self.param_dtype)
        return (x * scale + bias).astype(self.dtype)
