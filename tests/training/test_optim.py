"""Schedules and optimisers against numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import OptimConfig
from resnet_jax.training.optim import make_optimizer, make_schedule


def rates(config: OptimConfig, total: int, steps: list[int]) -> np.ndarray:
    schedule = make_schedule(config, total)
    return np.array([float(schedule(step)) for step in steps])


def test_constant():
    config = OptimConfig(learning_rate=0.3, schedule="constant")
    np.testing.assert_allclose(rates(config, 10, [0, 4, 9]), 0.3, rtol=1e-6)


def test_warmup_rises_in_a_line_and_its_first_step_learns():
    # 4 of 8 steps: 1/5, 2/5, 3/5, 4/5 of the rate, then all of it.
    config = OptimConfig(learning_rate=0.5, schedule="constant", warmup=0.5)
    np.testing.assert_allclose(
        rates(config, 8, [0, 1, 2, 3, 4, 7]), [0.1, 0.2, 0.3, 0.4, 0.5, 0.5], rtol=1e-6
    )


def test_cosine_falls_by_half_a_period():
    # Of 12 steps 4 warm up; a quarter, half and three quarters of the other 8.
    config = OptimConfig(learning_rate=2.0, schedule="cosine", warmup=1 / 3)
    expected = [1 + np.cos(np.pi / 4), 1.0, 1 - np.cos(np.pi / 4), 0.0]
    np.testing.assert_allclose(rates(config, 12, [6, 8, 10, 12]), expected, rtol=1e-6, atol=1e-7)


def test_one_cycle_starts_at_a_25th_peaks_after_the_rise_and_ends_at_nothing():
    config = OptimConfig(learning_rate=1.0, schedule="one_cycle", warmup=0.25)
    # Halfway up a cosine from 0.04 to 1, and halfway down from 1 to almost 0.
    np.testing.assert_allclose(
        rates(config, 80, [0, 10, 20, 50]), [0.04, 0.52, 1.0, 0.5], rtol=1e-4
    )
    assert rates(config, 80, [80])[0] < 1e-5


@pytest.mark.parametrize("total", [1, 2, 3, 7, 49, 98, 1000])
def test_one_cycle_starts_low_and_never_leaves_its_range(total):
    config = OptimConfig(learning_rate=1.0, schedule="one_cycle", warmup=0.0)
    found = rates(config, total, list(range(total)))
    assert found[0] == pytest.approx(0.04)
    assert found.min() > 0
    assert found.max() <= 1.0


def test_two_boundaries_on_one_step_divide_twice():
    config = OptimConfig(learning_rate=1.0, schedule="piecewise", boundaries=(0.5, 0.51))
    np.testing.assert_allclose(rates(config, 10, [4, 6]), [1.0, 0.01], rtol=1e-5)


def test_piecewise_divides_by_ten_at_shares_of_the_run():
    config = OptimConfig(learning_rate=0.1, schedule="piecewise", boundaries=(0.5, 0.75))
    np.testing.assert_allclose(
        rates(config, 100, [0, 49, 51, 74, 76, 99]), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5
    )


def test_piecewise_boundaries_count_the_warmup():
    config = OptimConfig(learning_rate=0.1, schedule="piecewise", boundaries=(0.5,), warmup=0.1)
    np.testing.assert_allclose(rates(config, 100, [49, 51]), [0.1, 0.01], rtol=1e-5)


PARAMS = {"conv": {"kernel": jnp.array([2.0])}, "norm": {"scale": jnp.array([2.0])}}
GRADS = {"conv": {"kernel": jnp.array([1.0])}, "norm": {"scale": jnp.array([1.0])}}


def two_updates(config: OptimConfig) -> list[tuple[float, float]]:
    """Updates of the kernel and of the scale at two steps of the same gradient and parameters."""
    tx = make_optimizer(config, make_schedule(config, 10))
    state, found = tx.init(PARAMS), []
    for _ in range(2):
        updates, state = tx.update(GRADS, state, PARAMS)
        found.append((float(updates["conv"]["kernel"][0]), float(updates["norm"]["scale"][0])))
    return found


def test_sgd_is_pytorchs():
    # v = m v + g: 1, then 0.9 + 1; the kernel's g has weight decay in it: 1 + 0.5 * 2 = 2.
    config = OptimConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.5)
    np.testing.assert_allclose(two_updates(config), [(-0.2, -0.1), (-0.38, -0.19)], rtol=1e-6)


def test_nesterov_looks_ahead():
    # g + m v: 1 + 0.9, then 1 + 0.9 * 1.9.
    config = OptimConfig(learning_rate=0.1, momentum=0.9, nesterov=True)
    np.testing.assert_allclose(two_updates(config), [(-0.19, -0.19), (-0.271, -0.271)], rtol=1e-6)


def test_plain_sgd_has_no_state_but_the_step():
    config = OptimConfig(learning_rate=0.1, momentum=0.0)
    np.testing.assert_allclose(two_updates(config), [(-0.1, -0.1), (-0.1, -0.1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kernel", "scale"),
    [
        # Adam's first step is the sign of the gradient, into which the decay went: 1 + 0.5 * 2.
        ("adam", -0.1, -0.1),
        # Decoupled, the decay adds 0.5 * 2 to the kernel's step of 1.
        ("adamw", -0.2, -0.1),
        ("lion", -0.2, -0.1),
        # And lamb makes each step as long as its parameter: 2.
        ("lamb", -0.2, -0.2),
    ],
)
def test_the_first_step_of_the_others_by_hand(name, kernel, scale):
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5)
    np.testing.assert_allclose(two_updates(config)[0], (kernel, scale), rtol=1e-4)


@pytest.mark.parametrize(("clip", "expected"), [(0.5, 0.5), (100.0, np.sqrt(2))])
def test_clipping_bounds_the_global_norm(clip, expected):
    config = OptimConfig(learning_rate=1.0, momentum=0.0, clip_norm=clip)
    np.testing.assert_allclose(np.hypot(*two_updates(config)[0]), expected, rtol=1e-6)
