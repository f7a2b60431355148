"""A run moves: to another number of devices, and to a later version of this package."""

import dataclasses
import hashlib
import json
import math
import shutil
import signal
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import worker
from faults import ended, forked, start, steps_of
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.training.run_folder import RunFolder

# A run that version 0.1.0 finished (commit 0705210), and what it said of itself then.
STORED = Path(__file__).parent / "stored_run"
EXPECTED = Path(__file__).parent / "stored_run.json"


def digest(tree) -> str:
    """Of every bit of every array."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


OPTIONS = ["--batch-size", "8", "--eval-every", "5"]


def looks_and_goes_on(run_dir: Path, devices: int) -> None:
    """What a process with that many devices reads of a run; then it is the command."""
    worker.use_devices(devices)
    worker.shrink()
    assert jax.device_count() == devices, jax.devices()
    run = rj.Run.open(run_dir)
    found = [digest(run.variables("latest")), run.evaluate("test").confusion.tolist()]
    (run_dir.parent / f"on{devices}.json").write_text(json.dumps(found))
    worker.command(["train", *worker.OPTIONS, *OPTIONS], run_dir)


@pytest.mark.slow
def test_saved_on_eight_devices_it_goes_on_with_one_and_with_four(tmp_path):
    run_dir = tmp_path / "run"
    before_15 = worker.Moment("os.rename", r"\n.*/checkpoints/15$")
    assert ended(start(run_dir, *OPTIONS, devices=8, moment=before_15)) == -signal.SIGKILL
    assert steps_of(run_dir)[-1] == 10
    found, first, last = [], [], []
    for devices in (8, 1, 4):
        copy = Path(shutil.copytree(run_dir, tmp_path / f"copy{devices}"))
        assert ended(forked(looks_and_goes_on, copy, devices), 600) == 0
        found.append(json.loads((tmp_path / f"on{devices}.json").read_text()))
        metrics = rj.Run.open(copy).metrics()
        first.append(metrics.query("kind == 'train' and step == 11")["loss"].item())
        last.append(metrics["step"].max())
    # The same bits are read, the same digits are right, and each goes on to the last step.
    assert found[0] == found[1] == found[2]
    np.testing.assert_allclose(first, first[0], rtol=1e-4)
    assert last == [math.ceil(3 * 60 / 8)] * 3


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
    assert steps_of(run.path)[-1] > expected["step"]
    assert digest(longer.variables("latest")) != before


def test_an_open_run_whose_folder_is_gone_or_holds_another_says_so(own_run):
    """Its metrics were empty, and verified; another run's weights got this one's mean and names."""
    run, folder = rj.Run.open(own_run), RunFolder(own_run)
    record = folder.read_record()
    looks = (run.metrics, run.verify, run.variables, partial(rj.inspection.compare_runs, [run]))
    settings = dataclasses.replace(record.config.data, mean=(0.9,))
    config = dataclasses.replace(record.config, data=settings)
    folder.write_record(dataclasses.replace(record, config=config))
    for look in looks:
        assert "(--data.mean (0.1307,) -> (0.9,))" in refused(look)
    config = dataclasses.replace(record.config, log_every=7)  # as a resumed run may have it
    folder.write_record(dataclasses.replace(record, config=config))
    assert len(run.metrics()) > 2
    assert run.verify().ok
    own_run.rename(own_run.with_name("moved"))
    for look in looks:
        assert f"{own_run} is not a run" in refused(look)
    assert "no readable metrics" in repr(run)
