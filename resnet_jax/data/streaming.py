"""Batches of examples that stay on disk, read and decoded ahead of their use by Grain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from resnet_jax.data.dataset import StreamedSplit
from resnet_jax.data.source import default_workers

AHEAD = 2  # batches for each worker that wait to be used


class ReadAhead:
    """The batches of a range of steps, in their order.

    Which examples a batch holds is decided by its step alone, so that the step number is all there
    is to resume from, and a process of several may ask for its share of each batch. Batches are
    read in parallel, a thread each, and the memory taken is that of `AHEAD` batches for each.

    Args:
        split: where the examples are.
        indices_of: the examples of a step, int[B].
        steps: the steps that will be asked for.
        workers: threads that read and decode. Default: one for each core.
    """

    def __init__(
        self,
        split: StreamedSplit,
        indices_of: Callable[[int], np.ndarray],
        steps: range,
        workers: int | None = None,
    ) -> None:
        import grain

        threads = workers or default_workers()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD * threads)
        batches = grain.MapDataset.source(_Batches(split, indices_of, steps))
        self._batches = iter(batches.to_iter_dataset(options))

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next batch, uint8[B, H, W, C] and int32[B], which must be that of ``indices``.

        Raises:
            ResNetJaxError: a file is gone or broken.
        """
        read, images, labels = next(self._batches)
        assert np.array_equal(read, indices), "batches are taken in their order"
        return images, labels


class _Batches:
    """Whole batches as the examples of a Grain data source."""

    def __init__(
        self, split: StreamedSplit, indices_of: Callable[[int], np.ndarray], steps: range
    ) -> None:
        self.split, self.indices_of, self.steps = split, indices_of, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        indices = self.indices_of(self.steps[position])
        return (indices, *self.split.read(indices))

    def __repr__(self) -> str:  # Grain logs it
        return f"{type(self).__name__}({len(self)} batches)"
