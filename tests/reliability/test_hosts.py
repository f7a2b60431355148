"""Several processes train one run, on loopback: the same numbers, and what happens when one dies.

Every process is the command itself on `worker.py`'s small network, in float64.
"""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import portpicker
import pytest
import worker
from faults import command_options, wait_until
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main
from resnet_jax.training.folder import RunFolder
from resnet_jax.training.hosts import LOST

# Twenty steps of twelve images, which one, two and four processes divide.
CONFIG = dataclasses.replace(
    worker.CONFIG,
    model=dataclasses.replace(worker.CONFIG.model, dtype="float64"),
    batch_size=12,
    epochs=4,
    log_every=1,
    eval_every=5,
)
STEPS = 20


@pytest.fixture(autouse=True)
def float32_afterwards() -> Iterator[None]:
    """Looking at a float64 run switches JAX to float64."""
    yield
    jax.config.update("jax_enable_x64", False)


def start(run_dir: Path, count: int, *options: str, each: dict[int, list[str]] | None = None):
    """The processes of a run; ``each`` are options that one of them has alone."""
    command = [sys.executable, worker.__file__, "train", *command_options(CONFIG), "--no-report"]
    command += ["--run-dir", str(run_dir), *options]
    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    processes = []
    for number in range(count):
        more = ["--distributed", "--coordinator", address, "--num-processes", str(count)]
        more += ["--process-id", str(number)]
        processes.append(
            subprocess.Popen(
                [*command, *(more if count > 1 else []), *(each or {}).get(number, [])],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # As the command does, before it imports JAX; worker.py has imported it by then.
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
        )
    return processes


def ends(process: "subprocess.Popen[str]", seconds: float = 300) -> tuple[int, str]:
    """The exit code and what was said of errors by a process that ends within that time."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still running after {seconds} s: {process.communicate()[1]}")
    return process.returncode, errors


def train(run_dir: Path, count: int, *options: str) -> rj.Run:
    for process in start(run_dir, count, *options):
        assert ends(process) == (0, "")
    return rj.Run.open(run_dir)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> rj.Run:
    """The run of one process, that nothing happened to."""
    return train(tmp_path_factory.mktemp("alone") / "run", 1)


def assert_same(run: rj.Run, other: rj.Run) -> None:
    """Every loss, every count, and the final parameters."""
    found, expected = run.metrics(), other.metrics()
    same = ["step", "kind", "accuracy", "split", "checkpoint"]
    assert found[same].equals(expected[same])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-8)
    for checkpoint in ("latest", "best"):
        pairs = zip(
            jax.tree.leaves(run.variables(checkpoint)),
            jax.tree.leaves(other.variables(checkpoint)),
            strict=True,
        )
        for a, b in pairs:
            assert a.dtype == np.float64
            assert np.abs(a - b).max() <= 1e-8 * np.abs(b).max()
    assert run.verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_the_run_of_one(count, alone, tmp_path):
    run = train(tmp_path / "run", count)
    assert len(run.metrics().query("kind == 'train'")) == STEPS
    assert_same(run, alone)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """58 digits as files, and a test split of eight."""
    data = rj.load_dataset("mnist_5k").train
    for split, chosen in (("train", range(0, 4000, 70)), ("test", range(35, 4000, 500))):
        for index in chosen:
            path = tmp_path / "digits" / split / str(data.labels[index]) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[index, :, :, 0]).save(path)
    return tmp_path / "digits"


@pytest.mark.slow
def test_each_process_streams_its_own_rows(folder, tmp_path):
    """Eight test images are a batch of twelve, of which the last process has padding alone."""
    options = ["--data.name", "folder", "--data.dir", str(folder), "--data.subset", "None"]
    held = train(tmp_path / "held", 1, *options, "--data.streaming", "never")
    streamed = train(tmp_path / "streamed", 4, *options, "--data.streaming", "always")
    assert_same(streamed, held)


def has_begun(run_dir: Path) -> bool:
    """A checkpoint is in place and training goes on."""
    return (run_dir / "checkpoints" / "5").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_command_continues(victim, alone, tmp_path):
    processes, run_dir = start(tmp_path / "run", 2), tmp_path / "run"
    wait_until(lambda: has_begun(run_dir), 120)
    processes[victim].kill()
    began = time.monotonic()
    assert ends(processes[1 - victim], 30) == (75, f"resnet-jax: {LOST}\n")
    assert time.monotonic() - began < 30
    assert ends(processes[victim])[0] == -signal.SIGKILL
    # With another number of processes.
    assert_same(train(run_dir, 4 if victim else 1), alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_silent_process_ends_the_other(victim, tmp_path):
    """A machine that hangs closes no connection: only its heartbeat is missing."""
    processes, run_dir = start(tmp_path / "run", 2), tmp_path / "run"
    wait_until(lambda: has_begun(run_dir), 120)
    processes[victim].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert ends(processes[1 - victim], 30) == (75, f"resnet-jax: {LOST}\n")
        assert time.monotonic() - began < 30
    finally:
        processes[victim].kill()
        processes[victim].communicate()


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_stops_all_at_one_step(told, alone, tmp_path):
    processes, run_dir = start(tmp_path / "run", 2), tmp_path / "run"
    wait_until(lambda: has_begun(run_dir), 120)
    processes[told].send_signal((signal.SIGTERM, signal.SIGINT)[told])
    said = [ends(process) for process in processes]
    newest = RunFolder(run_dir).checkpoints.steps()[-1]
    for code, errors in said:
        assert code == 75
        assert len(errors.splitlines()) == 1
        assert f"saved step {newest} of {STEPS}" in errors
    assert newest < STEPS
    assert_same(train(run_dir, 2), alone)


@pytest.mark.slow
def test_what_all_processes_are_told_is_said_by_each_in_one_line(tmp_path):
    cases = {
        "--batch-size 13 cannot be split over 2 devices: give 12 or 14": (["--batch-size", "13"],),
        "process 1 has settings with digest": ([], ["--seed", "1"]),
    }
    for number, (line, (all_of_them, *one)) in enumerate(cases.items()):
        each = {1: one[0]} if one else {}
        for process in start(tmp_path / str(number), 2, *all_of_them, each=each):
            code, errors = ends(process)
            assert code == 1
            assert re.fullmatch(rf"resnet-jax: {re.escape(line)}[^\n]*\n", errors)


def assert_refused(process, line):
    code, errors = ends(process)
    assert code == 1
    assert re.fullmatch(f"resnet-jax: {line}\n", errors)  # "." is no end of line


@pytest.mark.slow
def test_other_data_on_another_host_are_refused(folder, tmp_path):
    changed = tmp_path / "changed"
    changed.mkdir()
    os.system(f"cp -r {folder}/* {changed}")
    next(changed.glob("train/*/*.png")).unlink()
    options = ["--data.name", "folder", "--data.subset", "None", "--data.dir", str(folder)]
    each = {1: ["--data.dir", str(changed)]}
    for process in start(tmp_path / "run", 2, *options, each=each):
        assert_refused(process, "process 1 has data with fingerprint .*")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_in_use_is_refused_by_all(tmp_path):
    with RunFolder(tmp_path / "run").opened_for_writing():
        for process in start(tmp_path / "run", 2):
            assert_refused(process, "run folder .* is being written by .*")


@pytest.mark.slow
def test_without_a_cluster_an_address_is_asked_for(tmp_path):
    (process,) = start(tmp_path / "run", 1, "--distributed")
    assert_refused(process, "--distributed found no cluster .* --process-id I")


@pytest.mark.slow
def test_processes_that_do_not_meet_say_so_in_time(tmp_path):
    began = time.monotonic()
    # Two of three: both that wait for the coordinator, and the coordinator, give up.
    first, second, third = start(tmp_path / "run", 3, "--meet-within", "10")
    third.kill()
    third.communicate()
    for process in (first, second):
        code, errors = ends(process, 60)
        assert code == 75
        assert re.fullmatch(r"resnet-jax: --coordinator [^\n]* did not meet [^\n]*\n", errors)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--process-id 1", "need --distributed"),
        ("--meet-within 60", "need --distributed"),
        ("--distributed --process-id 1", "--process-id 1 needs --coordinator and --num-processes"),
        (
            "--distributed --coordinator host --num-processes 2 --process-id 0",
            "--coordinator host is no address: expected HOST:PORT",
        ),
        (
            "--distributed --coordinator host:1 --num-processes 2 --process-id 2",
            "--process-id 2 makes no sense: give 0 to 1",
        ),
        (
            "--distributed --coordinator host:1 --num-processes 0 --process-id 0",
            "--num-processes 0 makes no sense: give at least 1",
        ),
        ("--distributed --meet-within 0", "--meet-within 0 makes no sense: give at least 1 s"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options, line, capsys):
    assert main(["train", *options.split()]) == 1
    errors = capsys.readouterr().err
    assert line in errors
    assert len(errors.splitlines()) == 1


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ["--coordinator", address, "--num-processes", "2", "--process-id", "0"]
        assert main(["train", "--distributed", *options]) == 1
    errors = capsys.readouterr().err
    assert f"--coordinator {address} cannot be opened (Address already in use)" in errors
    assert len(errors.splitlines()) == 1
