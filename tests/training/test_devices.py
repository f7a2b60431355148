"""The same numbers on any number of devices, with no communication but sums."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def on_eight(what: str) -> dict:
    """What `on_devices.py` finds with eight virtual devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    script = Path(__file__).with_name("on_devices.py")
    done = subprocess.run(
        [sys.executable, str(script), what],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    return on_eight("numbers")


@pytest.fixture(scope="module")
def communication():
    return on_eight("communication")


@pytest.fixture(scope="module")
def platforms():
    return on_eight("platforms")


@pytest.mark.parametrize("what", ["float64", "parts"])
def test_losses_and_parameters_are_those_of_one_device(found, what):
    """Whole batches for 20 steps, and batches in two parts for five."""
    one, *others = np.array(found[what]["losses"])
    assert len(others) >= 2
    for losses in others:
        np.testing.assert_allclose(losses, one, rtol=1e-8)
    assert max(found[what]["parameters_apart"]) < 1e-8
    assert max(found[what]["statistics_apart"]) < 1e-8
    assert one[-1] != one[0]


def test_the_first_loss_in_float32(found):
    one, *others = np.array(found["float32"])
    assert len(others) == 3
    np.testing.assert_allclose([*others, found["auto"]], [one] * 4, rtol=1e-5)


def test_bfloat16_on_a_mesh_is_bfloat16_on_one_device(found):
    one, eight = np.array(found["bfloat16"])
    # A mantissa of eight bits. One step: from the second on, differences of rounding have grown.
    np.testing.assert_allclose(eight, one, rtol=1e-2)
    np.testing.assert_allclose(one[0], found["float32"][0], rtol=2e-2)


def test_evaluation_counts_the_same_on_any_number_of_devices(found):
    one, *others = found["confusions"]
    assert np.sum(one) == 500
    assert len(others) == 4
    for confusion in others:
        assert confusion == one


@pytest.mark.parametrize("what", ["auto", "reference", "parts"])
def test_devices_only_add_up_gradients_and_statistics(communication, what):
    """No activation travels: nothing but sums, of arrays no larger than a parameter."""
    of_step = communication[what]
    assert of_step["kinds"] == ["all-reduce"]
    assert of_step["largest"] <= of_step["largest_parameter"]


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_step_lowers_for_every_platform(platforms, name, count):
    assert platforms[name][str(count)] == {
        "platforms": ["cpu", "cuda", "tpu"],
        "devices": count,
    }
