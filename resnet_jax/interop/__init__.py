"""Weights and networks to and from other frameworks: torchvision, safetensors, StableHLO, ONNX."""

from resnet_jax.interop.adapt import with_fresh_head, with_input_channels
from resnet_jax.interop.files import load_metadata, load_weights, save_weights
from resnet_jax.interop.torchvision import from_torchvision, to_torchvision

__all__ = [
    "from_torchvision",
    "to_torchvision",
    "load_weights",
    "load_metadata",
    "save_weights",
    "with_fresh_head",
    "with_input_channels",
]
