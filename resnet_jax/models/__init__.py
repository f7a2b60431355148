"""The networks: layers, units, the table of variants, and a summary of any of them."""

from dataclasses import asdict

import jax.numpy as jnp

from resnet_jax.config import ModelConfig, TrainConfig
from resnet_jax.models.layers import Affine, BatchNorm, Conv
from resnet_jax.models.resnet import (
    VARIANTS,
    BasicUnit,
    BottleneckUnit,
    PreActivationUnit,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    Unit,
)
from resnet_jax.models.summary import LayerSummary, summarize

__all__ = [
    "VARIANTS",
    "Affine",
    "BasicUnit",
    "BatchNorm",
    "BottleneckUnit",
    "Conv",
    "LayerSummary",
    "PreActivationUnit",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "Unit",
    "make_model",
    "summarize",
]


def make_model(config: ModelConfig | TrainConfig, num_classes: int) -> ResNet:
    """Return the network that a configuration describes."""
    settings = asdict(config.model if isinstance(config, TrainConfig) else config)
    dtype = jnp.dtype(settings.pop("dtype"))
    return VARIANTS[settings.pop("name")](
        num_classes=num_classes,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        **settings,
    )
