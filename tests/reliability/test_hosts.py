"""Several processes train one run, on loopback: the same numbers, and what happens when one dies.

Every process is the command itself on `worker.py`'s small network, in float64.
"""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faults
import jax
import numpy as np
import portpicker
import pytest
from faults import ended, errors_of, steps_of, wait_until

import resnet_jax as rj
from resnet_jax.training.distributed import HEARTBEAT_TIMEOUT

pytestmark = pytest.mark.usefixtures("one_unit")
# Twenty steps of twelve images, which one, two, three and four processes divide.
OPTIONS = ["--model.dtype", "float64", "--batch-size", "12", "--epochs", "4", "--eval-every", "5"]
STEPS = 20


class Member(NamedTuple):
    process: Any
    run_dir: Path
    name: str

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ends(self, seconds: float = 600) -> tuple[int, str]:
        """Its exit code and what it said of errors; it must end within that time."""
        return ended(self.process, seconds), errors_of(self.run_dir, self.name)


def start(run_dir: Path, count: int, *options: str, each: dict[int, list[str]] | None = None):
    """The processes of a run; ``each`` are options that one of them has alone."""
    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    members = []
    for number in range(count):
        more = ["--distributed", "--coordinator", address, "--num-processes", str(count)]
        more += ["--process-id", str(number)]
        words = [*OPTIONS, *options, *(more if count > 1 else []), *(each or {}).get(number, [])]
        name = f"{run_dir.name}-{number}-"
        members.append(Member(faults.start(run_dir, *words, name=name), run_dir, name))
    return members


def train(run_dir: Path, count: int, *options: str) -> rj.Run:
    for member in start(run_dir, count, *options):
        assert member.ends() == (0, "")
    return rj.Run.open(run_dir)


@pytest.fixture
def alone(shared: Callable[..., Path]) -> rj.Run:
    """The run of one process, that nothing happened to."""
    return rj.Run.open(shared("alone", lambda folder: train(folder / "run", 1)) / "run")


def assert_same(run: rj.Run, other: rj.Run) -> None:
    """Every loss, every count, and the final parameters."""
    found, expected = run.metrics(), other.metrics()
    same = ["step", "kind", "accuracy", "split", "checkpoint"]
    assert found[same].equals(expected[same])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-8)

    def close(a: jax.Array, b: jax.Array) -> None:
        assert a.dtype == np.float64
        assert np.abs(a - b).max() <= 1e-8 * np.abs(b).max()

    for checkpoint in ("latest", "best"):
        jax.tree.map(close, run.variables(checkpoint), other.variables(checkpoint))
    assert run.verify().ok


@pytest.mark.slow
def test_several_processes_train_the_run_of_one(alone, tmp_path):
    run = train(tmp_path / "run", 4)
    assert len(run.metrics().query("kind == 'train'")) == STEPS
    assert_same(run, alone)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """58 digits as files, and a test split of five; see `options_of`."""
    splits = {"train": range(0, 4000, 70), "test": range(35, 4000, 800)}
    return faults.digits(tmp_path / "digits", **splits)


def options_of(folder: Path) -> list[str]:
    return ["--data.name", "folder", "--data.subset", "None", "--data.dir", str(folder)]


@pytest.mark.slow
def test_each_process_streams_its_own_rows(folder, tmp_path):
    """Five test images are a batch of nine, of which the last process has padding alone."""
    options = options_of(folder)
    held = train(tmp_path / "held", 1, *options, "--data.streaming", "never")
    streamed = train(tmp_path / "streamed", 3, *options, "--data.streaming", "always")
    assert_same(streamed, held)


def begun(run_dir: Path, *options: str, each: dict[int, list[str]] | None = None) -> list[Member]:
    """Two processes of a run, when a checkpoint is in place and training goes on."""
    members = start(run_dir, 2, *options, each=each)
    wait_until((run_dir / "checkpoints" / "5").is_dir, 600)
    return members


