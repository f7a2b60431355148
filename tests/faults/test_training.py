"""Frozen stages, schedules and types at their edges (FAULTS A18, A19, D)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax as rj
from resnet_jax.cli import main


def network(stages=2, unit=rj.BasicUnit, **settings):
    return rj.ResNet(
        stage_sizes=(1,) * stages, unit=unit, width=4, stem="small", lowering="reference",
        num_classes=2, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(("stages", "frozen"), [(4, 5), (4, 6), (2, 3), (2, -1)])
def test_more_stages_than_there_are_cannot_be_frozen(stages, frozen):
    """A18: batch norm went to evaluation mode while every parameter learnt."""
    images = jnp.zeros((2, 8, 8, 1))
    with pytest.raises(rj.ResNetJaxError, match=f"got {frozen}"):
        jax.eval_shape(
            lambda: network(stages, frozen_stages=frozen).init(
                jax.random.key(0), images, train=False
            )
        )


def test_with_all_stages_frozen_only_the_head_learns(tiny_config, tmp_path):
    """A18: of a pre-activation network the last norm went on learning."""
    config = dataclasses.replace(
        tiny_config,
        model=rj.ModelConfig("preact_resnet18", width=2, lowering="reference"),
        optim=rj.OptimConfig(learning_rate=0.1, weight_decay=0.1), ema=None, epochs=0.5,
    )  # fmt: skip
    first = rj.train(config, tmp_path / "first", quiet=True)
    tuned = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, frozen_stages=4),
        init_from=str(first.path), init_head="keep", seed=1,
    )  # fmt: skip
    second = rj.train(tuned, tmp_path / "second", quiet=True)
    before, after = first.variables("latest"), second.variables("latest")
    moved = {
        (collection, layer)
        for collection, layers in before.items()
        for layer in layers
        if any(
            not np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(layers[layer]),
                jax.tree.leaves(after[collection][layer]),
                strict=True,
            )
        )
    }
    assert moved == {("params", "head")}


def test_rates_of_a_float64_run_are_float64(tmp_path):
    """A19: a warm-up of a third was 0.05 / 3 to six digits only."""
    config = rj.TrainConfig(
        model=rj.ModelConfig(width=2, lowering="reference", dtype="float64"),
        data=rj.DataConfig(name="mnist_5k", subset=(30, 10, 10)),
        optim=rj.OptimConfig(learning_rate=0.05, schedule="cosine", warmup=0.5),
        epochs=2, batch_size=15, log_every=1,
    )  # fmt: skip
    run = rj.train(config, tmp_path / "run", quiet=True)
    rates = run.metrics().query("kind == 'train'")["learning_rate"].tolist()
    assert len(rates) == 4
    assert rates[:3] == pytest.approx([0.05 / 3, 0.05 / 3 * 2, 0.05], rel=1e-14)


def test_one_cycle_rises_however_long_its_warm_up(tmp_path, capsys):
    """D: a warm-up that rounded to the whole run stayed at a 25th of the rate."""
    command = [
        *("train", "--run-dir", str(tmp_path / "run"), "--data.subset", "40", "10", "10"),
        *("--model.width", "2", "--model.lowering", "reference", "--batch-size", "20"),
        *("--epochs", "2", "--log-every", "1", "--no-report", "--optim.warmup", "0.95"),
    ]
    assert main(command) == 0
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rates = [row["learning_rate"] for row in map(json.loads, lines) if row["kind"] == "train"]
    assert max(rates) == pytest.approx(0.05)
    assert rates == sorted(rates)
