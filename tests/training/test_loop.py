"""Whole runs of a tiny network: what they leave, and that they resume to the same bits."""

import dataclasses
import random
from functools import partial
from types import SimpleNamespace
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from faults import no_orphans
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.config import replaced
from resnet_jax.training import loop
from resnet_jax.training.engine import Engine
from resnet_jax.training.loop import Training, satisfied
from resnet_jax.training.metrics import Evaluation
from resnet_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_unit")


def rows(run: rj.Run, kind: str) -> list[dict]:
    metrics = run.metrics()
    return metrics[metrics["kind"] == kind].to_dict("records")


def test_a_run_leaves_what_is_promised(finished_run, tiny_config):
    assert no_orphans(finished_run.path)
    assert rj.Run.open(finished_run.path).config == tiny_config
    assert repr(finished_run).endswith("resnet18 on mnist_5k, 2 of 2 epochs)")
    assert [row["step"] for row in rows(finished_run, "train")] == [1, 4, 5, 8, 10, 12]
    assert [row["step"] for row in rows(finished_run, "validation")] == [5, 10, 12]
    saved = RunFolder(finished_run.path).checkpoints.manifest(12).validation
    assert saved.items() <= rows(finished_run, "validation")[-1].items()
    found = finished_run.evaluate("validation", "latest")
    assert (found.accuracy, found.count) == (pytest.approx(saved["accuracy"]), 50)
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


def test_a_run_without_test_images_is_judged_by_those_held_out(tiny_config, linear, tmp_path):
    """ImageNet's test labels are not published; such a run had no result to compare."""
    digits = rj.load_dataset("mnist_5k").train.take(slice(60))
    data = rj.Dataset.from_arrays("own", digits.images, digits.labels, validation=20)
    config = replaced(tiny_config, {"data.subset": None})
    run = rj.train(config, tmp_path, data=data, model=linear, quiet=True)
    (of_run,) = rj.inspection.compare_runs([run]).to_dict("records")
    assert of_run["runs"] == 1
    best = max(row["accuracy"] for row in rows(run, "validation"))
    assert of_run["validation accuracy"] == pytest.approx(best)
    assert [row["checkpoint"] for row in rows(run, "test")] == ["latest", "best"]
    assert refused(run.evaluate).endswith("no images: give --split train or validation")


@pytest.mark.parametrize("lowering", ["auto", "reference"])
def test_a_run_goes_on_with_the_algorithms_that_it_began_with(
    lowering, one_unit, tiny_config, stop_after, tmp_path, monkeypatch, capsys
):
    # As outside the tests, whose XLA_FLAGS keep `compiler_options` empty and hide its errors.
    monkeypatch.delenv("XLA_FLAGS")
    network = rj.ModelConfig(width=2, lowering=lowering)
    plain = {"model": network, "augment": rj.AugmentConfig(), "ema": None}
    begin = partial(rj.train, dataclasses.replace(tiny_config, **plain), tmp_path / "run")
    used, train = set(), Engine.train

    def looking(self, state, *args):
        used.add(state.apply_fn.__self__.lowering)
        return train(self, state, *args)

    monkeypatch.setattr(Engine, "train", looking)
    monkeypatch.setattr(loop, "instruction_set", lambda: "avx2")
    refused(begin, should_stop=stop_after(3))
    assert "may differ" not in capsys.readouterr().out
    assert rj.Run.open(tmp_path / "run").config.model.lowering == lowering
    document = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert document["instructions"] == "avx2"
    document["versions"]["jax"] = "0.10.0"
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(loop, "instruction_set", lambda: "avx512")
    assert "enough: saved step 4" in refused(begin, should_stop=stop_after(1))
    assert used == {"avx2" if lowering == "auto" else lowering}
    said = "resumes at step 3 of 12; began on avx2; on avx512 bits may differ; "
    said += f"began with jax 0.10.0; with jax {jax.__version__} bits may differ"
    assert said in capsys.readouterr().out.replace("\n", " ")
    after = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (after["instructions"], after["versions"]["jax"]) == ("avx2", "0.10.0")


