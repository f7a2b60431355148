"""The compiled programs: traced once in a whole run, shared by seeds, on any number of devices."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import resnet_jax as rj
from resnet_jax.data.load import load_splits
from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import make_model
from resnet_jax.training import engine as module
from resnet_jax.training.engine import Engine
from resnet_jax.training.setup import check_against_dataset

# Training images alone.
BLACK = rj.Dataset.from_arrays(
    "black", np.zeros((120, 28, 28, 1), np.uint8), np.zeros(120, int), validation=0
)


def test_a_whole_run_traces_each_step_once(tiny_config, one_unit, tmp_path, monkeypatch):
    traced = []
    for step in (module.train_step, module.eval_step):

        def counted(*args, step=step, **kwargs):
            traced.append(step.__name__)
            return step(*args, **kwargs)

        monkeypatch.setattr(module, step.__name__, counted)
    rj.train(tiny_config, tmp_path, quiet=True)
    # Validation, test and test_all are 50, 30 and 500 images long.
    assert sorted(traced) == ["eval_step", "train_step"]


def test_seeds_share_one_program(tiny_config, one_unit):
    data, _ = load_splits(tiny_config.data)
    texts = set()
    for seed in (0, 1):
        config = dataclasses.replace(tiny_config, seed=seed)
        engine = Engine(config, data.class_names, data.image_shape)
        key, images = jax.random.key(seed), jnp.zeros((1, 28, 28, 1))
        model = make_model(config, 10)
        create = partial(rj.TrainState.create, model, optax.sgd(0.1), ema=True)
        state = jax.eval_shape(create, key, images)
        batch = rj.Batch(*data.train.batch(np.arange(20)))
        texts.add(engine._train.lower(state, key, batch).as_text())
    assert len(texts) == 1


ON_THREE_DEVICES = """
import json, sys
import numpy as np
import resnet_jax as rj
run = rj.Run.open(sys.argv[1])
images = rj.load_dataset("mnist_5k").test.images[:7]
try:
    rj.train(run.config, sys.argv[1] + "-other", quiet=True)
except rj.ResNetJaxError as error:
    found = run.evaluate("test_all").to_dict()
    print(json.dumps([str(error), found, run.predict(images).tolist()]))
"""


@pytest.mark.slow
def test_a_run_is_used_on_devices_that_could_not_train_it(finished_run):
    """Twenty images cannot be split over three devices; evaluation and prediction pad them."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=3"
    done = subprocess.run(
        [sys.executable, "-c", ON_THREE_DEVICES, str(finished_run.path)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    refusal, found, probabilities = json.loads(done.stdout)
    assert "--batch-size 20 cannot be split over 3 devices: give 18 or 21" in refusal
    expected = finished_run.evaluate("test_all")
    assert found["count"] == 500
    assert found["confusion"] == expected.confusion.tolist()
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    images = rj.load_dataset("mnist_5k").test.images[:7]
    np.testing.assert_allclose(probabilities, finished_run.predict(images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "accumulate", "nearest"), [(20, 3, "18 or 21"), (20, 40, "40"), (7, 2, "6 or 8")]
)
def test_parts_that_do_not_divide_the_batch_are_refused(size, accumulate, nearest, tiny_config):
    config = dataclasses.replace(tiny_config, batch_size=size, accumulate=accumulate)
    with pytest.raises(
        ResNetJaxError,
        match=rf"--batch-size {size} cannot be split over one device in {accumulate} parts "
        rf"\(--accumulate\): give {nearest}$",
    ):
        check_against_dataset(config, BLACK)


def test_what_the_images_do_not_allow_is_refused(tiny_config):
    for option in ("patience", "target"):
        config = dataclasses.replace(tiny_config, **{option: 1})
        with pytest.raises(ResNetJaxError, match=f"--{option} 1 needs validation images"):
            check_against_dataset(config, BLACK)
    for epochs in (1e9, 1e300):  # more steps than can be counted
        with pytest.raises(ResNetJaxError, match=r"--epochs 1e\+\d+ of 120 images"):
            check_against_dataset(dataclasses.replace(tiny_config, epochs=epochs), BLACK)


@pytest.mark.slow
def test_an_empty_split_is_no_result(tiny_config, tmp_path):
    data = dataclasses.replace(tiny_config.data, subset=(120, 50, 0))
    run = rj.train(dataclasses.replace(tiny_config, data=data), tmp_path, quiet=True)
    metrics = run.metrics()
    assert set(metrics[metrics["kind"] == "test"]["split"]) == {"test_all"}
    with pytest.raises(ResNetJaxError, match="split test holds no images: give one of train"):
        run.evaluate("test")
