"""SIGTERM and SIGINT at any moment: this step is saved, 75, and the same command continues."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import worker
from faults import (
    TRAIN,
    assert_good_bits,
    assert_same_run,
    ended,
    no_orphans,
    start,
    steps_of,
    wait_until,
)

import resnet_jax as rj

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def assert_short(errors: str) -> list[str]:
    """What a signal makes the command say: that it stops, at most, and where it stopped."""
    lines = errors.splitlines()
    assert 1 <= len(lines) <= 2, errors
    assert all(line.startswith("resnet-jax: ") for line in lines), errors
    return lines


def signalled(run_dir, number: int, delay: float = 0):
    """A process that gets a signal when it has done a step."""
    moment = worker.Moment("line", "train", after=delay)
    return start(run_dir, moment=moment, act=partial(worker.strike, number))


@pytest.mark.slow
def test_a_signal_at_every_step(undisturbed, tmp_path):
    """With short delays: between steps, in evaluations, in saves."""
    rng, run_dir, newest, signals = random.Random(1), tmp_path / "run", 0, 0
    while newest < worker.STEPS - 2:
        delay = rng.choice((0, 0.02, 0.1))
        code = ended(signalled(run_dir, SIGNALS[signals % 2], delay))
        if code == 0:  # it was in its last step
            break
        assert code == 75
        signals += 1
        before, newest = newest, assert_good_bits(run_dir, undisturbed.kept)
        assert newest > before
        lines = assert_short((tmp_path / "errors.txt").read_text())
        assert re.search(rf"\bstep {newest}\b", lines[-1])
    assert signals >= 3
    assert ended(start(run_dir)) == 0
    assert_same_run(run_dir, undisturbed)
    assert no_orphans(run_dir)


@contextmanager
def compiling(tmp_path, name="resnet50") -> Iterator["subprocess.Popen[str]"]:
    """The command while XLA compiles its step, which takes many seconds of a large network."""
    modules = tmp_path / "modules"  # XLA writes each there before it compiles it
    shutil.rmtree(modules, ignore_errors=True)
    flags = f"{os.environ['XLA_FLAGS']} --xla_dump_to={modules}"
    environment = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": flags}
    large = ["--model.name", name, "--model.width", "8"]
    with subprocess.Popen(
        [*TRAIN, *large, "--run-dir", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        wait_until(lambda: any(modules.glob("*train*before_optimizations*")))
        yield process


@pytest.mark.slow
def test_a_signal_during_compilation_saves_the_first_step(tmp_path):
    with compiling(tmp_path, "resnet26") as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 75
    assert re.search(r"\bstep 1\b", assert_short(errors)[-1])
    assert steps_of(tmp_path / "run") == [1]
    assert rj.Run.open(tmp_path / "run").verify().ok


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_while_it_compiles(tmp_path):
    for second in SIGNALS:  # in one folder, which is free again
        with compiling(tmp_path) as process:
            process.send_signal(signal.SIGTERM)
            assert "stopping after this step" in process.stderr.readline()
            assert process.poll() is None
            began = time.monotonic()
            process.send_signal(second)
            assert process.wait(timeout=60) in (128 + second, -second)
            assert time.monotonic() - began < 5  # compiling takes several times as long
        assert steps_of(tmp_path / "run") == []


@pytest.mark.slow
def test_a_second_signal_during_a_save_does_no_harm(undisturbed, tmp_path):
    """The first arrives at a step, the second while that step is being written."""
    run_dir = tmp_path / "run"

    def writes() -> bool:
        return any(not path.name.isdigit() for path in (run_dir / "checkpoints").glob("*"))

    for _ in range(3):
        for left in (run_dir / "checkpoints").glob(".unfinished*"):  # it is not the next one's
            shutil.rmtree(left)
        process = signalled(run_dir, signal.SIGTERM)
        wait_until(lambda it=process: not it.is_alive() or writes())
        process.terminate()  # if it is there still
        assert ended(process) in (128 + signal.SIGTERM, -signal.SIGTERM, 75)
        assert_good_bits(run_dir, undisturbed.kept)
    assert ended(start(run_dir)) == 0
    assert_same_run(run_dir, undisturbed)
    assert no_orphans(run_dir)


@pytest.mark.slow
def test_signals_to_the_command_from_its_first_moment_on(tmp_path):
    """While it imports, opens the data and traces: a line or two, and never a traceback."""
    codes = set()
    for delay in (0.3, 0.9, 1.6, 2.6, None):  # None: when both are at work, however slow they are
        with ExitStack() as running:
            processes = []
            for number in SIGNALS:
                run_dir = tmp_path / f"{delay}-{number}"
                words = [*TRAIN, "--epochs", "3000", "--run-dir", str(run_dir)]
                processes.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
                running.callback(processes[-1].kill)
            if delay is None:
                wait_until(lambda: len([*tmp_path.glob("None-*/run.log")]) == len(SIGNALS))
            else:
                time.sleep(delay)
            for process, number in zip(processes, SIGNALS, strict=True):
                process.send_signal(number)
            for process, number in zip(processes, SIGNALS, strict=True):
                _, errors = process.communicate(timeout=300)
                # Before Python has read the command's first lines the system's own rule holds.
                assert process.returncode in (75, -number), errors
                if process.returncode == 75:
                    assert_short(errors)
                codes.add(process.returncode)
    assert 75 in codes
