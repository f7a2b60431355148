"""What a network has learnt, looked at: saliency, feature maps, mistakes, calibration, reports.

    import resnet_jax as rj

    run = rj.Run.open("runs/quickstart-seed0")
    maps = rj.inspection.explain(run, images)              # Grad-CAM of uint8 images
    pictures = rj.inspection.overlay(images, maps)         # uint8[N, H, W, 3]
    found = rj.inspection.examine(run)                     # answers to the test images, one by one
    rj.inspection.plots.mistakes(found)                    # a matplotlib figure

Names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.inspection import plots
    from resnet_jax.inspection.compare import compare_runs
    from resnet_jax.inspection.evaluation import (
        Calibration,
        Findings,
        calibration,
        confusion_matrix,
        embedding,
        examine,
    )
    from resnet_jax.inspection.report import write_report
    from resnet_jax.inspection.saliency import (
        explain,
        feature_maps,
        grad_cam,
        last_features,
        overlay,
    )

_MODULES = {
    "compare": ("compare_runs",),
    "evaluation": (
        "Calibration",
        "Findings",
        "calibration",
        "confusion_matrix",
        "embedding",
        "examine",
    ),
    "report": ("write_report",),
    "saliency": ("explain", "feature_maps", "grad_cam", "last_features", "overlay"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_HOME, "plots"]


def __getattr__(name: str) -> Any:
    if name == "plots":
        return importlib.import_module(f"{__name__}.plots")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
