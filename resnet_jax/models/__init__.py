"""The published networks: a table whose rows are `ResNet` with settings bound by `partial`.

A row binds what `ModelConfig` lacks or leaves at None; all else is the configuration's.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.config import ModelConfig, TrainConfig
from resnet_jax.errors import ResNetJaxError
from resnet_jax.models.layers import Affine as Affine
from resnet_jax.models.layers import BatchNorm as BatchNorm
from resnet_jax.models.layers import Conv as Conv
from resnet_jax.models.resnet import (
    BasicUnit,
    BottleneckUnit,
    PreActivationBottleneckUnit,
    PreActivationUnit,
    ResNet,
)
from resnet_jax.models.resnet import Unit as Unit
from resnet_jax.models.summary import has_parameters as has_parameters
from resnet_jax.models.summary import shapes_of as shapes_of
from resnet_jax.models.summary import summarize as summarize

# arXiv 1512.03385, table 1.
ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), unit=BasicUnit)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), unit=BasicUnit)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), unit=BottleneckUnit)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), unit=BottleneckUnit)
ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), unit=BottleneckUnit)

# The same paper, section 4.2: 6n + 2 layers for 32x32 images, with option A's shortcuts.
_cifar = partial(ResNet, unit=BasicUnit, width=16, stem="small", shortcut="pad")
ResNet20 = partial(_cifar, stage_sizes=(3, 3, 3))
ResNet32 = partial(_cifar, stage_sizes=(5, 5, 5))
ResNet44 = partial(_cifar, stage_sizes=(7, 7, 7))
ResNet56 = partial(_cifar, stage_sizes=(9, 9, 9))
ResNet110 = partial(_cifar, stage_sizes=(18, 18, 18))

_preact = partial(ResNet, unit=PreActivationUnit)
# arXiv 1603.05027: option A in preact_resnet110, B in the others. In the paper a stage's first
# shortcut starts after its unit's norm and ReLU; here the identity and option A start before them,
# as in every unit. An ImageNet stem ends with norm and ReLU, which the first unit then repeats.
_preact_cifar = partial(_preact, width=16, stem="conv", stage_sizes=(18, 18, 18))

# The names that `--model.name` and `resnet-jax summary` accept.
VARIANTS: dict[str, Callable[..., ResNet]] = {
    "resnet18": ResNet18,
    "resnet26": partial(ResNet, stage_sizes=(2, 2, 2, 2), unit=BottleneckUnit),  # from timm
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "resnext50_32x4d": partial(ResNet50, widening=2, groups=32),  # arXiv 1611.05431, table 1
    "resnext101_32x8d": partial(ResNet101, widening=4, groups=32),  # torchvision's, as is the next
    "resnext101_64x4d": partial(ResNet101, widening=4, groups=64),
    "wide_resnet50_2": partial(ResNet50, widening=2),  # arXiv 1605.07146, table 8
    "wide_resnet101_2": partial(ResNet101, widening=2),
    "resnet20": ResNet20,
    "resnet32": ResNet32,
    "resnet44": ResNet44,
    "resnet56": ResNet56,
    "resnet110": ResNet110,
    "resnet1202": partial(_cifar, stage_sizes=(200, 200, 200)),
    "preact_resnet18": partial(_preact, stage_sizes=(2, 2, 2, 2)),
    "preact_resnet34": partial(_preact, stage_sizes=(3, 4, 6, 3)),
    "preact_resnet110": partial(_preact_cifar, shortcut="pad"),
    "preact_resnet164": partial(_preact_cifar, unit=PreActivationBottleneckUnit),
    # arXiv 1605.07146, table 1: depth 6n + 4.
    "wide_resnet16_4": partial(_preact_cifar, stage_sizes=(2, 2, 2), widening=4),
    "wide_resnet28_10": partial(_preact_cifar, stage_sizes=(4, 4, 4), widening=10),
}
# arXiv 1812.01187, figure 2.
VARIANTS |= {
    f"resnet{depth}d": partial(VARIANTS[f"resnet{depth}"], stem="deep", shortcut="average")
    for depth in (18, 26, 34, 50, 101, 152)
}
# The units whose layers torchvision's names and the ONNX writer cover.
UNITS = {BasicUnit, BottleneckUnit, PreActivationUnit, PreActivationBottleneckUnit}


def make_model(config: ModelConfig | TrainConfig, num_classes: int) -> ResNet:
    """Return the network that a configuration describes, or refuse a width that it cannot have."""
    settings = asdict(config.model if isinstance(config, TrainConfig) else config)
    dtype, name = jnp.dtype(settings.pop("dtype")), settings.pop("name")
    network = VARIANTS[name](
        num_classes=num_classes,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        **{name: value for name, value in settings.items() if value is not None},
    )
    step = network.groups // math.gcd(network.groups, network.widening)
    step = max(step, 2 if network.stem == "deep" else 1)  # a deep stem starts with half the width
    if network.width % step:
        raise ResNetJaxError(
            f"--model.width {network.width} is none for {name}: give a multiple of {step}"
        )
    return network


def norm_of(network: ResNet) -> nn.Module:
    """Return a normalisation layer of the class and the types that a network uses."""
    return network.norm(name="norm", dtype=network.dtype, param_dtype=network.param_dtype)
