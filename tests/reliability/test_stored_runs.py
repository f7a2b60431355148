"""Runs that version 0.1.0 left half finished: the same command finishes them, as 0.1.0 did."""

import json
import shutil
from pathlib import Path

import pytest

# Version 0.1.0 (commit 0705210) got SIGTERM in the middle of each, when its metrics had train step
# 2 (of float64, validation step 5), and finished a copy: those metrics are what is expected.
STORED = Path(__file__).parent / "stored_runs"

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
    # In float32, with augmentation drawn from the step; stopped within the warm-up, before the
    # average of the weights has its full decay.
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


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "first", "each"),
    [
        ("streamed", 1e-9, 1e-9),
        *(pytest.param(name, 1e-9, 1e-9, marks=pytest.mark.slow) for name in ("folder", "float64")),
        # Another order of float32 sums moves later lines by a millionth; a wrong decay, by a
        # hundredth.
        pytest.param("adamw", 1e-5, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_a_run_of_0_1_0_ends_with_its_losses(name, first, each, tmp_path, python):
    """Its data are accepted, each step has its examples, and each update is the same.

    To within these parts of the first loss after the stop, and of each number.
    """
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).rename(tmp_path / "run")
    before = rows(tmp_path / "run")
    expected = json.loads((STORED / "metrics.json").read_text())[name]
    python("-m", "resnet_jax", *COMMANDS[name].split(), cwd=tmp_path)
    found, stop = rows(tmp_path / "run"), len(before)
    assert found[:stop] == before
    assert found[stop]["kind"] == "train"
    assert found[stop]["loss"] == pytest.approx(expected[stop]["loss"], rel=first)
    for row, as_before in zip(found, expected, strict=True):
        assert as_before.keys() <= row.keys()
        for key in as_before.keys() - {"seconds", "images_per_s"}:
            old = as_before[key]
            new = pytest.approx(old, rel=each) if isinstance(old, float) else old
            assert row[key] == new, (key, as_before)
