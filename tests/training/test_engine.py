"""The compiled programs: traced once in a whole run, shared by seeds, on any number of devices."""

import dataclasses
import re
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.data.load import load_splits
from resnet_jax.models import make_model
from resnet_jax.training import engine as module
from resnet_jax.training.engine import Engine
from resnet_jax.training.setup import check_against_dataset
from resnet_jax.training.step import cross_entropy

# A dataset without validation or test images.
BLACK = rj.Dataset.from_arrays(
    "black", np.zeros((120, 28, 28, 1), np.uint8), np.zeros(120, int), validation=0
)


def test_logits_in_half_precision_are_probabilities_in_whole():
    engine = Engine(rj.TrainConfig(batch_size=4), tuple("0123456789"), (2, 5, 1))
    state = SimpleNamespace(
        variables={}, apply_fn=lambda _, x, train: x.reshape(len(x), 10).astype(jnp.bfloat16)
    )
    images = np.arange(40, dtype=np.uint8).reshape(4, 2, 5, 1)
    probabilities = jax.jit(partial(engine._probabilities, state))(images)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


PACKAGE = str(Path(rj.__file__).parent)


def test_a_whole_run_traces_each_step_once_three_frames_below_the_library(
    tiny_config, linear, tmp_path, monkeypatch
):
    traced, frames, train = [], [], Engine.train

    def looking(self, *args):
        stack = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
        frames.append([frame.name for frame in stack])
        return train(self, *args)

    monkeypatch.setattr(Engine, "train", looking)
    for step in (module.train_step, module.eval_step):

        @wraps(step)
        def counted(*args, step=step, **kwargs):
            traced.append(step.__name__)
            return step(*args, **kwargs)

        monkeypatch.setattr(module, step.__name__, counted)
    rj.train(tiny_config, tmp_path, quiet=True, model=linear)
    # One trace serves validation, test and test_all, which have 50, 30 and 500 images.
    assert sorted(traced) == ["eval_step", "train_step"]
    assert frames == [["train", "fit"]] * 12  # `Engine.train` itself is the third frame


def test_a_few_images_are_computed_in_few_rows_whatever_the_batch(finished_run):
    """With batches of 4,096, evaluating 30 images computed 4,096 rows."""
    config = dataclasses.replace(finished_run.config, batch_size=4096)
    engine = Engine(config, finished_run.class_names, finished_run.image_shape)
    rows, shard = [], engine.shard_batch
    engine.shard_batch = lambda array: rows.append(len(array)) or shard(array)
    state, images = finished_run._state("best"), np.zeros((3, 28, 28, 1), np.uint8)
    assert engine.predict(state, images).shape == (3, 10)
    found = engine.evaluate(state, finished_run.split("test"))
    assert rows == [4, 4, 32, 32]  # images and labels
    expected = finished_run.evaluate("test")
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    # One device may use a run that many have trained.
    assert engine.predict(state, np.zeros((600, 28, 28, 1), np.uint8)).shape == (600, 10)
    assert max(rows) == 256


def prepared(config, model):
    """Return training images, an engine for them, a key, and a function from key to first state."""
    data, _ = load_splits(config.data)
    engine = Engine(config, data.class_names, data.image_shape)
    parts = {"images": jnp.zeros((1, 28, 28, 1)), "ema": config.ema is not None}
    create = partial(rj.TrainState.create, model, optax.sgd(0.1), **parts)
    return data.train, engine, jax.random.key(config.seed), create


def test_seeds_share_one_program(tiny_config, linear):
    texts = set()
    for seed in (0, 1):
        config = dataclasses.replace(tiny_config, seed=seed)
        train, engine, key, create = prepared(config, linear)
        batch = rj.Batch(*train.batch(np.arange(20)))
        texts.add(engine._train.lower(jax.eval_shape(create, key), key, batch).as_text())
    assert len(texts) == 1


def test_the_step_that_was_compiled_ahead_is_the_one_that_is_taken(tiny_config, linear):
    train, engine, key, create = prepared(dataclasses.replace(tiny_config, ema=None), linear)
    state = create(key)
    with ThreadPoolExecutor(1) as pool:
        engine.compile_ahead(pool, state, key)
    engine._train = None  # so that only the step compiled ahead can be called
    state = engine.replicate(state)
    for batch in engine.batches(train, np.arange(40).reshape(2, 20)):
        state, metrics = engine.train(state, key, batch)
    assert int(state.step) == 2
    assert np.isfinite(metrics.loss)


def with_pooling() -> tuple[rj.TrainState, rj.Batch]:
    model = rj.ResNet((1,), rj.BasicUnit, num_classes=3, width=4)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 12, 12, 1)).astype(np.float32)
    batch = rj.Batch(jnp.asarray(images), jnp.asarray([0, 1, 2, 2, 1, 0]))
    return rj.TrainState.create(model, optax.sgd(0.1), jax.random.key(0), batch.images), batch


