"""The order of the examples: permutations of (seed, epoch), one after another, in batches."""

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.data.sampler import EpochSampler, permutation
from resnet_jax.errors import ResNetJaxError


def test_permutation_sorts_the_raw_philox_stream_and_never_changes():
    # Worked out apart from the code: the raw numbers, ranked.
    raw = np.random.Philox(np.random.SeedSequence(7, spawn_key=(3,))).random_raw(6)
    expected = [int(i) for _, i in sorted((int(value), i) for i, value in enumerate(raw))]
    assert permutation(6, 7, 3).tolist() == expected
    # Stored: another answer here would change what resumed runs see.
    assert permutation(8, 0, 0).tolist() == [1, 4, 5, 6, 2, 0, 3, 7]
    assert permutation(8, 0, 1).tolist() == [7, 6, 2, 3, 1, 0, 4, 5]


def test_batches_are_cut_from_the_permutations_one_after_another():
    sampler = EpochSampler(num_examples=5, batch_size=3, seed=4)
    p = [permutation(5, 4, epoch).tolist() for epoch in range(3)]
    assert sampler.batch(0).tolist() == p[0][:3]
    assert sampler.batch(1).tolist() == p[0][3:] + p[1][:1]  # straddles two epochs
    assert sampler.batch(2).tolist() == p[1][1:4]
    assert sampler.batch(3).tolist() == p[1][4:] + p[2][:2]
    assert sampler.batch(4).tolist() == p[2][2:]
    chex.assert_shape(sampler.batch(0), (3,))
    assert sampler.batch(0).dtype == np.int32


@given(st.integers(1, 40), st.data(), st.integers(0, 2**40), st.integers(1, 4))
@settings(deadline=None)
def test_every_example_comes_once_per_epoch_from_any_step_on(n, data, seed, epochs):
    batch_size = data.draw(st.integers(1, n))
    sampler = EpochSampler(n, batch_size, seed)
    steps = sampler.steps(epochs)
    seen = np.concatenate([sampler.batch(step) for step in range(steps)])
    assert epochs * n <= len(seen) < epochs * n + batch_size
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    for step in data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=8)):  # in any order
        resumed = EpochSampler(n, batch_size, seed)
        np.testing.assert_array_equal(sampler.batch(step), resumed.batch(step))


def test_seeds_and_epochs_differ():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_a_batch_may_be_written_to():
    sampler = EpochSampler(6, 2, 0)
    before = sampler.batch(1).copy()
    sampler.batch(1)[:] = -1
    np.testing.assert_array_equal(sampler.batch(1), before)


def test_steps_is_the_ceiling_of_epochs_times_examples_by_batch():
    assert EpochSampler(4000, 64, 0).steps(16) == 1000
    assert EpochSampler(1000, 64, 0).steps(5) == 79  # 78.125
    assert EpochSampler(30, 3, 0).steps(0.1) == 1  # 0.1 * 30 is 3.0000000000000004 to a computer
    assert EpochSampler(10, 4, 0).steps(0.5) == 2
    assert EpochSampler(30, 3, 0).steps(1e-12) == 1


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "seed", "named"),
    [
        (10, 11, 0, r"\b10\b.*\b11\b"),
        (10, 0, 0, r"batch.size\b.* 0\b"),
        (10, 5, -1, r"seed\b.* -1\b"),
    ],
)
def test_impossible_streams_are_refused(num_examples, batch_size, seed, named):
    with pytest.raises(ResNetJaxError, match=named) as error:
        EpochSampler(num_examples, batch_size, seed)
    assert "\n" not in str(error.value)
