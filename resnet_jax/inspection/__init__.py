"""What a network has learnt, looked at: saliency, feature maps, mistakes, calibration, reports.

    import resnet_jax as rj

    run = rj.Run.open("runs/quickstart-seed0")
    maps = rj.inspection.explain(run, images)              # Grad-CAM of uint8 images
    pictures = rj.inspection.overlay(images, maps)         # uint8[N, H, W, 3]

Names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.inspection.saliency import (
        explain,
        feature_maps,
        grad_cam,
        last_features,
        overlay,
    )

_HOME = {
    "explain": "saliency",
    "feature_maps": "saliency",
    "grad_cam": "saliency",
    "last_features": "saliency",
    "overlay": "saliency",
}

__all__ = [
    "grad_cam",
    "explain",
    "overlay",
    "feature_maps",
    "last_features",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
