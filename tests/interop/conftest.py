"""A run that was never trained: its weights and statistics are random, its folder is real."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

import resnet_jax as rj
from resnet_jax.models import make_model
from resnet_jax.training.optim import make_optimizer, make_schedule
from resnet_jax.training.run_folder import Record, RunFolder

DIGITS = tuple("0123456789")


def untrained_run(folder: Path, config: rj.TrainConfig) -> rj.Run:
    random = np.random.RandomState(0)

    def draw(path, leaf):
        if path[-1] in ("var", "scale"):
            return random.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        scale = np.sqrt(np.prod(leaf.shape[:-1])) if path[-1] == "kernel" else 5
        return (random.standard_normal(leaf.shape) / scale).astype(leaf.dtype)

    tx = make_optimizer(config.optim, make_schedule(config.optim, total_steps=1))
    images = jax.numpy.zeros((1, 28, 28, 1))
    create = functools.partial(rj.TrainState.create, make_model(config, 10), tx, ema=False)
    shapes = jax.eval_shape(create, jax.random.key(0), images)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    drawn = {
        name: traverse_util.path_aware_map(draw, getattr(state, name))
        for name in ("params", "batch_stats")
    }
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    data = rj.load_dataset("mnist_5k")
    run.write_record(Record(config, data.fingerprint, DIGITS, (28, 28, 1)))
    run.checkpoints.save(jax.device_put(state.replace(**drawn)), None)
    return rj.Run.open(folder)


CONFIG = rj.TrainConfig(
    # XLA's own convolution compiles faster, and what is tested here does not depend on it.
    model=rj.ModelConfig(width=4, lowering="reference"),
    data=rj.DataConfig(image_size=32, mean=(0.5,), std=(0.5,)),
)


@pytest.fixture(scope="session")
def run(one_unit, tmp_path_factory) -> rj.Run:
    """A network of width 4 for digits that it resizes to 32x32."""
    return untrained_run(tmp_path_factory.mktemp("interop") / "run", CONFIG)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """Another one, with these settings of its model."""

    def make(**model) -> rj.Run:
        folder = tmp_path_factory.mktemp("interop") / "run"
        settings = dataclasses.replace(CONFIG.model, **model)
        with jax.enable_x64(settings.dtype == "float64"):
            return untrained_run(folder, dataclasses.replace(CONFIG, model=settings))

    return make
