"""Runs that were never trained: random weights and statistics in a real run's folder."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

import resnet_jax as rj
from resnet_jax.models import make_model, shapes_of
from resnet_jax.training.run_folder import Record, RunFolder

CONFIG = rj.TrainConfig(
    # XLA's own convolution compiles faster, and these tests do not depend on the choice.
    model=rj.ModelConfig(width=4, lowering="reference"),
    data=rj.DataConfig(image_size=32, mean=(0.5,), std=(0.5,)),
)


@pytest.fixture(scope="session")
def draw():
    """A function that draws variables with which activations neither vanish nor explode."""

    def draw(model: rj.ResNet, image_shape: tuple[int, int, int]) -> dict:
        random, flat = np.random.RandomState(0), {}
        for path, shape in shapes_of(model, image_shape).items():
            if path[-1] in ("var", "scale"):
                values = random.uniform(0.5, 1.5, shape)
            else:
                scale = np.sqrt(np.prod(shape[:-1])) if path[-1] == "kernel" else 5
                values = random.standard_normal(shape) / scale
            flat[path] = values.astype(model.param_dtype)
        return traverse_util.unflatten_dict(flat)

    return draw


@pytest.fixture(scope="session")
def make_run(draw, tmp_path_factory):
    """A function that makes a run on digits resized to 32x32, with the given model settings."""

    def make(**model) -> rj.Run:
        config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **model))
        data, network = rj.load_dataset("mnist_5k"), make_model(config, 10)
        folder = RunFolder(tmp_path_factory.mktemp("run"))
        shape = data.image_shape
        folder.write_record(Record(config, data.fingerprint, data.class_names, shape))
        with jax.enable_x64(config.model.dtype == "float64"):
            variables = jax.device_put(draw(network, shape))
            folder.checkpoints.save(rj.TrainState.of_variables(network, variables), None)
        return rj.Run.open(folder.path)

    return make


@pytest.fixture(scope="session")
def run(one_unit, make_run) -> rj.Run:
    """A run of width 4."""
    return make_run()
