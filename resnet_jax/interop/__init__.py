"""Weights and networks to and from other frameworks: torchvision, safetensors, StableHLO, ONNX."""

from typing import TYPE_CHECKING, Any

from resnet_jax.interop.adapt import with_fresh_head, with_input_channels
from resnet_jax.interop.files import load_metadata, load_weights, save_weights
from resnet_jax.interop.torchvision import from_torchvision, to_torchvision

if TYPE_CHECKING:
    from resnet_jax.interop.artifact import export

__all__ = [
    "export",
    "from_torchvision",
    "to_torchvision",
    "load_weights",
    "load_metadata",
    "save_weights",
    "with_fresh_head",
    "with_input_channels",
]


def __getattr__(name: str) -> Any:
    # The one name here that needs data sets and training programs.
    if name == "export":
        from resnet_jax.interop.artifact import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
