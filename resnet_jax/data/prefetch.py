"""Batches read ahead of their use, from memory or from disk."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from resnet_jax.data.dataset import Split

PADDING = -1  # the index and the label of what fills up a batch
AHEAD_PER_WORKER = 2  # batches that are read or wait to be used


def padded_order(count: int, batch_size: int) -> np.ndarray:
    """Return 0 to ``count - 1``, then `PADDING`, in full batches: int32[batches, batch_size]."""
    order = np.full((-(-count // batch_size), batch_size), PADDING, np.int32)
    order.reshape(-1)[:count] = np.arange(count)
    return order


def in_parts(count: int, size: int) -> list[np.ndarray]:
    """Return 0 to ``count - 1`` in parts of ``size``, the last of which may be shorter."""
    return np.split(np.arange(count), range(size, count, size))


def read_batch(split: "Split", indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch; at an index of `PADDING` the image is black and the label is `PADDING`."""
    present = indices >= 0
    if present.all():
        return split.batch(indices)
    images = np.zeros((len(indices), *split.image_shape), np.uint8)
    labels = np.full(len(indices), PADDING, np.int32)
    if present.any():
        images[present], labels[present] = split.batch(indices[present])
    return images, labels


def read_batches(
    split: "Split", order: Iterable[np.ndarray], workers: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the batch of each array of indices, in order, read by threads ahead of its use.

    ``workers`` threads; None: one for each core.
    """
    workers = workers or os.cpu_count() or 1
    order = iter(order)
    pool = ThreadPoolExecutor(workers)
    try:
        ahead = islice(order, AHEAD_PER_WORKER * workers)
        pending = deque(pool.submit(read_batch, split, indices) for indices in ahead)
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(read_batch, split, indices) for indices in islice(order, 1))
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
