"""Long runs stay flat: hundreds of saves, and many restarts of runs killed at random."""

import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest
from faults import assert_good_bits, assert_same_run, ended, no_orphans, start, steps_of, wait_until

import resnet_jax as rj

pytestmark = pytest.mark.slow
SAVES = 200
# What Orbax and TensorStore keep for themselves of every save, by themselves in a loop too: about
# 50 KiB. Part of it are counters that TensorStore 0.1.86 hands out and never frees.
KEPT_BY_LIBRARIES = 1 / 8  # MiB a save
RESTARTS = 30


def resources(process: int) -> tuple[int, float]:
    """Open file handles of a process, and its resident memory in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return len(os.listdir(f"/proc/{process}/fd")), int(resident.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")
def test_hundreds_of_saves(tmp_path):
    """A run that evaluates and saves after each of its steps, looked at from outside."""
    run_dir, early, late = tmp_path / "run", [], []
    options = ["--epochs", str(SAVES), "--batch-size", "60", "--optim.schedule", "constant"]
    process = start(run_dir, *options, "--eval-every", "1", "--log-every", "1000")
    while process.exitcode is None:
        newest = max(steps_of(run_dir), default=0)
        if SAVES // 5 <= newest < SAVES // 5 + 40:
            early.append(resources(process.pid))
        elif SAVES - 40 <= newest < SAVES:
            late.append(resources(process.pid))
        time.sleep(0.05)
    assert ended(process) == 0
    # A save holds a dozen more: only those at rest are the same however loaded the machine is.
    handles_then, handles = (min(open_ for open_, _ in found) for found in (early, late))
    memory_then, memory = (statistics.median(used for _, used in found) for found in (early, late))
    assert handles <= handles_then + 2
    assert memory < memory_then + KEPT_BY_LIBRARIES * (SAVES - SAVES // 5)
    run = rj.Run.open(run_dir)
    assert run.verify().ok
    validation = run.metrics().query("kind == 'validation'")
    assert list(validation["step"]) == list(range(1, SAVES + 1))
    ranked = validation.sort_values(["accuracy", "loss", "step"], ascending=[False, True, True])
    best = ranked["step"].iloc[0]
    assert steps_of(run_dir) == sorted({best, SAVES - 1, SAVES})


def test_many_restarts(undisturbed, tmp_path):
    rng = random.Random(0)
    kills = finished = 0
    run_dir = tmp_path / "run0"
    for number in range(RESTARTS):
        process, began = start(run_dir), time.time()
        if number % 10 != 9:
            # From its start on, compilation, steps, saves and evaluation: wherever that falls.
            log = run_dir / "run.log"
            wait_until(
                lambda log=log, began=began, process=process: (
                    process.exitcode is not None or (log.exists() and log.stat().st_mtime >= began)
                )
            )
            time.sleep(rng.uniform(0, 1.5))
            process.kill()  # if it has not ended
        code = ended(process)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        assert_good_bits(run_dir, undisturbed.kept)
        if code == 0:
            assert_same_run(run_dir, undisturbed)
            assert no_orphans(run_dir)
            finished += 1
            run_dir = tmp_path / f"run{finished}"
    assert finished >= RESTARTS // 10
    assert kills >= RESTARTS // 4
