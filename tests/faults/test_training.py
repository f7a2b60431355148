"""Frozen stages, schedules and types at their edges."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import resnet_jax as rj
from resnet_jax.models import VARIANTS
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.optim import make_schedule


@pytest.mark.parametrize(("stages", "frozen"), [(4, 5), (4, 6), (2, 3), (2, -1)])
def test_more_stages_than_there_are_cannot_be_frozen(stages, frozen):
    """Batch norm went to evaluation mode while every parameter learnt."""
    model = rj.ResNet((1,) * stages, rj.BasicUnit, width=4, frozen_stages=frozen)
    with pytest.raises(rj.ResNetJaxError, match=f"got {frozen}"):
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((2, 8, 8, 1)))


def test_with_all_stages_frozen_only_the_head_learns(tiny_config, tmp_path, monkeypatch):
    """Of a pre-activation network the last norm went on learning."""
    network = partial(rj.ResNet, stage_sizes=(1, 1), unit=rj.PreActivationUnit)
    monkeypatch.setitem(VARIANTS, "preact_resnet18", network)
    config = dataclasses.replace(
        tiny_config,
        model=rj.ModelConfig("preact_resnet18", width=2, lowering="reference", frozen_stages=2),
        optim=rj.OptimConfig(learning_rate=0.1, weight_decay=0.1),
        ema=None, epochs=0.5, eval_every=1,
    )  # fmt: skip
    rj.train(config, tmp_path, quiet=True)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    before, after = map(checkpoints.restore_variables, checkpoints.steps()[-2:])
    differs = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    moved = {path[:2] for path, changed in traverse_util.flatten_dict(differs).items() if changed}
    assert moved == {("params", "head")}


@pytest.mark.parametrize("total", [3, 4, 40])
def test_one_cycle_rises_however_long_its_warm_up(total):
    """A warm-up that rounded to the whole run stayed at a 25th of the rate."""
    config = rj.OptimConfig(learning_rate=0.05, schedule="one_cycle", warmup=0.99)
    rates = [float(make_schedule(config, total)(step)) for step in range(total)]
    assert max(rates) == pytest.approx(0.05)
    assert rates == sorted(rates)