def test_arrays_may_have_their_sharding_in_their_type():
    """With explicit axes, gradients had another type than the arrays that they belong to."""
    state, batch = with_pooling()
    step, evaluate = jax.jit(partial(rj.train_step, accumulate=2)), jax.jit(rj.eval_step)
    plain = state.replace(apply_fn=state.apply_fn.__self__.clone(lowering="reference").apply)
    expected, _ = step(plain, batch)
    mesh = jax.make_mesh((1,), ("data",))
    everywhere, by_row = (jax.NamedSharding(mesh, jax.P(*axis)) for axis in ((), ("data",)))
    whole, rows = jax.device_put(state, everywhere), jax.device_put(batch, by_row)
    whole.params["head"]["kernel"] = jax.device_put(whole.params["head"]["kernel"], by_row)
    counts = evaluate(whole, rows)
    np.testing.assert_array_equal(counts.confusion, evaluate(plain, batch).confusion)
    with jax.set_mesh(mesh):
        found, _ = step(whole, rows)
    chex.assert_trees_all_close(found.params, expected.params, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_the_whole_in_shard_map():
    """In `shard_map`, too, gradients had another type than the arrays that they belong to."""
    state, batch = with_pooling()

    def gradient(params, batch):  # shard_map adds up the parts' gradients
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            found = state.apply_fn(variables, batch.images, train=True, mutable=["batch_stats"])
            return cross_entropy(found[0], batch.labels).mean()

        return jax.grad(loss)(params)

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    parts = jax.shard_map(gradient, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P())
    found = (jax.jit(each)(state.params, batch) for each in (parts, gradient))
    chex.assert_trees_all_close(*found, atol=1e-5)


PARTS = r"--batch-size {} cannot be split over one device in {} parts \(--accumulate\): give {}$"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 20, "accumulate": 3}, PARTS.format(20, 3, "18 or 21")),
        ({"batch_size": 20, "accumulate": 40}, PARTS.format(20, 40, "40")),
        ({"batch_size": 7, "accumulate": 2}, PARTS.format(7, 2, "6 or 8")),
        # Batch norm gets one image, or one in each part, whose last map is 1x1.
        ({"batch_size": 1}, "--batch-size 1 gives batch norm one value .* give at least 2, or"),
        ({"batch_size": 2, "accumulate": 2}, "--batch-size 2 gives .* give at least 4, or"),
        ({"patience": 1}, "--patience 1 needs validation images"),
        ({"target": 1}, "--target 1 needs validation images"),
        # More steps than can be counted.
        ({"epochs": 1e9}, r"--epochs 1e\+09 of 120 images"),
        ({"epochs": 1e300}, r"--epochs 1e\+300 of 120 images"),
        (
            {"model": rj.ModelConfig(residual=False, zero_init_last=True)},
            r"--model\.zero-init-last .*give",
        ),
        (
            {"data": rj.DataConfig(image_size=32, center_crop=True)},
            r"--data\.center-crop .* 28x28 .*--data\.read-size",
        ),
        ({"augment": rj.AugmentConfig(crop=28)}, r"--augment\.crop must be below 28 .* 28x28"),
    ],
)
def test_what_the_images_do_not_allow_is_refused(changes, said, tiny_config):
    config = dataclasses.replace(tiny_config, **changes)
    assert re.search(said, refused(check_against_dataset, config, BLACK, make_model(config, 10)))


def test_the_step_gets_the_settings_of_the_run(tiny_config, linear, monkeypatch):
    """Nothing is computed. A run trained without its augmentation, mixing or parts as well."""
    told = {name: mock.Mock(wraps=getattr(module, name)) for name in ("augment", "train_step")}
    for name, function in told.items():
        monkeypatch.setattr(module, name, function)
    settings = rj.AugmentConfig(crop=2, flip=True, mixup=0.2, cutmix=1.0)
    more = {"augment": settings, "label_smoothing": 0.1, "accumulate": 2}
    train, engine, key, create = prepared(dataclasses.replace(tiny_config, **more), linear)
    batch = rj.Batch(*train.batch(np.arange(20)))
    jax.eval_shape(engine._train_on_batch, jax.eval_shape(create, key), key, batch)
    found = told["augment"].call_args.kwargs
    assert (found["crop"], found["flip"], found["shift"]) == (2, True, 0)
    (_, mixed), found = told["train_step"].call_args
    assert mixed.labels.shape == (20, 10)
    assert (found["label_smoothing"], found["ema"], found["accumulate"]) == (0.1, 0.9, 2)


def test_digits_are_looked_for_in_pictures_of_their_size_alone(tiny_config):
    colours = rj.Dataset.from_arrays("c", np.zeros((20, 28, 28, 3), np.uint8), np.zeros(20, int))
    config = dataclasses.replace(tiny_config, data=rj.DataConfig(find_digit=True))
    said = refused(check_against_dataset, config, colours, make_model(config, 1))
    assert "find-digit is for grey images" in said


def test_frozen_last_maps_may_have_one_value(tiny_config):
    model = rj.ModelConfig(width=4, frozen_stages=4)
    config = dataclasses.replace(tiny_config, batch_size=1, model=model)
    check_against_dataset(config, BLACK, make_model(config, 1))
