"""A run moves: to another number of devices, and to a later version of this package."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import resnet_jax as rj
from resnet_jax.training.checkpoint import Checkpoints

STORED = Path(__file__).parent / "stored_run"
# What the stored run said of itself when it was made, by make_stored_run.py.
EXPECTED = Path(__file__).parent / "stored_run.json"


@pytest.fixture(autouse=True)
def small_network() -> None:
    """The stored run is of a whole ResNet-18."""


ON_DEVICES = """
import os, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import dataclasses, json, jax, worker
from test_moves import digest
import resnet_jax as rj
worker.shrink()
config = dataclasses.replace(worker.CONFIG, batch_size=8, epochs=3, eval_every=5)
assert jax.device_count() == int(sys.argv[2]), jax.devices()
run_dir = Path(sys.argv[1])
if sys.argv[3] == "begin":
    from resnet_jax.training.loop import StoppedError
    from resnet_jax.training.program import Program
    train, steps = Program.train, []
    def stopping(self, *args):
        steps.append(1)
        if len(steps) == 12:
            raise SystemExit(0)  # after the checkpoint of step 10
        return train(self, *args)
    Program.train = stopping
    rj.train(config, run_dir, quiet=True)
run = rj.Run.open(run_dir)
before = digest(run.variables("latest")), run.evaluate("test").correct
finished = rj.train(config, run_dir, quiet=True)
print(json.dumps([*before, int(finished.metrics()["step"].max())]))
"""


def digest(tree) -> str:
    """Of every bit of every array."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def on_devices(count: int, run_dir: Path, what: str) -> list:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    script = ON_DEVICES.format(folder=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", script, str(run_dir), str(count), what],
        capture_output=True, text=True, timeout=240, env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if what == "go on" else []


@pytest.mark.slow
def test_saved_on_eight_devices_it_goes_on_with_one_and_with_four(tmp_path):
    on_devices(8, tmp_path / "run", "begin")
    at = Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1]
    assert at == 10
    found = []
    for count in (8, 1, 4):
        shutil.copytree(tmp_path / "run", tmp_path / f"on{count}")
        found.append(on_devices(count, tmp_path / f"on{count}", "go on"))
    # The same bits are read, the same digits are right, and each ends at the last step.
    assert found[0] == found[1] == found[2]
    assert found[0][2] == math.ceil(3 * 60 / 8)


def test_a_run_of_an_earlier_version_is_whole(tmp_path):
    shutil.copytree(STORED, tmp_path / "run")
    run, expected = rj.Run.open(tmp_path / "run"), json.loads(EXPECTED.read_text())
    assert run.verify().ok
    assert run.config.model.width == 2
    assert digest(run.variables("latest")) == expected["latest"]
    assert digest(run.variables("best")) == expected["best"]
    assert len(run.metrics()) == expected["rows"]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_used_and_goes_on(tmp_path):
    shutil.copytree(STORED, tmp_path / "run")
    run, expected = rj.Run.open(tmp_path / "run"), json.loads(EXPECTED.read_text())
    found = run.evaluate("test")
    assert found.correct == expected["correct"]
    assert found.loss == pytest.approx(expected["loss"], rel=1e-4)
    before = digest(run.variables("latest"))
    config = dataclasses.replace(run.config, epochs=run.config.epochs + 1)
    longer = rj.train(config, run.path, quiet=True)
    assert Checkpoints(run.path / "checkpoints").steps()[-1] > expected["step"]
    assert digest(longer.variables("latest")) != before
