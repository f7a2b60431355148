"""Whole runs of a tiny network: what they leave, and that they resume to the same bits."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest
import yaml

import resnet_jax as rj
from resnet_jax.data.load import load_splits
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training import loop
from resnet_jax.training.callbacks import Callback
from resnet_jax.training.program import Program

KINDS_OF_TIME = ("children_user", "children_system")

# Trains the tiny run in a process of its own, which prints every step as it is done.
SCRIPT = """
import sys
from pathlib import Path
from resnet_jax.config import from_dict
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.loop import fit
from resnet_jax.training.callbacks import Callback
import yaml

class Tell(Callback):
    def on_step(self, step):
        print(step, flush=True)

try:
    fit(from_dict(yaml.safe_load(sys.argv[1])), Path(sys.argv[2]), Tell())
except ResNetJaxError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Heard(Callback):
    """Remembers what was said."""

    text = ""

    def log(self, text: str) -> None:
        self.text += text


def start(config: rj.TrainConfig, run_dir: Path) -> subprocess.Popen:
    from resnet_jax.config import to_dict

    command = [sys.executable, "-c", SCRIPT, json.dumps(to_dict(config)), str(run_dir)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            return
    raise AssertionError(f"ended before step {step}: {process.stderr.read()}")


def rows(run: rj.Run, kind: str) -> list[dict]:
    metrics = run.metrics()
    return metrics[metrics["kind"] == kind].to_dict("records")


def assert_same_bits(one: rj.Run, other: rj.Run) -> None:
    for checkpoint in ("latest", "best"):
        chex.assert_trees_all_equal(one.variables(checkpoint), other.variables(checkpoint))


def test_a_run_leaves_what_is_promised(finished_run, tiny_config):
    names = {path.name for path in finished_run.path.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "run.log", "checkpoints", ".lock"}
    assert rj.Run.open(finished_run.path).config == tiny_config
    assert [row["step"] for row in rows(finished_run, "train")] == [1, 4, 5, 8, 10, 12]
    assert [row["step"] for row in rows(finished_run, "validation")] == [5, 10, 12]
    tests = {(row["split"], row["checkpoint"]) for row in rows(finished_run, "test")}
    assert tests == {(s, c) for s in ("test", "test_all") for c in ("latest", "best")}
    first = rows(finished_run, "train")[0]
    assert first["epoch"] == pytest.approx(20 / 120)
    for key in ("loss", "accuracy", "learning_rate", "images_per_s", "seconds"):
        assert np.isfinite(first[key])


def test_the_recorded_results_are_those_of_an_independent_count(finished_run):
    data = rj.load_dataset("mnist_5k")
    for checkpoint in ("latest", "best"):
        recorded = next(
            row
            for row in rows(finished_run, "test")
            if row["split"] == "test_all" and row["checkpoint"] == checkpoint
        )
        probabilities = finished_run.predict(data.test.images, checkpoint)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        hits = (probabilities.argmax(axis=1) == data.test.labels).mean()
        assert recorded["accuracy"] == pytest.approx(hits, abs=1e-9)
        of_label = probabilities[np.arange(len(data.test)), data.test.labels]
        assert recorded["loss"] == pytest.approx(-np.log(of_label).mean(), rel=1e-4)


def test_best_is_the_best_validation_accuracy(finished_run):
    validation = rows(finished_run, "validation")
    best = max(validation, key=lambda row: (row["accuracy"], -row["loss"]))
    tested = next(row for row in rows(finished_run, "test") if row["checkpoint"] == "best")
    assert tested["step"] == best["step"]
    found = finished_run.evaluate("validation", "best")
    assert found.accuracy == pytest.approx(best["accuracy"])
    assert found.count == 50
    assert found.confusion.sum(axis=1).tolist() == [
        row["count"] for row in found.per_class.values()
    ]


def test_a_finished_run_says_so_and_stays_as_it_is(finished_run, tiny_config):
    before = (finished_run.path / "metrics.jsonl").read_bytes()
    heard = Heard()
    loop.fit(tiny_config, finished_run.path, heard)
    assert "finished" in heard.text
    assert (finished_run.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    # At 9, lines of metrics are later than the last checkpoint; at 11, there are two checkpoints.
    "kill_at",
    [9, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 5, 7, 11))],
)
def test_killed_and_started_again_it_ends_with_the_same_bits(
    kill_at, finished_run, tiny_config, tmp_path
):
    process = start(tiny_config, tmp_path / "run")
    wait_for_step(process, kill_at)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    newest = max(loop.RunFolder(tmp_path / "run").checkpoints.steps(), default=0)
    heard = Heard()
    loop.fit(tiny_config, tmp_path / "run", heard)
    assert (f"resumes at step {newest} " in heard.text) == (newest > 0)
    resumed = rj.Run.open(tmp_path / "run")
    assert_same_bits(resumed, finished_run)
    steps = [row["step"] for row in rows(resumed, "train")]
    assert steps == [row["step"] for row in rows(finished_run, "train")]
    for kind in ("validation", "test"):
        for one, other in zip(rows(resumed, kind), rows(finished_run, kind), strict=True):
            assert (one["step"], one["loss"]) == (other["step"], other["loss"])


