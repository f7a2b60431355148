"""The benchmark against PyTorch: how turns are classified, and what its processes load."""

import os
from itertools import cycle
from types import SimpleNamespace

import pytest

from experiments import measuring
from experiments.cpu_speed import benchmark, plot
from experiments.cpu_speed.plot import by_case
from experiments.measuring import in_process
from resnet_jax.ops.heuristics import instruction_set


def test_turns_are_told_by_where_the_cores_are_before_and_after(monkeypatch):
    places = cycle([True, False, True, False, False])  # apart; moved meanwhile; together
    now = [False]
    contender = SimpleNamespace(alive=True, stop=lambda: None)
    contender.time = lambda calls: {"seconds": [1.0 + now[0]] * calls, "peak_mib": 10}

    def far(*_):
        now[0] = next(places)
        return 1000.0 * now[0]  # nanoseconds

    monkeypatch.setattr(benchmark, "Contender", lambda *_: contender)
    monkeypatch.setattr(measuring, "in_process", far)
    case = benchmark.case("a case", "training", 64)
    rows = benchmark.measure(case, ("resnet_jax",), rounds=3)
    found = [(row.get("cores"), row["calls"], row["median_ms"]) for row in rows]
    # Of nine turns, all three that moved count as apart; of the three apart, the third is surplus.
    assert found == [(None, 6, 1000.0), ("apart", 10, 1000.0)]

    asked = []
    now[0] = True
    monkeypatch.setattr(measuring, "in_process", lambda *_: asked.append(1) or 1000.0)
    (row,) = benchmark.measure(case, ("resnet_jax",), rounds=3)
    assert (row["cores"], row["calls"], row["median_ms"]) == ("apart", 6, 2000.0)
    assert len(asked) == 3  # no more tries on a machine whose cores are always apart

    # On a GPU cores do not matter; a call takes several steps, and its seconds are one step's.
    on_gpu = benchmark.case("a case", "training", 64, device="cuda", steps=10)
    contender.time = lambda calls: {"seconds": [0.005] * calls, "peak_mib": 10}
    (row,) = benchmark.measure(on_gpu, ("resnet_jax",), rounds=3)
    assert ("cores" in row, row["calls"], len(asked)) == (False, 3 * round(0.6 / 0.05), 3)

    contender.time = lambda _: {"seconds": [60.0], "peak_mib": 10}
    (hopeless,) = benchmark.measure(case, ("flax",), rounds=3)
    assert (hopeless["calls"], hopeless["median_ms"]) == (1, 60_000.0)

    contender.alive, contender.time = False, None  # a dead contender is asked for nothing
    assert benchmark.measure(case, ("resnet_jax, 2 devices",), rounds=3) == []


def test_contenders_are_compared_where_their_cores_are_alike():
    """A single call, of a contender that is hopeless anywhere, may be compared with any cores."""
    rows = [
        {"case": "a", "contender": "resnet_jax", "calls": 9, "median_ms": 2.0, "cores": "apart"},
        {"case": "a", "contender": "torch eager", "calls": 9, "median_ms": 1.0},
        {"case": "a", "contender": "torch compile", "calls": 1, "median_ms": 8.0},
    ]
    assert by_case(rows) == {}
    assert by_case(rows, "apart")["a"]["speed_up"] == 4


def test_a_table_shows_the_turns_that_more_contenders_took_and_marks_cores_apart(monkeypatch):
    def row(case, contender, ms, cores=None):
        what = {"case": case, "contender": contender, "calls": 9, "peak_mib": 1}
        return what | dict.fromkeys(benchmark.QUARTILES, ms) | ({"cores": cores} if cores else {})

    rows = [row(case, "resnet_jax", 2.0, "apart") for case in "ab"]
    rows += [row(case, "torch eager", 8.0, "apart") for case in "ab"]
    rows += [row(case, "resnet_jax", 1.0) for case in "ab"]
    rows += [row("a", "torch eager", 3.0), row("b", "torch eager", 3.0), row("b", "flax", 9.0)]
    rows += [row("a", "torch compile", 7.0, "apart")]
    monkeypatch.setattr(plot, "read", lambda *_: {"rows": rows})
    assert {case: r["speed_up"] for case, r in plot.measured("avx2").items()} == {"a": 3.5, "b": 3}
    assert [line.split("|")[1] for line in plot.speed("avx2").splitlines()[2:]] == [" a * ", " b "]


def test_two_cores_hand_a_byte_to_each_other():
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one core, or no way to choose one")
    said = in_process("cpu_speed.cores", "round_trip_ns")
    assert 10 < said < 1e8  # from nanoseconds to a scheduler's time slice


def test_results_are_kept_by_the_kind_of_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "CPU_INFO", tmp_path / "cpuinfo")
    for flags, kind in (("avx512f amx_bf16 amx_tile", "amx"), ("avx2", instruction_set())):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        assert measuring.of_processor(tmp_path, "x") == tmp_path / kind / "x.json"


def test_times_stand_under_their_batch(monkeypatch):
    """A measurement that is repeated ends up last in the file."""
    found = [
        {"convolution": c, "batch": n, "pass": "forward", "chosen": "", "ms": {"xla": n}}
        for c, n in (("a", 64), ("b", 256), ("b", 64))
    ]
    monkeypatch.setattr(plot, "read", lambda *_: {"alone": found})
    assert "ms at batch 64, 256" in plot.algorithms("avx2")
    assert "64.00, 256.00" in plot.algorithms("avx2")


def test_pytorch_is_measured_without_jax(python):
    code = """import sys, experiments.cpu_speed.contenders
print({"jax", "flax"} & set(sys.modules))"""
    assert python("-c", code).stdout == "set()\n"
