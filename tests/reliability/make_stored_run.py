"""Makes the stored runs that later versions must open and finish, with what they say of themselves.

Command:   python tests/reliability/make_stored_run.py [NAME ...]
NAME is `whole`, for the finished run, or one of the half-finished ones of test_stored_runs.py.
Run it only when the format of a run's folder changes on purpose; keep the older ones then. Those
that are there were made by version 0.1.0, at commit 0705210.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import test_moves
import test_stored_runs
from PIL import Image
from test_moves import digest
from test_stored_runs import COMMANDS, STORED, command, copied, finished_by_the_command

import resnet_jax as rj

CONFIG = rj.TrainConfig(
    model=rj.ModelConfig(width=2),
    data=rj.DataConfig(name="mnist_5k", subset=(100, 50, 50)),
    optim=rj.OptimConfig(learning_rate=0.05),
    epochs=2,
    batch_size=20,
    ema=0.9,
    eval_every=10,
)
# Each half-finished run gets its signal when this line is in its metrics.
STOPPED_AFTER = {
    "folder": (2, "train"),
    "streamed": (2, "train"),
    "adamw": (2, "train"),
    "float64": (5, "validation"),
}
MACHINE = (".lock", "run.log")  # of this machine alone


def whole_run() -> None:
    """Trains the finished run, and writes both."""
    shutil.rmtree(test_moves.STORED, ignore_errors=True)
    run = rj.train(CONFIG, test_moves.STORED, quiet=True)
    for name in MACHINE:
        (test_moves.STORED / name).unlink(missing_ok=True)
    found = run.evaluate("test")
    test_moves.EXPECTED.write_text(
        json.dumps(
            {
                "latest": digest(run.variables("latest")),
                "best": digest(run.variables("best")),
                "rows": len(run.metrics()),
                "step": int(run.metrics()["step"].max()),
                "correct": found.correct,
                "loss": found.loss,
            },
            indent=1,
        )
        + "\n"
    )


def picture(kind: str, number: int) -> np.ndarray:
    """A disc, stripes or squares: uint8[H, W, 3], a size and colours for each number."""
    rng = np.random.default_rng([("discs", "squares", "stripes").index(kind), number])
    height, width = rng.integers(14, 30, 2)
    y, x = np.mgrid[:height, :width]
    middle, radius = rng.uniform(0.3, 0.7, 2) * (height, width), rng.uniform(4, 7)
    marked = {
        "discs": np.hypot(y - middle[0], x - middle[1]) < radius,
        "squares": np.maximum(abs(y - middle[0]), abs(x - middle[1])) < radius,
        "stripes": (x + number) % 6 < 3,
    }[kind]
    colours = rng.integers(0, 256, (2, 3))
    return np.where(marked[..., None], colours[0], colours[1]).astype(np.uint8)


def write_pictures(root: Path, counts: dict[str, range]) -> None:
    """Folders of PNG, BMP and PPM files, without loss: in colour, grey, and with a palette."""
    shutil.rmtree(root, ignore_errors=True)
    for split, numbers in counts.items():
        for kind in ("discs", "squares", "stripes"):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in numbers:
                image = Image.fromarray(picture(kind, number))
                if number % 6 == 3:
                    image = image.convert("L")
                if number % 6 == 4:
                    image = image.quantize(4)
                suffix = {1: "bmp", 2: "ppm"}.get(number % 6, "png")
                image.save(folder / f"{number:02}.{suffix}")


def begin(name: str, folder: Path) -> None:
    """Runs the command, and sends SIGTERM when the line is there: it saves a step and ends."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    metrics, awaited = folder / "run/metrics.jsonl", STOPPED_AFTER[name]
    with subprocess.Popen(
        [sys.executable, "-m", "resnet_jax", *command(name)], cwd=folder, env=environment
    ) as process:
        while process.poll() is None:
            lines = metrics.read_text().splitlines()[:-1] if metrics.exists() else []
            found: list[Any] = [json.loads(line) for line in lines]
            if awaited in {(row["step"], row["kind"]) for row in found}:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.001)
    assert process.returncode == 75, f"{name} was too quick: start this again"


def half_finished_run(name: str) -> list[dict[str, Any]]:
    """Begins a run, stores it, finishes a copy, and returns the metrics of that."""
    shutil.rmtree(STORED / name, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as second:
        shutil.copytree(STORED, folder, dirs_exist_ok=True)
        begin(name, Path(folder))
        for file in MACHINE:
            Path(folder, "run", file).unlink()
        shutil.copytree(Path(folder, "run"), STORED / name)
        copied(name, Path(second))
        return finished_by_the_command(name, Path(second))


def main() -> None:
    """Makes those named, or all."""
    names = sys.argv[1:] or ["whole", *COMMANDS]
    if "whole" in names:
        whole_run()
    expected = test_stored_runs.EXPECTED
    metrics = json.loads(expected.read_text()) if expected.exists() else {}
    if {"folder", "streamed"} & set(names):
        write_pictures(STORED / "pictures", {"": range(12)})
        splits = {"train": range(7), "val": range(7, 9), "test": range(9, 11)}
        write_pictures(STORED / "split_pictures", splits)
    for name in COMMANDS:
        if name in names:
            metrics[name] = half_finished_run(name)
    body = [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in metrics[name]) + "\n ]"
        for name in COMMANDS
    ]
    expected.write_text("{\n" + ",\n".join(body) + "\n}\n")


if __name__ == "__main__":
    main()
