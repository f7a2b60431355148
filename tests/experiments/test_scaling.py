"""Scaling on paper: the terms against numbers worked out by hand; costs measured once."""

import json
from functools import partial

import pytest

from experiments.measuring import read_rows
from experiments.scaling import paper
from experiments.scaling.paper import LINK_SHARE, Level, Machine, Network, Step, network
from experiments.tables import ROOT


def fast(n: int, **other) -> Level:
    """Return a link on which a gigabyte takes a second."""
    return Level(n, 1e9 / LINK_SHARE, **other)


@pytest.mark.parametrize(
    ("level", "size", "n", "seconds"),
    [
        # A ring of two: each sends half and gets half, then the sums of the halves: 2 messages.
        (fast(2, latency=0.001), 1e9, 2, 1.0 + 2 * 0.001),
        (fast(2, latency=0.001), 1e9, 1, 0),
        # A ring: 2 x 63/64 of the bytes in 126 messages; a tree: twice the bytes in 2 x 6 messages.
        (fast(64, latency=1e-3), 100e9, 64, 100 * 126 / 64 + 0.126),
        (fast(64, latency=1e-3), 4, 64, 0.012),
        # A torus of 16 x 16: there and back along two axes, 8 hops each way.
        (fast(256, latency=1e-6, axes=2), 4, 256, 32e-6),
        (fast(64, latency=1e-6, axes=3), 4, 64, 12e-6),
    ],
)
def test_an_all_reduce_takes_the_faster_way(level, size, n, seconds):
    assert level.all_reduce(size, n) == pytest.approx(seconds, rel=1e-3)


def machine(**other) -> Machine:
    settings = {"title": "M", "flops": 6e12, "share": 0.5, "devices_per_host": 4, "cores": 10}
    settings |= {"levels": (fast(4, latency=0.0), fast(2, latency=0.0)), "storage": 1e12}
    return Machine(**settings | {"batch": 10} | other)


NET = Network(parameters=250_000_000, multiply_adds=1_000_000_000, norms=(8, 8))


def test_hosts_add_up_what_their_devices_added_up():
    # Adding up 1 GB takes 1.5 s among four devices, and then 1 s between the two hosts.
    assert machine().all_reduce(1e9, 8) == pytest.approx(1.5 + 1.0)
    assert machine().all_reduce(1e9, 4) == pytest.approx(1.5)
    with pytest.raises(AssertionError, match="fewer"):
        machine().all_reduce(1e9, 16)


def test_the_terms_of_a_step(monkeypatch):
    monkeypatch.setattr(paper, "decoded_per_s", lambda: 100.0)
    slow = machine(levels=(fast(8, latency=0.5),))
    step = slow.step(NET, 2, 10)
    # 6 GFLOP an image at 3 TFLOP/s: 500 images/s.
    assert step.compute == pytest.approx(10 / 500)
    assert step.gradients == pytest.approx(1.0 + 2 * 0.5)
    # Two layers, four all-reduces each, of two messages each.
    assert step.statistics == pytest.approx(2 * 4 * 2 * 0.5, rel=1e-6)
    # Both devices are on one host of ten cores.
    assert step.input == pytest.approx(20 / 1000)
    assert step.seconds == pytest.approx(step.compute + step.gradients + step.statistics)
    assert slow.step(NET, 8, 10).input == pytest.approx(40 / 1000)
    # Decoding counts as computing if the device is the host's processor.
    step = machine(devices_per_host=1, decodes_itself=True).step(NET, 4, 10)
    assert step.input == 0
    assert step.compute == pytest.approx(10 / 500 + 10 / 1000)


def test_a_step_takes_the_longer_of_input_and_the_rest():
    for terms, seconds, bound in (
        ((3, 1, 1, 4), 5, "compute"),  # read ahead, so that no device waits
        ((3, 1, 1, 6), 6, "input"),
        ((1, 2, 3, 4), 6, "statistics"),
        ((1, 3, 1, 0), 5, "gradients"),
    ):
        assert (Step(*terms).seconds, Step(*terms).bound) == (seconds, bound)


def test_a_network_has_torchvisions_counts():
    found = network(50)
    assert (found.parameters, found.multiply_adds) == (25_557_032, 4_089_184_256)
    assert len(found.norms) == 53


def test_what_the_page_says_in_words_is_so():
    for name in paper.machines():
        for batch in ("grows", "stays"):
            steps = [paper.step_of(name, batch, n) for n in paper.DEVICES]
            assert steps[0].bound == "compute"
            assert all(step.bound != "gradients" for step in steps)  # never the longest term


@pytest.mark.slow
def test_quick_measures_and_does_not_time_what_the_cache_holds(tmp_path, python):
    quick = partial(
        python, "-m", "experiments.scaling.cost", "--quick", "--runs", tmp_path, cwd=ROOT
    )
    quick()
    compiled, steps = read_rows(tmp_path / "quick.jsonl")
    assert (compiled["part"], steps["part"]) == ("compile", "steps")
    assert compiled["compile_cpu_s"] > 0.1
    assert steps["step_ms"] > 0.1
    (tmp_path / "quick.jsonl").write_text(json.dumps(steps))
    assert "the cache holds this step" in quick(code=1).stderr


COUNT = """
import re, jax, numpy as np, optax, resnet_jax as rj
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.asarray(jax.devices()), ("data",))
model = rj.ResNet(stage_sizes=(2, 2), unit=rj.BasicUnit, width=4, lowering="reference")
images = np.zeros((16, 28, 28, 3), np.float32)
state = rj.TrainState.create(model, optax.sgd(0.1), jax.random.key(0), images[:1])
state = jax.device_put(state, NamedSharding(mesh, P()))
batch = jax.device_put(rj.Batch(images, np.zeros(16, int)), NamedSharding(mesh, P("data")))
program = jax.jit(rj.train_step).lower(state, batch).compile().as_text()
lines = re.findall(r".* all-reduce(?:-start)?\\(.*", program)
print(sum("norm" in line.partition("op_name=")[2] for line in lines))
print(len(jax.tree.leaves(state.batch_stats)) // 2)
"""


@pytest.mark.slow
def test_four_all_reduces_for_each_batch_norm(python):
    answer = python("-c", COUNT, cwd=ROOT, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    of_norms, layers = map(int, answer.stdout.split())
    # XLA may merge the all-reduces of a projection's norm with a neighbour's.
    assert layers == 10
    assert paper.ALL_REDUCES * (layers - 1) <= of_norms <= paper.ALL_REDUCES * layers
