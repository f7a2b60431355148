"""The order in which examples are seen: a pure function of the seed and the step number."""

from __future__ import annotations

import math
import threading

import numpy as np

from resnet_jax.errors import ResNetJaxError


def permutation(num_examples: int, seed: int, *key: int) -> np.ndarray:
    """Returns the permutation of ``range(num_examples)`` that (seed, key) names.

    It sorts the raw 64-bit output of Philox seeded through ``SeedSequence``. NumPy promises that
    both of these give the same numbers in every release, a promise that it does not make for
    ``Generator.permutation`` (NEP 19): a run resumed after an upgrade sees the same order.

    Returns:
        int32[num_examples].

    Raises:
        ResNetJaxError: if the seed is negative.
    """
    if seed < 0:
        raise ResNetJaxError(f"seed {seed} is negative: expected an integer of 0 or more (--seed)")
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)).random_raw(num_examples)
    # A stable sort makes the order of two equal keys (one chance in 10^9 at a million) fixed too.
    return np.argsort(bits, kind="stable").astype(np.int32)


class IndexStream:
    """The indices of the examples of each training batch.

    The permutations of (seed, epoch) for epoch 0, 1, 2, … follow one another and are cut into
    full batches. Every example comes exactly once per epoch; a batch may hold the end of one
    epoch and the start of the next (and then, possibly, one example twice); no batch is short.
    Nothing is remembered between calls, so the step number alone resumes a run.

    Args:
        num_examples: N, examples per epoch.
        batch_size: B, examples per step, at most N.
        seed: an integer of 0 or more.

    Raises:
        ResNetJaxError: if B is less than 1 or more than N, or the seed is negative.

    Example:
        >>> stream = IndexStream(num_examples=5, batch_size=2, seed=0)
        >>> epoch_0 = np.concatenate([stream.batch(step) for step in range(3)])[:5]
        >>> sorted(epoch_0.tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ResNetJaxError(
                f"batch size {batch_size} makes no batch: expected 1 or more (--batch-size)"
            )
        if batch_size > num_examples:
            raise ResNetJaxError(
                f"batch size {batch_size} is more than the {num_examples} training examples: "
                f"expected at most {num_examples} (--batch-size)"
            )
        if seed < 0:
            raise ResNetJaxError(
                f"seed {seed} is negative: expected an integer of 0 or more (--seed)"
            )
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.seed = seed
        self._permutations: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()  # a prefetching thread may ask at the same time

    def batch(self, step: int) -> np.ndarray:
        """Returns the indices of the batch of ``step`` (0, 1, 2, …) as int32[batch_size]."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        epoch, offset = divmod(step * self.batch_size, self.num_examples)
        indices = self._permutation(epoch)[offset : offset + self.batch_size]
        missing = self.batch_size - len(indices)
        if missing:  # B <= N, so that two epochs always suffice
            return np.concatenate([indices, self._permutation(epoch + 1)[:missing]])
        return indices.copy()  # the caller may write to it

    def epoch(self, step: int) -> int:
        """Returns the epoch of the first example of the batch of ``step``."""
        return step * self.batch_size // self.num_examples

    def steps(self, epochs: float) -> int:
        """Returns the steps after which every example was seen ``epochs`` times: ceil(epochs·N/B).

        ``epochs`` may be a fraction.
        """
        if isinstance(epochs, int):
            return -(-epochs * self.num_examples // self.batch_size)
        # 0.1 epochs of 30 examples are 3 examples, not the 3.0000000000000004 of floating point
        steps = math.ceil(round(epochs * self.num_examples, 6) / self.batch_size)
        return max(steps, int(epochs > 0))

    def _permutation(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._permutations:
                # Only neighbours are ever in use together.
                self._permutations = {
                    known: order
                    for known, order in self._permutations.items()
                    if abs(known - epoch) <= 1
                }
                self._permutations[epoch] = permutation(self.num_examples, self.seed, epoch)
            return self._permutations[epoch]