def test_several_processes_say_how_many_devices_they_have(
    tiny_config, tmp_path, monkeypatch, capsys
):
    """Under Slurm a task gets one GPU, so that with fewer tasks than GPUs some GPUs stay idle."""
    monkeypatch.setattr(loop, "process_count", lambda: 2)
    monkeypatch.setattr(Engine, "compile_ahead", lambda *_: 1 / 0)  # it has said so by then
    with pytest.raises(ZeroDivisionError):
        rj.train(tiny_config, tmp_path / "run")
    assert f"{jax.device_count()} devices of 2 processes" in capsys.readouterr().out


def test_another_configuration_is_refused_with_every_difference(finished_run, tiny_config):
    changes = {"batch-size": 10, "seed": 1, "epochs": 3, "model.residual": False}
    message = refused(rj.train, replaced(tiny_config, changes), finished_run.path, quiet=True)
    for difference in ("--batch-size 20 -> 10", "--seed 0 -> 1", "--model.residual True -> False"):
        assert difference in message
    assert "--epochs 2 -> 3" in message  # its learning rate follows a cosine over the epochs


@pytest.mark.slow
def test_a_constant_rate_may_go_on_for_more_epochs(unaveraged_config, tmp_path, capsys):
    rj.train(unaveraged_config, tmp_path / "run", quiet=True)
    longer = dataclasses.replace(unaveraged_config, epochs=3)
    continued = rj.train(longer, tmp_path / "run", quiet=True)
    assert rows(continued, "test")[-1]["last"] == 18
    assert continued.config == longer
    with pytest.raises(rj.ResNetJaxError, match=r"--epochs 3(\.0)? -> 2"):
        rj.train(unaveraged_config, tmp_path / "run", quiet=True)
    at_once = rj.train(longer, tmp_path / "at once", quiet=True)
    for checkpoint in ("latest", "best"):
        chex.assert_trees_all_equal(continued.variables(checkpoint), at_once.variables(checkpoint))
    # As in a copy that was begun before the run went on, and ended after.
    record = RunFolder(continued.path).read_record()
    RunFolder(continued.path).write_record(dataclasses.replace(record, config=unaveraged_config))
    rj.train(unaveraged_config, continued.path)
    assert "is finished; nothing to do" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("seed", range(20))
def test_target_and_patience_are_their_definitions(seed):
    draw = random.Random(seed)
    target, patience = draw.choice([None, 0.8]), draw.choice([None, 1, 3])
    config = rj.TrainConfig(target=target, patience=patience)
    accuracies: list[float] = []
    assert not satisfied(config, accuracies)
    best, since_best = -1.0, 0
    for _ in range(30):
        accuracies.append(draw.choice([0.1, 0.3, 0.5, 0.7, 0.9]))
        since_best = 0 if accuracies[-1] > best else since_best + 1
        best = max(best, accuracies[-1])
        reached = target is not None and accuracies[-1] >= target
        out_of_patience = patience is not None and since_best >= patience
        assert satisfied(config, accuracies) == (reached or out_of_patience)


@pytest.mark.slow
def test_a_target_ends_the_run_and_an_empty_split_is_no_result(unaveraged_config, tmp_path):
    """Without validation the newest step is the best."""
    config = replaced(unaveraged_config, {"target": 0.0})
    run = rj.train(config, tmp_path / "target", quiet=True)
    assert [row["step"] for row in rows(run, "validation")] == [5]
    assert rows(run, "test")[0]["last"] == 5
    config = replaced(unaveraged_config, {"data.subset": (120, 0, 0)})
    run = rj.train(config, tmp_path / "run", quiet=True)
    assert rows(run, "validation") == []
    assert {(row["step"], row["split"]) for row in rows(run, "test")} == {(12, "test_all")}
    assert refused(run.evaluate, "test").endswith("no images: give --split train or test_all")


TO_ZERO = optax.stateless(partial(jax.tree.map, lambda g, p: 0 * g - p))