def assert_lost(member: Member) -> None:
    """It ends within half a minute, by JAX, with a code on which a scheduler starts it again."""
    assert HEARTBEAT_TIMEOUT + 10 <= 30  # JAX looks every ten seconds
    code, _ = member.ends(120)  # by Gloo alone it would be half an hour
    assert code not in (0, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_command_continues(victim, alone, tmp_path):
    run_dir = tmp_path / "run"
    members = begun(run_dir)
    members[victim].signal(signal.SIGKILL)
    assert_lost(members[1 - victim])
    assert members[victim].ends()[0] == -signal.SIGKILL
    # With another number of processes.
    assert_same(train(run_dir, 3 if victim else 1), alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_silent_process_ends_the_other(victim, tmp_path):
    """A machine that hangs closes no connection: only its heartbeat is missing."""
    run_dir = tmp_path / "run"
    members = begun(run_dir)
    members[victim].signal(signal.SIGSTOP)
    try:
        assert_lost(members[1 - victim])
    finally:
        members[victim].signal(signal.SIGKILL)
        members[victim].ends()
    assert rj.Run.open(run_dir).verify().ok
    assert steps_of(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_stops_all_at_one_step(told, alone, tmp_path):
    run_dir = tmp_path / "run"
    members = begun(run_dir)
    members[told].signal((signal.SIGTERM, signal.SIGINT)[told])
    said = [member.ends() for member in members]
    newest = steps_of(run_dir)[-1]
    for code, errors in said:
        assert code == 75
        assert 1 <= len(errors.splitlines()) <= 2
        assert re.search(rf"\bstep {newest}\b", errors.splitlines()[-1])
    assert newest < STEPS
    assert_same(train(run_dir, 2 - told), alone)


def assert_refused(code: int, errors: str, *words: str) -> None:
    """With 1 and one line, in which these words are."""
    assert code == 1
    assert re.fullmatch(r"resnet-jax: [^\n]*\n", errors), errors
    for word in words:
        assert re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", errors), (word, errors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "each", "words"),
    [
        (["--batch-size", "13"], {}, ["--batch-size", "13", "12", "14"]),
        ([], {1: ["--seed", "1"]}, ["process 1"]),
        ([], {0: ["--seeds", "2"], 1: ["--seeds", "3"]}, ["run folders", "--seeds"]),
    ],
)
def test_what_all_processes_are_told_is_said_by_each_in_one_line(options, each, words, tmp_path):
    for member in start(tmp_path / "run", 2, *options, each=each):
        assert_refused(*member.ends(), *words)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.mark.slow
def test_other_data_on_another_host_are_refused(folder, tmp_path):
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    next(changed.glob("train/*/*.png")).unlink()
    each = {1: ["--data.dir", str(changed)]}
    for member in start(tmp_path / "run", 2, *options_of(folder), each=each):
        assert_refused(*member.ends(), "process 1", "data")
    assert not (tmp_path / "run").exists()


def test_a_missing_data_folder_of_one_process_is_everybodys_failure(folder, tmp_path):
    each = {1: ["--data.dir", str(tmp_path / "nowhere")]}
    waiting, failing = start(tmp_path / "run", 2, *options_of(folder), each=each)
    failed = failing.ends()
    assert_refused(*failed, str(tmp_path / "nowhere"))
    assert waiting.ends() == failed
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rotten_file_among_one_processs_rows_is_everybodys_failure(folder, tmp_path):
    copy, run_dir = Path(shutil.copytree(folder, tmp_path / "copy")), tmp_path / "run"
    options = [*options_of(folder), "--data.streaming", "always", "--epochs", "3000"]
    waiting, failing = begun(run_dir, *options, each={1: ["--data.dir", str(copy)]})
    for file in copy.glob("train/*/*.png"):
        file.write_bytes(b"rotten")
    failed = failing.ends()
    assert_refused(*failed, str(copy))
    assert waiting.ends() == failed
    assert rj.Run.open(run_dir).verify().ok


@pytest.mark.slow
def test_a_folder_in_use_is_refused_by_all(tmp_path):
    (holder,) = start(tmp_path / "run", 1, "--seed", "3")
    wait_until(lambda: (tmp_path / "run/config.yaml").exists())
    holder.signal(signal.SIGSTOP)  # it is there, and does not go on
    try:
        for member in start(tmp_path / "run", 2, "--seed", "3"):
            assert_refused(*member.ends(), str(tmp_path / "run"))
    finally:
        holder.signal(signal.SIGKILL)
        holder.ends()


@pytest.mark.slow
def test_without_a_cluster_an_address_is_asked_for(tmp_path):
    (member,) = start(tmp_path / "run", 1, "--distributed")
    assert_refused(*member.ends(), "--coordinator", "--num-processes", "--process-id")


@pytest.mark.slow
def test_processes_that_do_not_meet_say_so_in_time(tmp_path):
    began = time.monotonic()
    # Two of three: both that wait for the coordinator, and the coordinator, give up.
    first, second, third = start(tmp_path / "run", 3, "--meet-within", "3")
    third.signal(signal.SIGKILL)
    assert ended(third.process) == -signal.SIGKILL
    for member in (first, second):
        code, errors = member.ends(120)
        assert code not in (0, 2)
        assert re.fullmatch(r"resnet-jax: [^\n]*--coordinator [^\n]*\n", errors)
    assert time.monotonic() - began < 120  # by default they wait for five minutes


def test_a_port_in_use_is_one_line(command):
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ["--coordinator", address, "--num-processes", "2", "--process-id", "0"]
        code, _, errors = command("train", "--distributed", *options)
    assert_refused(code, errors, "--coordinator", address)
