"""When a run is over: by every row of its metrics, in constant time for each."""

import dataclasses
import json
import random
import shutil

import pytest

import resnet_jax as rj
from resnet_jax.training.history import History
from resnet_jax.training.run_folder import RunFolder

CONFIG = rj.TrainConfig(batch_size=10)


def row(step: int, kind: str, accuracy: float, **more: object) -> dict:
    return {"step": step, "kind": kind, "accuracy": accuracy, "loss": 1.0, "seconds": 7.0, **more}


@pytest.mark.parametrize("seed", range(20))
def test_target_and_patience_are_their_definitions(seed):
    draw = random.Random(seed)
    target, patience = draw.choice([None, 0.8]), draw.choice([None, 1, 3])
    config = dataclasses.replace(CONFIG, target=target, patience=patience)
    accuracies: list[float] = []
    rows: list[dict] = []
    for step in range(1, 30):
        accuracies.append(draw.choice([0.1, 0.3, 0.5, 0.7, 0.9]))
        rows.append(row(step, "validation", accuracies[-1]))
        rows.append(row(step, "train", 1.0))  # decides nothing
        found = History(config, None, rows, [], 100).satisfied
        reached = target is not None and accuracies[-1] >= target
        since_best = len(accuracies) - 1 - accuracies.index(max(accuracies))
        assert found == (reached or (patience is not None and since_best >= patience))


def test_rows_get_their_epoch_and_the_time_of_earlier_starts(tmp_path):
    told: list[dict] = []

    class Told(rj.Callback):
        def on_metrics(self, row: dict) -> None:
            told.append(row)

    folder = RunFolder(tmp_path)
    history = History(CONFIG, folder, [row(1, "train", 0.5)], [Told()], num_examples=40)
    tests = {"split": "test", "checkpoint": "best", "last": 8}
    history.record({"step": 8, "kind": "test", "loss": 1.0, "accuracy": 0.5, **tests})
    (found,) = folder.read_metrics()
    assert told == [found]
    assert found["epoch"] == 2.0
    assert 7.0 <= found["seconds"] < 8.0
    assert (history.tested(8), history.tested(7)) == ({("test", "best")}, set())


@pytest.mark.parametrize("change", ["a value", "one fewer", "one more"])
def test_a_run_that_goes_on_says_that_its_lines_were_changed(
    change, finished_run, tmp_path, caplog
):
    run_dir = shutil.copytree(finished_run.path, tmp_path / "run")
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = {
        "a value": [rows[0] | {"loss": rows[0]["loss"] / 2}, *rows[1:]],
        "one fewer": rows[1:],
        "one more": [rows[0], *rows],
    }[change]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    rj.train(finished_run.config, run_dir, quiet=True)
    assert "metrics.jsonl was changed: its lines up to step 12 are not" in caplog.text
    assert [json.loads(line) for line in path.read_text().splitlines()] == changed
