"""Examples on disk that are read when they are asked for: the common face of files and records."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from resnet_jax.data.files import Fit, read_image


@dataclasses.dataclass(frozen=True)
class ReadAs:
    """How a picture of any kind and size becomes an array.

    Attributes:
        shape: height, width, channels.
        fit: see `read_image`.
        background: see `read_image`.
    """

    shape: tuple[int, int, int]
    fit: Fit = "pad"
    background: int | None = None


class Source(Protocol):
    """N examples, any of which can be read at any time, from any thread."""

    read_as: ReadAs

    def __len__(self) -> int:
        """N."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads the examples at ``indices``, integers[M]: uint8[M, H, W, C] and int32[M]."""


class FileSource:
    """Image files with their labels."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], read_as: ReadAs) -> None:
        self.paths, self.read_as = paths, read_as
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads and decodes the files at ``indices``.

        Raises:
            ResNetJaxError: a file is gone or broken.
        """
        how = self.read_as
        images = np.empty((len(indices), *how.shape), np.uint8)
        for place, index in enumerate(indices):
            images[place] = read_image(
                self.paths[index], how.shape, fit=how.fit, background=how.background
            )
        return images, self.labels[indices]


class Joined:
    """One source after another."""

    def __init__(self, first: Source, second: Source) -> None:
        self.first, self.second, self.read_as = first, second, first.read_as

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads each index from the source that holds it."""
        images = np.empty((len(indices), *self.read_as.shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        later = indices >= len(self.first)
        for source, chosen, offset in (
            (self.first, ~later, 0),
            (self.second, later, len(self.first)),
        ):
            if chosen.any():
                images[chosen], labels[chosen] = source.read(indices[chosen] - offset)
        return images, labels


def default_workers() -> int:
    """Threads that decode, where ``--data.workers`` does not say: one for each core."""
    return os.cpu_count() or 1


def read_all(source: Source, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a whole source into memory, in parallel: uint8[N, H, W, C] and int32[N]."""
    images = np.empty((len(source), *source.read_as.shape), np.uint8)
    labels = np.empty(len(source), np.int32)

    def read(start: int) -> None:
        part = np.arange(start, min(start + 64, len(source)))
        images[part], labels[part] = source.read(part)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, range(0, len(source), 64)))
    return images, labels
