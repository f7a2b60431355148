"""Weights and networks to and from other frameworks: torchvision, safetensors, StableHLO, ONNX."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from resnet_jax.interop.network import Network, export_stablehlo
from resnet_jax.interop.onnx import export_onnx
from resnet_jax.interop.torchvision import (
    from_torchvision,
    to_torchvision,
    with_fresh_head,
    with_input_channels,
)
from resnet_jax.interop.weights import (
    export_torchvision,
    load_metadata,
    load_weights,
    save_weights,
)

Format = Literal["torchvision", "stablehlo", "onnx"]
# The writer of each format, and the file's ending.
EXPORTS: dict[str, tuple[Callable[[Path, Network], None], str]] = {
    "torchvision": (export_torchvision, ".safetensors"),
    "stablehlo": (export_stablehlo, ".stablehlo"),
    "onnx": (export_onnx, ".onnx"),
}

__all__ = [
    "Network",
    "export_onnx",
    "export_stablehlo",
    "export_torchvision",
    "from_torchvision",
    "to_torchvision",
    "load_weights",
    "load_metadata",
    "save_weights",
    "with_fresh_head",
    "with_input_channels",
]
