"""Schedules and optimisers against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import OptimConfig
from resnet_jax.training.optim import make_optimizer, make_schedule, scale_by_layer


def rates(config: OptimConfig, total: int, steps: list[int]) -> np.ndarray:
    """At steps that are counted in int32, as those of a run are."""
    schedule = jax.jit(jax.vmap(make_schedule(config, total)))
    return np.asarray(schedule(jnp.array(steps, jnp.int32)))


@pytest.mark.parametrize(
    ("schedule", "options", "total", "expected"),
    [
        ("constant", {}, 10, {0: 1, 4: 1, 9: 1}),
        # 4 of 8 steps: 1/5, 2/5, 3/5, 4/5 of the rate, then all of it: the first step learns.
        ("constant", {"warmup": 0.5}, 8, {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 1, 7: 1}),
        # Of 12 steps 4 warm up; a quarter, half and three quarters of the other 8.
        (
            "cosine",
            {"warmup": 1 / 3},
            12,
            {6: (1 + np.cos(np.pi / 4)) / 2, 8: 0.5, 10: (1 - np.cos(np.pi / 4)) / 2, 12: 0},
        ),
        # Halfway up a cosine from 0.04 to 1, and halfway down from 1 to 0.04 / 10,000.
        ("one_cycle", {"warmup": 0.25}, 80, {0: 0.04, 10: 0.52, 20: 1, 50: 0.500002, 80: 4e-6}),
        ("piecewise", {"boundaries": (0.5, 0.75)}, 100, {0: 1, 49: 1, 51: 0.1, 74: 0.1, 76: 0.01}),
        # Two boundaries on one step divide twice; they count the warm-up.
        ("piecewise", {"boundaries": (0.5, 0.51)}, 10, {4: 1, 6: 0.01}),
        ("piecewise", {"boundaries": (0.5,), "warmup": 0.1}, 100, {49: 1, 51: 0.1}),
    ],
)
def test_schedules_by_hand(schedule, options, total, expected):
    """In float64, of which a warm-up that was divided in float32 was 1e-8 off."""
    config = OptimConfig(learning_rate=0.3, schedule=schedule, **options)
    with jax.enable_x64(True):
        found = rates(config, total, list(expected))
    np.testing.assert_allclose(found, 0.3 * np.array([*expected.values()]), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 49, 98, 1000])
def test_one_cycle_starts_low_and_never_leaves_its_range(total):
    config = OptimConfig(learning_rate=1.0, schedule="one_cycle", warmup=0.0)
    found = rates(config, total, list(range(total)))
    assert found[0] == pytest.approx(0.04)
    assert found.min() > 0
    assert found.max() <= 1.0


PARAMS = {"conv": {"kernel": jnp.array([2.0])}, "norm": {"scale": jnp.array([2.0])}}
GRADS = {"conv": {"kernel": jnp.array([1.0])}, "norm": {"scale": jnp.array([1.0])}}


def two_updates(config: OptimConfig) -> list[tuple[float, float]]:
    """Updates of the kernel and of the scale at two steps of the same gradient and parameters."""
    tx = make_optimizer(config, make_schedule(config, 10))
    update, state, found = jax.jit(tx.update), tx.init(PARAMS), []
    for _ in range(2):
        updates, state = update(GRADS, state, PARAMS)
        found.append((float(updates["conv"]["kernel"][0]), float(updates["norm"]["scale"][0])))
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # PyTorch's v = m v + g: 1, then 0.9 + 1; decay is in the kernel's g: 1 + 0.5 * 2 = 2.
        ({"momentum": 0.9, "weight_decay": 0.5}, [(-0.2, -0.1), (-0.38, -0.19)]),
        # Nesterov's g + m v: 1 + 0.9, then 1 + 0.9 * 1.9.
        ({"momentum": 0.9, "nesterov": True}, [(-0.19, -0.19), (-0.271, -0.271)]),
        ({"momentum": 0.0}, [(-0.1, -0.1), (-0.1, -0.1)]),
    ],
)
def test_two_steps_of_sgd_by_hand(options, expected):
    found = two_updates(OptimConfig(learning_rate=0.1, **options))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kernel", "scale"),
    [
        # Adam's first step is the sign of the gradient, into which the decay went: 1 + 0.5 * 2.
        ("adam", -0.1, -0.1),
        # Decoupled, the decay adds 0.5 * 2 to the kernel's step of 1.
        ("adamw", -0.2, -0.1),
        ("lion", -0.2, -0.1),
        # And lamb makes a kernel's step as long as the kernel: 2.
        ("lamb", -0.2, -0.1),
    ],
)
def test_the_first_step_of_the_others_by_hand(name, kernel, scale):
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5)
    np.testing.assert_allclose(two_updates(config)[0], (kernel, scale), rtol=1e-4)


@pytest.mark.parametrize(("clip", "expected"), [(0.5, 0.5), (100.0, np.sqrt(2))])
def test_clipping_bounds_the_global_norm(clip, expected):
    config = OptimConfig(learning_rate=1.0, momentum=0.0, clip_norm=clip)
    np.testing.assert_allclose(np.hypot(*two_updates(config)[0]), expected, rtol=1e-6)


def test_a_head_of_ones_own_learns_above_frozen_stages():
    """It was taken for a part of the last stage."""
    updates = {name: {"w": jnp.ones(1)} for name in ("stem", "stage1_unit1", "norm", "classifier")}
    scaled, _ = scale_by_layer(0.5, 1).update(updates, (), updates)
    found = {name: float(update["w"][0]) for name, update in scaled.items()}
    assert found == {"stem": 0, "stage1_unit1": 0, "norm": 0, "classifier": 1}
