"""The networks: layers, units, the table of variants, and a summary of any of them."""

from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

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
    "has_parameters",
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


def has_parameters(model: nn.Module, image_shape: tuple[int, ...], variables: Any) -> bool:
    """Return whether variables are a network's, by their names and shapes."""
    quick = model.clone(lowering="reference")  # to trace, and never computed
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = partial(quick.init, train=False)
    expected = dict(jax.eval_shape(init, jax.random.key(0), images))
    return bool(jax.tree.map(np.shape, expected) == jax.tree.map(np.shape, dict(variables)))