def test_resuming_neither_repeats_nor_skips_an_example(tiny_config, tmp_path, monkeypatch):
    seen: list[np.ndarray] = []
    train = Program.train

    def spy(self, state, images, labels):
        if len(seen) == 8 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt  # between the checkpoints of steps 5 and 10
        seen.append((images, labels))
        return train(self, state, images, labels)

    stopped: list[bool] = []
    monkeypatch.setattr(Program, "train", spy)
    with pytest.raises(KeyboardInterrupt):
        rj.train(tiny_config, tmp_path, quiet=True)
    rj.train(tiny_config, tmp_path, quiet=True)
    # Steps 5, 6 and 7 were lost and are done again; from there on nothing is missing.
    sampler = EpochSampler(120, 20, seed=0)
    data, _ = load_splits(tiny_config.data)
    assert len(seen) == 12 + 3
    for step, batch in enumerate(seen[:5] + seen[8:]):
        for found, expected in zip(batch, data.train.batch(sampler.batch(step)), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_same_command_continues(number, finished_run, tiny_config, tmp_path):
    process = start(tiny_config, tmp_path)
    wait_for_step(process, 6)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert signal.Signals(number).name in errors
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert 6 <= max(steps) < 12
    assert_same_bits(rj.train(tiny_config, tmp_path, quiet=True), finished_run)


def test_one_writer_at_a_time(tiny_config, tmp_path):
    process = start(tiny_config, tmp_path)
    wait_for_step(process, 1)
    with pytest.raises(ResNetJaxError, match=f"being written by process {process.pid}"):
        rj.train(tiny_config, tmp_path, quiet=True)
    process.kill()
    process.wait()
    with loop.RunFolder(tmp_path).opened_for_writing():
        pass  # the lock of a dead process is taken over


def test_another_configuration_is_refused_with_every_difference(finished_run, tiny_config):
    other = dataclasses.replace(
        tiny_config,
        batch_size=10,
        seed=1,
        model=dataclasses.replace(tiny_config.model, residual=False),
    )
    with pytest.raises(ResNetJaxError) as refusal:
        rj.train(other, finished_run.path, quiet=True)
    message = str(refusal.value)
    assert "\n" not in message
    for difference in ("--batch-size 20 -> 10", "--seed 0 -> 1", "--model.residual True -> False"):
        assert difference in message


@pytest.mark.slow
def test_a_constant_rate_may_go_on_for_more_epochs(unaveraged_config, tmp_path):
    rj.train(unaveraged_config, tmp_path / "run", quiet=True)
    longer = dataclasses.replace(unaveraged_config, epochs=3)
    continued = rj.train(longer, tmp_path / "run", quiet=True)
    assert rows(continued, "test")[-1]["last"] == 18
    assert continued.config == longer
    with pytest.raises(ResNetJaxError, match=r"--epochs 3(\.0)? -> 2"):
        rj.train(unaveraged_config, tmp_path / "run", quiet=True)
    assert_same_bits(continued, rj.train(longer, tmp_path / "at once", quiet=True))


def test_a_cosine_may_not(finished_run, tiny_config):
    with pytest.raises(ResNetJaxError, match=r"--epochs 2(\.0)? -> 3"):
        rj.train(dataclasses.replace(tiny_config, epochs=3), finished_run.path, quiet=True)


@pytest.mark.slow
def test_early_stopping_counts_evaluations_without_a_better_one(unaveraged_config, tmp_path):
    # A rate too small to change a prediction: no evaluation is better than the first.
    config = dataclasses.replace(
        unaveraged_config,
        optim=rj.OptimConfig(learning_rate=1e-12, momentum=0.0),
        patience=2,
        eval_every=1,
        epochs=10,
    )
    run = rj.train(config, tmp_path, quiet=True)
    validation = rows(run, "validation")
    accuracies = [row["accuracy"] for row in validation]
    # Batch norm's statistics still move, and the accuracy with them: stop two after the best.
    assert len(accuracies) == accuracies.index(max(accuracies)) + 1 + 2
    assert len(accuracies) < 60
    assert rows(run, "test")[0]["last"] == validation[-1]["step"]


@pytest.mark.slow
def test_a_target_ends_the_run(unaveraged_config, tmp_path):
    run = rj.train(dataclasses.replace(unaveraged_config, target=0.0), tmp_path, quiet=True)
    assert [row["step"] for row in rows(run, "validation")] == [5]
    assert rows(run, "test")[0]["last"] == 5


@pytest.mark.slow
def test_a_run_that_diverges_says_where_and_keeps_its_checkpoint(unaveraged_config, tmp_path):
    config = dataclasses.replace(unaveraged_config, optim=rj.OptimConfig(learning_rate=1e30))
    with pytest.raises(loop.NotFiniteError, match=r"not finite at step \d+"):
        rj.train(config, tmp_path, quiet=True)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("held_out", "said"),
    [(0, "stage2_unit1 of the parameters .* at step 9"), (50, "validation loss .* at step 10")],
)
def test_an_update_that_overflows_is_not_saved(
    held_out, said, unaveraged_config, tmp_path, monkeypatch
):
    data = dataclasses.replace(unaveraged_config.data, subset=(120, held_out, 30))
    config = dataclasses.replace(unaveraged_config, data=data)
    train = Program.train

    def overflow(self, state, examples, indices):
        state, metrics = train(self, state, examples, indices)
        if int(state.step) == 10:  # after a finite loss, and just before a checkpoint
            kernel = state.params["stage2_unit1"]["conv1"]["kernel"]
            state.params["stage2_unit1"]["conv1"]["kernel"] = kernel.at[0, 0, 0, 0].set(np.inf)
        return state, metrics

    monkeypatch.setattr(Program, "train", overflow)
    with pytest.raises(loop.NotFiniteError, match=said):
        rj.train(config, tmp_path, quiet=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_other_ways_to_look_are_recorded_and_the_beginning_is_kept(
    finished_run, tiny_config, tmp_path
):
    shutil.copytree(finished_run.path, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    document = yaml.safe_load(path.read_text())
    document["versions"]["jax"], document["commit"] = "0.0.1", "abc"
    path.write_text(yaml.safe_dump(document))
    other = dataclasses.replace(tiny_config, log_every=3)
    assert rj.train(other, tmp_path / "run", quiet=True).config == other
    after = yaml.safe_load(path.read_text())
    assert (after["versions"]["jax"], after["commit"]) == ("0.0.1", "abc")


@pytest.mark.slow
def test_without_validation_the_newest_is_the_best(unaveraged_config, tmp_path):
    data = dataclasses.replace(unaveraged_config.data, subset=(120, 0, 30))
    run = rj.train(dataclasses.replace(unaveraged_config, data=data), tmp_path, quiet=True)
    assert rows(run, "validation") == []
    assert {row["step"] for row in rows(run, "test")} == {12}


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tiny_config, tmp_path):
    with pytest.raises(ResNetJaxError, match="200"):
        rj.train(dataclasses.replace(tiny_config, batch_size=200), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_help_imports_nothing_heavy_and_is_quick():
    code = """
import sys
from resnet_jax.cli import main
try:
    main(["train", "--help"])
finally:
    print({"jax", "numpy", "pandas", "tensorflow_datasets"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"
    # By the processor's clock, the best of three: the one on the wall measures what else the
    # machine does. On a machine that is slow, importing the parser's library is the measure.
    ours, library = (
        min(_processor_seconds([sys.executable, *arguments]) for _ in range(3))
        for arguments in (["-m", "resnet_jax", "--help"], ["-c", "import tyro"])
    )
    assert ours < max(0.5, 4 * library)


def _processor_seconds(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, capture_output=True, check=True)
    after = os.times()
    return sum(getattr(after, kind) - getattr(before, kind) for kind in KINDS_OF_TIME)


def test_the_first_line_comes_before_anything_slow(tmp_path):
    command = [sys.executable, "-u", "-m", "resnet_jax", "train", "--run-dir", str(tmp_path)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        # And a signal at this moment, when JAX is being imported, ends it in good order.
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert line.startswith(b"resnet18 on mnist_5k")
    assert seconds < 3
    assert process.returncode == 75, errors
    assert len(errors.splitlines()) == 1
