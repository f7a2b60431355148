"""ResNet-18 as one first writes it in Flax: ``nn.Conv``, ``nn.BatchNorm``, ``nn.max_pool``."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn


class Unit(nn.Module):
    """Basic unit: two 3x3 convolutions and the shortcut."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, padding=1)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        y = conv(self.features, (3, 3), (self.strides, self.strides))(x)
        y = nn.relu(norm()(y))
        y = norm()(conv(self.features, (3, 3))(y))
        if x.shape != y.shape:
            x = conv(self.features, (1, 1), (self.strides, self.strides), padding=0)(x)
            x = norm()(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """float[N, H, W, C] -> float[N, num_classes]."""

    num_classes: int
    width: int = 64
    stem: str = "imagenet"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        side, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = nn.Conv(self.width, (side,) * 2, stride, padding=side // 2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage in range(4):
            for number in range(2):
                strides = 2 if stage and not number else 1
                x = Unit(self.width * 2**stage, strides)(x, train=train)
        return nn.Dense(self.num_classes)(jnp.mean(x, (1, 2)))
