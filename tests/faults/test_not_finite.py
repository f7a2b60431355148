"""Numbers that are not finite are never a result (FAULTS A6)."""

import hashlib
import json
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def run_dir(finished_run, tmp_path_factory):
    """A run whose only checkpoint, half way, has running statistics that are not a number."""
    folder = tmp_path_factory.mktemp("nan") / "run"
    shutil.copytree(finished_run.path, folder)
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    for step in steps[1:]:
        shutil.rmtree(folder / f"checkpoints/{step}")
    place = folder / f"checkpoints/{steps[0]}"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        saved = checkpointer.metadata(place / "state").item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(
            place / "state", args=ocp.args.PyTreeRestore(restore_args=numpy)
        )
        tree["batch_stats"] = jax.tree.map(lambda a: np.full_like(a, np.nan), tree["batch_stats"])
        tree["ema"]["batch_stats"] = tree["batch_stats"]
        shutil.rmtree(place / "state")
        checkpointer.save(place / "state", args=ocp.args.PyTreeSave(tree))
    body = json.loads((place / "manifest.json").read_text())
    del body["sha256"]
    files = [path for path in (place / "state").rglob("*") if path.is_file()]
    body["files"] = {str(f.relative_to(place)): sha256(f.read_bytes()) for f in sorted(files)}
    digest = sha256(json.dumps(body, sort_keys=True).encode())
    (place / "manifest.json").write_text(json.dumps({**body, "sha256": digest}))
    return folder


TABLE = pytest.param([], marks=pytest.mark.slow)


@pytest.mark.parametrize("more", [["--json"], TABLE])
def test_evaluating_says_so(run_dir, more, capsys):
    assert main(["evaluate", str(run_dir), *more]) == 1
    shown = capsys.readouterr()
    assert "not finite" in shown.err
    assert "NaN" not in shown.out


@pytest.mark.parametrize("more", [["--json"], ["--csv"], TABLE])
def test_predicting_says_so(run_dir, more, tmp_path, capsys):
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "digit.png")
    assert main(["predict", str(run_dir), str(tmp_path / "digit.png"), *more]) == 1
    shown = capsys.readouterr()
    assert "not finite" in shown.err
    assert "nan" not in shown.out.lower()


def test_a_validation_that_is_not_finite_ends_the_run_and_is_not_recorded(run_dir, tmp_path):
    folder = shutil.copytree(run_dir, tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())["config"]
    assert config["eval_every"]
    with pytest.raises(rj.ResNetJaxError, match="not finite"):
        rj.train(rj.Run.open(folder).config, folder, quiet=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows)
