"""Long runs stay flat: a thousand saves, and a hundred restarts of runs killed at random."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from faults import assert_good_bits, assert_same_run, ended, no_orphans, saved, start, wait_until

from resnet_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
SAVES = 1000
# What Orbax and TensorStore keep for themselves of every save, by themselves in a loop too: about
# 50 KiB. Part of it are counters that TensorStore 0.1.86 hands out and never frees.
KEPT_BY_LIBRARIES = 1 / 8  # MiB a save
RESTARTS = 100


def resources() -> tuple[int, float]:
    """Open file handles of this process, and its resident memory in MiB."""
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return len(os.listdir("/proc/self/fd")), int(resident.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")
def test_a_thousand_saves(program, tmp_path, record_property):
    checkpoints, state = Checkpoints(tmp_path), program.init()
    early = handles = memory = None
    for step in range(1, SAVES + 1):
        accuracy = 0.5 + 0.4 * (step == 7)  # one of the first is the best and must stay
        state = state.replace(step=state.step * 0 + step)
        checkpoints.save(state, {"accuracy": accuracy, "loss": 1.0})
        if step == SAVES // 5:
            early = resources()
    handles, memory = resources()
    assert handles <= early[0]
    assert memory < early[1] + KEPT_BY_LIBRARIES * (SAVES - SAVES // 5)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [7, SAVES - 1, SAVES]
    assert list(checkpoints.good_steps()) == [SAVES, SAVES - 1, 7]
    assert saved(checkpoints.restore(program.init(), 7))["step"] == 7
    record_property("saves", SAVES)
    record_property("memory", json.dumps({"MiB at a fifth": early[1], "at the end": memory}))


def test_a_hundred_restarts(undisturbed, program, tmp_path, record_property):
    import multiprocessing

    rng = random.Random(0)
    kills = finished = 0
    run_dir = tmp_path / "run0"
    for number in range(RESTARTS):
        reached = multiprocessing.get_context("forkserver").Value("i", -2)
        process = start(run_dir, reached=reached)
        if number % 10 != 9:
            # From its start on, compilation, steps, saves and evaluation: wherever that falls.
            wait_until(lambda r=reached, p=process: r.value != -2 or p.exitcode is not None)
            time.sleep(rng.uniform(0, 0.8))
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
        code = ended(process)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if run_dir.exists() and (run_dir / "checkpoints").exists():
            assert_good_bits(run_dir, program, undisturbed)
        if code == 0:
            assert_same_run(run_dir, undisturbed)
            assert no_orphans(run_dir)
            finished += 1
            run_dir = tmp_path / f"run{finished}"
    assert finished >= RESTARTS // 10
    assert kills >= RESTARTS // 4
    record_property("restarts", RESTARTS)
    record_property("kills", kills)
