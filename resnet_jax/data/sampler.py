"""The order of examples: in training, a pure function of the seed and the step number."""

import math
from functools import lru_cache

import numpy as np

from resnet_jax.errors import ResNetJaxError

PADDING = -1  # the index and the label of examples that only fill up a batch


def padded_order(count: int, batch_size: int) -> np.ndarray:
    """Return 0 to ``count - 1``, then `PADDING`, in full batches: int32[batches, batch_size]."""
    order = np.full((-(-count // batch_size), batch_size), PADDING, np.int32)
    order.reshape(-1)[:count] = np.arange(count)
    return order


@lru_cache(maxsize=4)  # a batch touches two epochs at most; threads may ask for adjacent ones
def permutation(num_examples: int, seed: int, *key: int) -> np.ndarray:
    """Return the permutation of ``range(num_examples)`` that (seed, key) determines, int32.

    It sorts the raw 64-bit output of Philox seeded through ``SeedSequence``. NumPy promises that
    both give the same numbers in every release, a promise that it does not make for
    ``Generator.permutation`` (NEP 19): a run resumed after an upgrade sees the same order.
    """
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)).random_raw(num_examples)
    # A stable sort makes the order of two equal keys (one chance in 10^9 at a million) fixed too.
    return np.argsort(bits, kind="stable").astype(np.int32)


class EpochSampler:
    """Samples the indices of each training batch, without replacement within an epoch.

    The permutations of (seed, epoch) for epoch 0, 1, 2, … follow one another and are cut into
    full batches. Every example comes exactly once per epoch; a batch may hold the end of one
    epoch and the start of the next (and then, possibly, one example twice); no batch is short.
    Nothing is remembered between calls, so the step number alone resumes a run.

    A ``batch_size`` above ``num_examples``, and a negative seed, raise `ResNetJaxError`.

    Example:
        >>> sampler = EpochSampler(num_examples=5, batch_size=2, seed=0)
        >>> epoch_0 = np.concatenate([sampler.batch(step) for step in range(3)])[:5]
        >>> sorted(epoch_0.tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= num_examples:
            raise ResNetJaxError(
                f"--batch-size must be 1 to the {num_examples} training examples, got {batch_size}"
            )
        if seed < 0:
            raise ResNetJaxError(f"--seed must be at least 0, got {seed}")
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed

    def batch(self, step: int) -> np.ndarray:
        """Return the indices of the batch of ``step`` (0, 1, 2, …) as int32[batch_size]."""
        epoch, offset = divmod(int(step) * self.batch_size, self.num_examples)
        parts = [permutation(self.num_examples, self.seed, epoch)[offset:][: self.batch_size]]
        if missing := self.batch_size - len(parts[0]):  # B <= N, so that two epochs always suffice
            parts.append(permutation(self.num_examples, self.seed, epoch + 1)[:missing])
        return np.concatenate(parts)  # a copy: the caller may write to it

    def steps(self, epochs: float) -> int:
        """Return how many steps see every example ``epochs`` times: ceil(epochs * N / B)."""
        # 0.1 epochs of 30 examples are 3 examples, not the 3.0000000000000004 of floating point.
        steps = math.ceil(round(epochs * self.num_examples, 6) / self.batch_size)
        return max(steps, int(epochs > 0))