def norm(logits, labels):
    return jnp.sqrt(jnp.square(logits).sum())


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"optimizer": optax.scale(np.inf)}, "loss was not finite at step 1"),
        # All logits are 0 after the first step, where the norm has no gradient.
        ({"optimizer": TO_ZERO, "loss": norm}, "gradient was not finite at step 1"),
    ],
)
def test_a_run_that_diverges_says_where_and_writes_no_checkpoint(
    part, said, unaveraged_config, linear, tmp_path
):
    with pytest.raises(match=rf"^{said}: the last checkpoint is none; try"):
        rj.train(unaveraged_config, tmp_path, quiet=True, model=linear, **part)
    assert not (tmp_path / "checkpoints").exists()
    assert said in (tmp_path / "run.log").read_text().splitlines()[-1]


def test_a_run_that_diverges_after_a_damaged_step_names_the_one_that_it_has(
    checkpoints, own_run, tiny_config, monkeypatch
):
    (checkpoints.directory / "12/manifest.json").unlink()
    nothing = Evaluation(np.nan, np.eye(10, dtype=int), tuple("0123456789"))
    monkeypatch.setattr(Engine, "evaluate", lambda *_: nothing)
    assert "at step 12: the last checkpoint is step 10;" in refused(rj.train, tiny_config, own_run)


@pytest.mark.parametrize(
    ("held_out", "said"),
    [(0, "some of the parameters .* at step 9"), (50, "validation loss .* at step 10")],
)
def test_an_update_that_overflows_is_not_saved(
    held_out, said, unaveraged_config, linear, tmp_path, monkeypatch
):
    config = replaced(unaveraged_config, {"data.subset": (120, held_out, 30)})
    train = Engine.train

    def overflow(self, *args):
        state, metrics = train(self, *args)
        if int(state.step) == 10:  # after a finite loss, and just before a checkpoint
            bias = state.params["Dense_0"]["bias"]
            state.params["Dense_0"]["bias"] = bias.at[0].set(np.inf)
        return state, metrics

    monkeypatch.setattr(Engine, "train", overflow)
    with pytest.raises(match=said):
        rj.train(config, tmp_path, quiet=True, model=linear)
    assert RunFolder(tmp_path).checkpoints.steps() == [5]


def test_other_ways_to_look_are_recorded_and_the_beginning_is_kept(own_run, tiny_config):
    path = own_run / "config.yaml"
    document = yaml.safe_load(path.read_text())
    document["versions"]["jax"], document["commit"] = "0.0.1", "abc"
    path.write_text(yaml.safe_dump(document))
    other = replaced(tiny_config, {"log-every": 3, "data.streaming": "never"})
    assert rj.train(other, own_run, quiet=True).config == other
    after = yaml.safe_load(path.read_text())
    assert (after["versions"]["jax"], after["commit"]) == ("0.0.1", "abc")


def test_each_epoch_is_evaluated_once_at_the_step_nearest_to_its_end():
    """Epochs have 1.5 steps: the third, which ends at 4.5, was evaluated at steps 4 and 5."""
    config = rj.TrainConfig(epochs=3, batch_size=20)
    at = [SimpleNamespace(config=config, num_train=30, total_steps=5, step=n) for n in range(1, 6)]
    assert [each.step for each in at if Training._evaluates_now(each)] == [2, 3, 5]


def test_tensorboard_gets_the_rows_so_far(own_run, tiny_config, monkeypatch):
    monkeypatch.setattr(loop, "Events", events := mock.Mock())
    rj.train(dataclasses.replace(tiny_config, tensorboard=True), own_run, quiet=True)
    events.assert_called_once_with(own_run / "tensorboard", RunFolder(own_run).read_metrics())


def test_a_batch_that_does_not_fit_is_named(one_unit, tiny_config, tmp_path, monkeypatch):
    lack = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def fails(*_):
        raise lack

    monkeypatch.setattr(Engine, "compile_ahead", fails)
    said = refused(rj.train, tiny_config, tmp_path / "run", quiet=True)
    assert "--batch-size 20 does not fit" in said
