"""The networks: layers, units, the table of variants, and a summary of any of them."""

from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_jax.config import ModelConfig, TrainConfig
from resnet_jax.models.layers import Affine as Affine
from resnet_jax.models.layers import BatchNorm as BatchNorm
from resnet_jax.models.layers import Conv as Conv
from resnet_jax.models.resnet import BasicUnit as BasicUnit
from resnet_jax.models.resnet import BottleneckUnit as BottleneckUnit
from resnet_jax.models.resnet import PreActivationBottleneckUnit as PreActivationBottleneckUnit
from resnet_jax.models.resnet import PreActivationUnit as PreActivationUnit
from resnet_jax.models.resnet import ResNet as ResNet
from resnet_jax.models.resnet import Unit as Unit
from resnet_jax.models.summary import LayerSummary as LayerSummary
from resnet_jax.models.summary import summarize as summarize
from resnet_jax.models.variants import VARIANTS as VARIANTS
from resnet_jax.models.variants import ResNet18 as ResNet18
from resnet_jax.models.variants import ResNet20 as ResNet20
from resnet_jax.models.variants import ResNet32 as ResNet32
from resnet_jax.models.variants import ResNet34 as ResNet34
from resnet_jax.models.variants import ResNet44 as ResNet44
from resnet_jax.models.variants import ResNet50 as ResNet50
from resnet_jax.models.variants import ResNet56 as ResNet56
from resnet_jax.models.variants import ResNet101 as ResNet101
from resnet_jax.models.variants import ResNet110 as ResNet110
from resnet_jax.models.variants import ResNet152 as ResNet152


def make_model(config: ModelConfig | TrainConfig, num_classes: int) -> ResNet:
    """Return the network that a configuration describes."""
    settings = asdict(config.model if isinstance(config, TrainConfig) else config)
    dtype = jnp.dtype(settings.pop("dtype"))
    return VARIANTS[settings.pop("name")](
        num_classes=num_classes,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        **{name: value for name, value in settings.items() if value is not None},
    )


def has_parameters(model: nn.Module, image_shape: tuple[int, ...], variables: Any) -> bool:
    """Return whether variables are a network's, by their names and shapes."""
    quick = model.clone(lowering="reference")  # to trace, and never computed
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = partial(quick.init, train=False)
    expected = dict(jax.eval_shape(init, jax.random.key(0), images))
    return bool(jax.tree.map(np.shape, expected) == jax.tree.map(np.shape, dict(variables)))
