"""Residual networks in JAX and Flax.

    import resnet_jax as rj

    model = rj.ResNet18(num_classes=10)
    data = rj.load_dataset("mnist_5k")
    run = rj.train(rj.PRESETS["quickstart"], "runs/quickstart-seed0")
    run.evaluate("test").accuracy

Names are imported when they are first used: `resnet-jax --help` must not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax import inspection, interop
    from resnet_jax.config import (
        PRESETS,
        AugmentConfig,
        DataConfig,
        ModelConfig,
        OptimConfig,
        TrainConfig,
    )
    from resnet_jax.data import Dataset, load_dataset
    from resnet_jax.errors import ResNetJaxError
    from resnet_jax.models import (
        BasicUnit,
        BottleneckUnit,
        PreActivationUnit,
        ResNet,
        ResNet18,
        ResNet34,
        ResNet50,
        ResNet101,
        ResNet152,
    )
    from resnet_jax.run import Run, train
    from resnet_jax.training.state import Batch, TrainState
    from resnet_jax.training.steps import eval_step, train_step

__version__ = "0.2.0.dev0"

_MODULES = {
    "resnet_jax.config": (
        "PRESETS",
        "AugmentConfig",
        "DataConfig",
        "ModelConfig",
        "OptimConfig",
        "TrainConfig",
    ),
    "resnet_jax.data": ("Dataset", "load_dataset"),
    "resnet_jax.errors": ("ResNetJaxError",),
    "resnet_jax.models": (
        "BasicUnit",
        "BottleneckUnit",
        "PreActivationUnit",
        "ResNet",
        "ResNet18",
        "ResNet34",
        "ResNet50",
        "ResNet101",
        "ResNet152",
    ),
    "resnet_jax.run": ("Run", "train"),
    "resnet_jax.training.state": ("Batch", "TrainState"),
    "resnet_jax.training.steps": ("eval_step", "train_step"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("inspection", "interop"):
        return import_module(f"resnet_jax.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
