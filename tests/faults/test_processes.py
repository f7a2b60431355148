"""Of several processes, one that fails or is killed ends the others, as what it is.

Each process is the command itself, on loopback, on a few pictures of noise.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import portpicker
import pytest
from PIL import Image

import resnet_jax as rj

OPTIONS = ["quickstart", "--no-report", "--data.name", "folder", "--data.subset", "None"]
OPTIONS += ["--data.streaming", "always", "--model.width", "2", "--model.lowering", "reference"]
OPTIONS += ["--batch-size", "4", "--log-every", "50", "--eval-every", "10"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training pictures and four for the test, of two classes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


def start(run_dir: Path, count: int, *options: str, last: tuple[str, ...] = ()):
    """The processes of a run; the ``last`` one gets options of its own."""
    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    processes = []
    for number in range(count):
        command = [sys.executable, "-m", "resnet_jax", "train", *OPTIONS, *options]
        command += ["--run-dir", str(run_dir)]
        if count > 1:
            command += ["--distributed", "--coordinator", address, "--num-processes", str(count)]
            command += ["--process-id", str(number)]
        if number == count - 1:
            command += last
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
    return processes


def ends(process: "subprocess.Popen[str]", seconds: float = 300) -> tuple[int, str]:
    """The exit code and the errors of a process, which ends within that time."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, errors


def train(run_dir: Path, count: int, *options: str) -> rj.Run:
    for process in start(run_dir, count, *options):
        assert ends(process) == (0, "")
    return rj.Run.open(run_dir)


def wait_for(path: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.01)


def test_a_missing_data_folder_of_one_process_is_everybody_s_failure(pictures, tmp_path):
    missing = str(tmp_path / "nowhere")
    waiting, failing = start(
        tmp_path / "run", 2, "--data.dir", str(pictures), last=("--data.dir", missing)
    )
    code, line = ends(failing)
    assert code == 1
    assert missing in line
    assert ends(waiting, 60) == (1, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rotten_file_among_one_process_s_rows_is_everybody_s_failure(pictures, tmp_path):
    copy, run_dir = Path(shutil.copytree(pictures, tmp_path / "copy")), tmp_path / "run"
    waiting, failing = start(
        run_dir, 2, "--data.dir", str(pictures), "--epochs", "3000", last=("--data.dir", str(copy))
    )
    wait_for(run_dir / "checkpoints/10")
    for file in copy.glob("train/*/*.png"):
        file.write_bytes(b"rotten")
    code, line = ends(failing)
    assert code == 1
    assert str(copy) in line
    assert ends(waiting, 60) == (1, line)
    assert rj.Run.open(run_dir).verify().ok


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> rj.Run:
    return train(tmp_path_factory.mktemp("undisturbed") / "run", 2, *options_of(pictures))


def options_of(pictures: Path) -> list[str]:
    return ["--data.dir", str(pictures), "--epochs", "24"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_command_goes_on(
    victim, pictures, undisturbed, tmp_path
):
    options, run_dir = options_of(pictures), tmp_path / "run"
    processes = start(run_dir, 2, *options)
    wait_for(run_dir / "checkpoints/10")
    processes[victim].kill()
    code, errors = ends(processes[1 - victim], 45)
    assert code not in (0, 1, 2, 75), errors
    ends(processes[victim])
    run = train(run_dir, 2, *options)
    for mine, other in zip(
        jax.tree.leaves(run.variables("latest")),
        jax.tree.leaves(undisturbed.variables("latest")),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, other)
    assert run.verify().ok
