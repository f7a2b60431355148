"""SIGTERM and SIGINT at any moment: this step is saved, 75, and the same command continues."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import worker
from faults import (
    PROCESSES,
    assert_good_bits,
    assert_same_run,
    ended,
    no_orphans,
    start,
    wait_until,
)

import resnet_jax as rj
from resnet_jax.training.folder import RunFolder

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.slow
def test_signals_at_random_moments(undisturbed, program, tmp_path, record_property):
    """Short delays after a step: between steps, in evaluation, in saves."""
    rng, run_dir, newest, signals = random.Random(0), tmp_path / "run", 0, 0
    for step in (2, 7):
        reached = PROCESSES.Value("i", 0)
        process = start(run_dir, reached=reached)
        wait_until(lambda told=reached, at=step: told.value >= at)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process.pid, rng.choice(SIGNALS))
        assert ended(process) == 75
        signals += 1
        before, newest = newest, assert_good_bits(run_dir, program, undisturbed)
        assert newest > before
        assert f"saved step {newest} of {worker.STEPS}" in (tmp_path / "errors.txt").read_text()
    assert ended(start(run_dir)) == 0
    assert_same_run(run_dir, undisturbed)
    assert no_orphans(run_dir)
    record_property("signals", signals)


@pytest.mark.slow
def test_a_signal_at_every_step(undisturbed, program, tmp_path, record_property):
    rng, run_dir, newest, signals = random.Random(1), tmp_path / "run", 0, 0
    while newest < worker.STEPS - 2:
        reached = PROCESSES.Value("i", 0)
        process = start(run_dir, reached=reached)
        wait_until(lambda told=reached, at=newest: told.value > at)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(process.pid, rng.choice(SIGNALS))
        code = ended(process)
        if code == 0:  # it was in its last step
            break
        assert code == 75
        signals += 1
        newest = assert_good_bits(run_dir, program, undisturbed)
    assert ended(start(run_dir)) == 0
    assert_same_run(run_dir, undisturbed)
    record_property("signals", signals)


# Takes many seconds to compile, which is what happens then.
LARGE = dataclasses.replace(worker.CONFIG, model=rj.ModelConfig(name="resnet50", width=8))


def compiling(run_dir):
    """A process whose main thread compiles, and does not look at signals for a while."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": ""}
    script = f"""
import sys; sys.path.insert(0, {os.path.dirname(worker.__file__)!r})
import jax, test_signals, worker
from pathlib import Path
from jax._src import compiler
compile = compiler.backend_compile_and_load
def telling(*arguments, **more):
    if "train_on_batch" in str(arguments[1].operation.attributes["sym_name"]):
        print("compiles", flush=True)
    return compile(*arguments, **more)
compiler.backend_compile_and_load = telling
worker.shrink()
worker.train(test_signals.LARGE, Path({str(run_dir)!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "compiles\n"
    return process


@pytest.mark.slow
def test_a_signal_during_compilation_saves_the_first_step(tmp_path):
    with compiling(tmp_path / "run") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 75
    assert list(RunFolder(tmp_path / "run").checkpoints.good_steps()) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_ends_it_at_once_while_it_compiles(second, tmp_path):
    with compiling(tmp_path / "run") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None  # the first one waits for the step
        began = time.monotonic()
        process.send_signal(second)
        assert process.wait(timeout=60) == 128 + second
        assert time.monotonic() - began < 1
    assert RunFolder(tmp_path / "run").checkpoints.steps() == []
    with RunFolder(tmp_path / "run").opened_for_writing():
        pass


@pytest.mark.slow
def test_a_second_signal_during_a_save_does_no_harm(undisturbed, program, tmp_path):
    """The first arrives at a step, the second while that step is being written."""
    run_dir = tmp_path / "run"
    for step in (1, 4, 5):
        reached = PROCESSES.Value("i", 0)
        process = start(run_dir, reached=reached)
        wait_until(lambda told=reached, at=step: told.value >= at)
        os.kill(process.pid, signal.SIGTERM)
        saving = partial((run_dir / "checkpoints").glob, ".unfinished-[0-9]*/state*")
        wait_until(lambda it=process, saving=saving: not it.is_alive() or any(saving()))
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)
        assert ended(process) in (128 + signal.SIGTERM, 75)
        assert_good_bits(run_dir, program, undisturbed)
    assert ended(start(run_dir)) == 0
    assert_same_run(run_dir, undisturbed)
    assert no_orphans(run_dir)


@pytest.mark.slow
def test_signals_to_the_command_from_its_first_moment_on(tmp_path):
    """While it imports, opens the data and traces: one line, and never a traceback."""
    from faults import command_options

    command = [sys.executable, worker.__file__, "train", *command_options(), "--run-dir"]
    for number, delay in enumerate((0.3, 0.8, 1.3, 1.8, 2.3, 3.0)):
        with subprocess.Popen(
            [*command, str(tmp_path / str(number))], stderr=subprocess.PIPE, text=True
        ) as process:
            time.sleep(delay)
            process.send_signal(SIGNALS[number % 2])
            _, errors = process.communicate(timeout=60)
        # Before Python has read the command's first lines the system's own rule holds.
        assert process.returncode in (75, -SIGNALS[number % 2]), errors
        if process.returncode == 75:
            assert len(errors.splitlines()) == 1, errors
            assert errors.startswith("resnet-jax: ")
