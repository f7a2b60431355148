"""Convolution and batch norm as PyTorch defines them, and `Affine`, batch norm's scale and bias.

Padding is explicit and symmetric and the running variance is unbiased, so that torchvision's
weights give torchvision's logits and a training step updates the statistics as PyTorch does.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer, variance_scaling

from resnet_jax import ops

# He et al. 2015 (arXiv 1502.01852), fan-out: it keeps the variance of the gradient through ReLU.
# As in torchvision's ResNets, the normal distribution is not truncated.
he_fan_out: Initializer = variance_scaling(2.0, "fan_out", "normal")

# PyTorch's default for convolutions and dense layers, U(-1/sqrt(fan_in), 1/sqrt(fan_in)):
# a uniform distribution of variance 1 / (3 fan_in).
torch_default: Initializer = variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """A 2-D convolution (NHWC, HWIO) without bias, with symmetric zero padding.

    Attributes:
        features: number of output channels.
        kernel_size: side of the square kernel.
        strides: step between windows, in pixels, the same in both directions.
        padding: zeros on each side, in pixels; None: ``kernel_size // 2``.
        lowering: see `resnet_jax.ops.conv2d`.
        kernel_init: initialiser of the kernel.
        dtype: type of the computation.
        param_dtype: type of the kernel.
        groups: number of channel groups, each convolved separately.
    """

    features: int
    kernel_size: int
    strides: int = 1
    padding: int | None = None
    lowering: str = "auto"
    kernel_init: Initializer = he_fan_out
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[N, H, W, C]`` to ``[N, H', W', features]``."""
        side, inputs = self.kernel_size, x.shape[-1]
        shape = (side, side, inputs // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        return ops.conv2d(
            x.astype(self.dtype),
            kernel,
            stride=self.strides,
            padding=side // 2 if self.padding is None else self.padding,
            groups=self.groups,
            lowering=self.lowering,
        )


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167) as PyTorch defines it.

    Training normalises with the batch's mean and biased variance and moves the running mean and
    the running *unbiased* variance (``n / (n - 1)``) towards the batch's; evaluation normalises
    with the running ones. Under `jax.jit` over a mesh of devices the batch is the global one; in
    `jax.shard_map` it is each device's part.

    The variance is computed in two passes and the statistics in at least float32, whatever
    ``dtype`` is: ``E[x^2] - E[x]^2`` loses all digits where the mean is large.

    Attributes:
        momentum: fraction of the running statistics that a step keeps; PyTorch's 0.1 is 0.9 here.
        epsilon: added to the variance.
        scale_init: initialiser of the scale (PyTorch's ``weight``).
        dtype: type of the result.
        param_dtype: type of scale and bias; running statistics have it or float32, the wider one.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise NHWC; ``train`` uses the batch's statistics and updates the running ones."""
        features = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, features, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, features, self.param_dtype)
        wide = jnp.promote_types(self.param_dtype, jnp.float32)  # bfloat16 loses a step's change
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, wide)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, wide)

        if train:
            mean, var = _moments(x)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                # One value has no unbiased variance: PyTorch refuses it, Flax takes 0 as we do.
                unbiased = var * (count / jax.core.max_dim(count - 1, 1))  # for a symbolic size
                for running, now in ((running_mean, mean), (running_var, unbiased)):
                    moved = self.momentum * running.value + (1 - self.momentum) * now
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
    """Batch norm without normalisation: its scale and bias for each channel, under the same names.

    ``rj.ResNet(..., norm=Affine)`` gives a network that shows what batch norm does. It has no
    running statistics and computes the same in training and evaluation. The attributes are
    ``scale_init``, ``dtype`` and ``param_dtype`` of `BatchNorm`.
    """

    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map ``[N, H, W, C]`` to the same shape; ``train`` changes nothing."""
        features = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, features, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, features, self.param_dtype)
        return (x * scale + bias).astype(self.dtype)
