"""Runs that version 0.1.0 left half finished: the same command finishes them, as 0.1.0 did."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax.cli import main

# Version 0.1.0 (commit 0705210) got SIGTERM in the middle of each, when its metrics had train step
# 2 (of float64, validation step 5), and finished a copy: those metrics are what is expected.
STORED = Path(__file__).parent / "stored_runs"
EXPECTED = STORED / "metrics.json"

# To be finished in a folder that has `pictures`, `split_pictures` and `run` in it.
TINY = "--model.width 2 --log-every 1 --no-report --run-dir run"
# In float64, where every loss follows from weights, order and images alone to 1e-9: nothing random
# is drawn but the order, no rate has a warm-up, and pixels are scaled by what is exact, since 0.1.0
# does these in float32.
EXACT = (
    "--model.dtype float64 --data.mean 0 --data.std 0.25 --optim.learning-rate 0.005 "
    f"--optim.schedule cosine --optim.warmup 0 {TINY}"
)
COMMANDS = {
    # Pictures of several sizes and kinds, which the command splits.
    "folder": (
        "train folder --data.dir pictures --data.image-size 16 --model.stem small --batch-size 8 "
        f"--epochs 3 --eval-every 6 {EXACT}"
    ),
    # Pictures that are split, and stay on disk.
    "streamed": (
        "train folder --data.dir split_pictures --data.streaming always --data.image-size 16 "
        "--data.fit pad --model.stem small --model.lowering reference --batch-size 7 --epochs 4 "
        f"--eval-every 5 {EXACT}"
    ),
    # Stopped within the warm-up, before the average has its full decay.
    "adamw": (
        "train quickstart --data.subset 60 20 20 --augment.crop 2 --augment.flip --batch-size 12 "
        "--epochs 4 --eval-every 5 --optim.name adamw --optim.learning-rate 0.02 "
        "--optim.no-nesterov --optim.schedule cosine --optim.warmup 0.5 --ema 0.5 "
        f"--model.stem small --model.lowering reference {TINY}"
    ),
    "float64": (
        "train quickstart --data.subset 60 20 20 --batch-size 6 --epochs 2 --eval-every 5 "
        "--augment.shift 0 --augment.rotation 0 --augment.scale 0 --augment.shear 0 "
        f"{EXACT}"
    ),
}


@pytest.fixture(autouse=True)
def small_network() -> None:
    """The stored runs are of a whole ResNet-18."""


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def copied(name: str, to: Path) -> list[dict]:
    """Puts the pictures and the run where the command expects them; the run's metrics so far."""
    shutil.copytree(STORED, to, dirs_exist_ok=True)
    (to / name).rename(to / "run")
    return rows(to / "run")


def assert_as_before(found: list[dict], expected: list[dict], rel: float) -> None:
    """The same lines, whose numbers are the same to within ``rel``."""
    for row, as_before in zip(found, expected, strict=True):
        assert as_before.keys() <= row.keys()
        for key in as_before.keys() - {"seconds", "images_per_s"}:
            old = as_before[key]
            new = pytest.approx(old, rel=rel) if isinstance(old, float) else old
            assert row[key] == new, (key, as_before)


@pytest.mark.parametrize(
    "name",
    ["streamed", *(pytest.param(n, marks=pytest.mark.slow) for n in ("folder", "float64"))],
)
def test_a_run_of_0_1_0_ends_with_its_losses(name, tmp_path):
    """Its data are accepted, each step has its examples, and each update is the same."""
    before, expected = copied(name, tmp_path), json.loads(EXPECTED.read_text())[name]
    assert len(before) < len(expected)
    # In a process of its own: float64 is a setting of the process.
    words = [sys.executable, "-m", "resnet_jax", *COMMANDS[name].split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "run")
    assert found[: len(before)] == before
    assert_as_before(found, expected, rel=1e-9)


@pytest.mark.slow
def test_a_run_of_0_1_0_goes_on_with_adamw_within_the_warm_up(tmp_path, monkeypatch):
    """In float32, with an average of the weights, and augmentation drawn from the step."""
    before, expected = copied("adamw", tmp_path), json.loads(EXPECTED.read_text())["adamw"]
    monkeypatch.chdir(tmp_path)
    assert main(COMMANDS["adamw"].split()) == 0
    found, first = rows(tmp_path / "run"), len(before)
    assert found[:first] == before
    assert found[first]["kind"] == "train"
    assert found[first]["loss"] == pytest.approx(expected[first]["loss"], rel=1e-5)
    # Another order of float32 sums moves later lines by a millionth; a wrong decay, by a hundredth.
    assert_as_before(found, expected, rel=1e-4)
