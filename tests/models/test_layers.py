"""Batch norm against numbers worked out by hand, and the initialisers against their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import Affine, BatchNorm, Conv
from resnet_jax.models.layers import he_fan_out, torch_default


def normalised(norm, x):
    """By a new layer in training: the output, and the running statistics after it."""

    @jax.jit
    def run(x):
        variables = norm.init(jax.random.key(0), x, train=False)
        y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        return y, updates["batch_stats"]

    return run(x)


def column(*values: float) -> jax.Array:
    """Images of one pixel and one channel."""
    return jnp.asarray(values, jnp.float32).reshape(-1, 1, 1, 1)


def test_training_normalises_with_the_batch_and_moves_the_running_statistics():
    # 1, 2, 3, 6: mean 3, squared deviations 4, 1, 0, 9: biased variance 14 / 4 = 3.5,
    # unbiased 14 / 3. The running ones start at 0 and 1 and move by a tenth.
    y, stats = normalised(BatchNorm(epsilon=0.5), column(1, 2, 3, 6))
    np.testing.assert_allclose(y.ravel(), np.array([-2, -1, 0, 3]) / 2, rtol=1e-6)
    np.testing.assert_allclose(stats["mean"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [0.9 + 14 / 30], rtol=1e-6)


def test_evaluation_normalises_with_the_running_statistics_and_leaves_them():
    norm = BatchNorm(epsilon=0.0)
    variables = {
        "params": {"scale": jnp.array([3.0]), "bias": jnp.array([1.0])},
        "batch_stats": {"mean": jnp.array([2.0]), "var": jnp.array([4.0])},
    }
    y, updates = norm.apply(variables, column(2, 6), train=False, mutable=["batch_stats"])
    # (2 - 2) / 2 * 3 + 1 and (6 - 2) / 2 * 3 + 1
    np.testing.assert_allclose(y.ravel(), [1, 7], rtol=1e-6)
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])


def test_affine_is_batch_norm_without_the_normalisation():
    variables = {"params": {"scale": jnp.array([3.0]), "bias": jnp.array([1.0])}}
    for train in (True, False):
        y = Affine().apply(variables, column(2, -6), train=train)
        np.testing.assert_array_equal(y.ravel(), [7, -17])


def test_statistics_are_over_batch_and_positions_for_each_channel():
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 2))
    with jax.enable_x64(True):
        y, stats = normalised(BatchNorm(dtype=jnp.float64, param_dtype=jnp.float64), x)
    flat = x.reshape(-1, 2)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-10)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-12)


def test_the_variance_survives_a_large_mean():
    # In float32, E[x^2] - E[x]^2 of numbers around 10,000 has no correct digit.
    x = np.random.default_rng(0).normal(1e4, 1.0, size=(64, 4, 4, 1)).astype(np.float32)
    y, stats = normalised(BatchNorm(), x)
    true = x.astype(np.float64).var(ddof=1)
    np.testing.assert_allclose(stats["var"], [0.9 + 0.1 * true], rtol=1e-3)
    np.testing.assert_allclose(np.std(y), 1, rtol=2e-3)


def test_bfloat16_computes_statistics_in_float32():
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 3), jnp.bfloat16)
    y, stats = normalised(BatchNorm(dtype=jnp.bfloat16), x)
    assert y.dtype == jnp.bfloat16
    assert stats["mean"].dtype == jnp.float32
    mean = np.asarray(x, np.float32).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("initializer", "variance", "largest"),
    [
        # Fan-out of a 3x3 kernel to 128 channels: 1152; He: variance 2 / 1152.
        (he_fan_out, 2 / 1152, np.inf),
        # Fan-in of a 3x3 kernel from 64 channels: 576; PyTorch: U(-1/24, 1/24).
        (torch_default, 1 / 576 / 3, 1 / 24),
    ],
)
def test_initialisers_have_the_variance_of_their_definition(initializer, variance, largest):
    kernel = np.asarray(initializer(jax.random.key(0), (3, 3, 64, 128), jnp.float32))
    np.testing.assert_allclose(kernel.var(), variance, rtol=0.02)
    assert abs(kernel.mean()) < 5 * np.sqrt(variance / kernel.size)
    assert np.abs(kernel).max() <= largest
    if np.isinf(largest):  # normal, and not truncated
        assert np.abs(kernel).max() > 4 * np.sqrt(variance)


@pytest.mark.parametrize(("padding", "side", "corner"), [(0, 2, 9), (None, 4, 4), (2, 6, 1)])
def test_the_fourth_argument_of_a_convolution_is_its_padding(padding, side, corner):
    """It was left out after 0.1.0, and the number of groups stood in its place."""
    kernel = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    y = Conv(1, 3, 1, padding).apply(kernel, jnp.ones((1, 4, 4, 1)))
    assert (y.shape, y[0, 0, 0, 0]) == ((1, side, side, 1), corner)
