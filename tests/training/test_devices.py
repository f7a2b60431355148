"""The same numbers on any number of devices, with no communication but sums."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow


COUNTS = (1, 2, 8)


@pytest.fixture(scope="module")
def on_devices(tmp_path_factory, python):
    """What `on_devices.py` finds with that many virtual devices."""
    folder = tmp_path_factory.mktemp("devices")

    def run(count: int, what: str, flags: str = "", **environment: str) -> dict:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count} {flags}"
        script = Path(__file__).with_name("on_devices.py")
        done = python(script, what, folder, XLA_FLAGS=flags.format(folder), **environment)
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def found(on_devices, shared):
    def make(path):
        path.write_text(json.dumps([on_devices(count, "numbers") for count in (*COUNTS, 3)]))

    answers = json.loads(shared("devices", make).read_text())
    return dict(zip((*COUNTS, 3), answers, strict=True))


@pytest.fixture(scope="module")
def communication(on_devices, shared):
    def make(path):
        # XLA writes the texts of what it compiles, and not of what it finds in a cache.
        uncached = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        dumped = "--xla_dump_to={} --xla_dump_hlo_as_text"
        path.write_text(json.dumps(on_devices(8, "communication", dumped, **uncached)))

    return json.loads(shared("communication", make).read_text())


@pytest.fixture(scope="module")
def platforms(on_devices):
    return on_devices(8, "platforms")


@pytest.mark.parametrize("what", ["float64", "parts"])
def test_losses_and_parameters_are_those_of_one_device(found, what):
    """Whole batches for 20 steps, and on one and eight batches in two parts for five."""
    one, *others = (found[count][what] for count in COUNTS if what in found[count])
    assert others
    assert len(one["losses"]) == (20 if what == "float64" else 5)
    for other in others:
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-8)
        assert other["variables"].keys() == one["variables"].keys()
        for name, values in one["variables"].items():
            apart = np.abs(np.subtract(other["variables"][name], values)).max()
            assert apart < 1e-8 * max(np.abs(values).max(), 1e-30), name
    assert one["losses"][-1] != one["losses"][0]


def test_the_first_loss_in_float32(found, communication):
    one, two = (found[count]["float32"]["losses"] for count in (1, 2))
    eight = (communication[name]["losses"] for name in ("reference", "auto"))
    np.testing.assert_allclose([two, *eight], [one] * 3, rtol=1e-5)


def test_bfloat16_on_a_mesh_is_bfloat16_on_one_device(found):
    one, eight = (found[count]["bfloat16"]["losses"] for count in (1, 8))
    # A mantissa of eight bits. One step: from the second on, differences of rounding have grown.
    np.testing.assert_allclose(eight, one, rtol=1e-2)
    np.testing.assert_allclose(one, found[1]["float32"]["losses"], rtol=2e-2)


def test_evaluation_counts_the_same_on_any_number_of_devices(found):
    """Of the same weights, on 500 images, which no batch divides."""
    one, *others = (found[count]["confusion"] for count in (*COUNTS, 3))
    assert np.sum(one) == 500
    assert others == [one] * 3


def test_a_run_is_used_on_devices_that_could_not_train_it(found):
    """Sixteen images cannot be split over three devices; evaluation and prediction pad them."""
    assert "--batch-size 16 cannot be split over 3 devices: give 15 or 18" in found[3]["refusal"]
    one, three = (found[count]["probabilities"] for count in (1, 3))
    np.testing.assert_allclose(three, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["auto", "reference", "parts"])
def test_devices_only_add_up_gradients_and_statistics(communication, what):
    """No activation travels: nothing but sums, of arrays no larger than a parameter."""
    programs = communication[what]
    assert programs["of_the_step"]["kinds"] == ["all-reduce"]
    # Nor in evaluation and whatever else a run compiles.
    assert programs["of_all"]["largest"] <= programs["largest_parameter"]


def test_a_step_writes_its_state_where_the_old_one_was(communication):
    for programs in communication.values():
        # Parameters, their averages and the momentum at least.
        assert programs["donated"] >= programs["arrays"]


@pytest.mark.parametrize(("name", "count"), [("resnet18", 8), ("resnet50", 1)])
def test_the_step_lowers_for_every_platform(platforms, name, count):
    assert platforms[name] == {"platforms": ["cpu", "cuda", "tpu"], "devices": count}
