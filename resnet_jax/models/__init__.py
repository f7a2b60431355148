"""The networks: layers, units, the table of variants, and a summary of any of them."""

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
    "summarize",
]
