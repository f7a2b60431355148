"""Datasets, the order of their examples, and augmentation.

Names are imported when they are first used: listing the datasets needs neither JAX nor TFDS.
``augment``, ``mix`` and ``preprocess`` are in ``resnet_jax.data.augment``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.data.catalogue import DATASETS, DatasetInfo
    from resnet_jax.data.dataset import Dataset, Split, StreamedSplit, load_dataset, sample
    from resnet_jax.data.folders import look_through
    from resnet_jax.data.preparation import prepare, verify_prepared
    from resnet_jax.data.report import VerifyReport
    from resnet_jax.data.stream import IndexStream

__all__ = [
    "DATASETS",
    "DatasetInfo",
    "Dataset",
    "Split",
    "StreamedSplit",
    "load_dataset",
    "sample",
    "look_through",
    "prepare",
    "verify_prepared",
    "VerifyReport",
    "IndexStream",
]

_HOME = {
    "DATASETS": "catalogue",
    "DatasetInfo": "catalogue",
    "Dataset": "dataset",
    "Split": "dataset",
    "StreamedSplit": "dataset",
    "load_dataset": "dataset",
    "sample": "dataset",
    "look_through": "folders",
    "prepare": "preparation",
    "verify_prepared": "preparation",
    "VerifyReport": "report",
    "IndexStream": "stream",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
