"""A custom network, optimiser, loss, dataset and callback in `rj.train`."""

import dataclasses
import re
from functools import partial
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.data.dataset import ArraySplit, Dataset, DiskSplit
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.models import Affine, summarize
from resnet_jax.training.setup import Custom, check_against_dataset


class SqueezeExcitation(nn.Module):
    """A network with no ``batch_stats``: a convolution whose channels are gated (1709.01507)."""

    features: int = 4

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(nn.Conv(self.features, (3, 3), name="conv")(images))
        gate = nn.sigmoid(nn.Dense(self.features, name="gate")(x.mean((1, 2))))
        return nn.Dense(3, name="head")((x * gate[:, None, None]).mean((1, 2)))


def focal(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the focal loss of arXiv 1708.02002, with exponent 2."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** 2) * log_p


def squares(count: int, seed: int, kind: type) -> ArraySplit:
    """Return images of three classes, which differ in brightness, with labels of type ``kind``."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count).astype(np.int32)
    noise = rng.integers(0, 40, (count, 8, 8, 1))
    images = noise + 80 * labels[:, None, None, None]
    return ArraySplit(images.astype(np.uint8), labels.astype(kind))


SPLITS = squares(60, 0, np.uint8), squares(20, 1, np.int64), squares(20, 2, np.int32)
DATA = Dataset.of("squares", *SPLITS, ("a", "b", "c"))
# The preset `record` sets this for its own data; data that are cut already must take it, too.
UNCUT = rj.DataConfig(validation=0)
CONFIG = rj.TrainConfig(data=UNCUT, batch_size=10, epochs=2, eval_every=6, log_every=4, ema=0.9)
changed = partial(dataclasses.replace, CONFIG)
# Functions, so that each start gets new parts, as another process would.
PARTS = {"model": SqueezeExcitation, "optimizer": lambda: optax.lion(1e-2), "data": lambda: DATA}


def start(run_dir, config=CONFIG, **changes):
    parts = {name: make() for name, make in PARTS.items()} | {"loss": focal} | changes
    return rj.train(config, run_dir, quiet=True, **parts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole run, and the mock callback that followed it."""
    told = mock.Mock(spec=rj.Callback)
    return start(tmp_path_factory.mktemp("own") / "run", callbacks=[told]), told


def test_the_run_is_trained_by_those_parts(whole):
    run, told = whole
    assert run.model.features == 4
    assert run.variables()["params"].keys() == {"conv", "gate", "head"}
    metrics = run.metrics()
    assert "learning_rate" not in metrics
    # The first loss is the focal loss of the fresh network, by hand.
    key, _ = jax.random.split(jax.random.key(0))
    images, labels = DATA.train.batch(EpochSampler(60, 10, seed=0).batch(0))
    mean, std = run.config.data.mean[0], run.config.data.std[0]

    @jax.jit
    def first(key, images):
        logits, _ = run.model.init_with_output(key, images, train=True)
        return focal(logits, labels).mean()

    expected = first(key, np.float32((images / 255 - mean) / std))
    np.testing.assert_allclose(metrics["loss"].iloc[0], expected, rtol=1e-4)
    assert told.on_step.mock_calls == [mock.call(step) for step in range(1, 13)]
    places = [(step, run.path / "checkpoints" / str(step)) for step in (6, 12)]
    assert told.on_save.mock_calls == [mock.call(*place) for place in places]
    evaluated = [call.args[:2] for call in told.on_evaluate.mock_calls]
    assert evaluated[:2] == [(6, "validation"), (12, "validation")]
    # Once if the latest and the best are the same, as they were on every processor tried.
    best = metrics["step"][metrics["checkpoint"] == "best"].iloc[0]
    assert sorted(evaluated[2:]) == [(step, "test") for step in sorted({int(best), 12})]


def test_it_is_opened_with_its_network_and_its_data(whole):
    run, _ = whole
    plain = rj.Run.open(run.path)
    said = refused(plain.predict, DATA.test.images)
    assert "SqueezeExcitation: open it with that (model=" in said
    assert "Run.open(..., data=" in refused(plain.evaluate)
    opened = rj.Run.open(run.path, model=SqueezeExcitation(), data=DATA)
    probabilities = opened.predict(DATA.test.images)
    assert (probabilities.argmax(1) == DATA.test.labels).mean() == opened.evaluate().accuracy
    # Other shapes ended in a traceback; a network with fewer parameters gave wrong answers.
    other = rj.Run.open(run.path, model=SqueezeExcitation(features=5))
    said = refused(other.predict, DATA.test.images)
    assert "another network than SqueezeExcitation: open" in said
    assert opened.verify().ok
    for wrong in (SqueezeExcitation, rj.ResNet18):
        assert ": give a Linen module" in refused(rj.Run.open, run.path, model=wrong)


class Other(SqueezeExcitation):
    pass


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": Other()}, r"model .*SqueezeExcitation -> .*Other"),
        ({"model": SqueezeExcitation(features=5)}, r"parameters \w+ -> \w+"),
        ({"optimizer": optax.adam(1e-2)}, r"optimizer state \w+ -> \w+"),
        ({"loss": None}, r"loss .*focal -> None"),
        ({"tag": "gamma 3"}, r"tag None -> gamma 3"),
        ({"model": None, "optimizer": None}, r"model .*SqueezeExcitation -> None"),
    ],
)
def test_other_parts_are_refused(changes, said, whole):
    assert re.search(f"another configuration .*{said}", refused(start, whole[0].path, **changes))


class Confused(rj.Callback):
    """Overwrites the array that it is given, as if to find the most confused pair."""

    def on_evaluate(self, step, split, evaluation):
        np.fill_diagonal(evaluation.confusion, 0)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(3, kernel_init=init, name="head")(images.mean((1, 2)))


def test_boxed_parameters_are_trained_and_read_and_a_callback_has_its_own_counts(tmp_path):
    """The network was not recognised, and accuracies came from counts that callbacks changed."""
    config = changed(optim=rj.OptimConfig(name="adamw", weight_decay=0.1))
    parts = {"model": Boxed(), "optimizer": None, "loss": None}
    run = start(tmp_path / "run", config, callbacks=[Confused(), Confused()], **parts)
    assert run.predict(DATA.test.images).shape == (20, 3)
    assert run.metrics()["accuracy"].iloc[-1] == run.evaluate("test").accuracy > 0
    (layer,) = summarize(Boxed(), DATA.image_shape)
    assert (layer.parameters, layer.multiply_adds) == (6, 3)


class Table(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        constant = self.variable("constants", "table", jnp.ones, (3,))
        return nn.Dense(3)(images.mean((1, 2))) * constant.value


class Two(SqueezeExcitation):
    @nn.compact
    def __call__(self, images, *, train):
        logits = super().__call__(images, train=train)
        return logits if train else (logits, images)


tiny = partial(rj.ResNet, (1,), rj.BasicUnit, width=2, stem="small", lowering="reference")
MANY = Dataset.of("many", DATA.train, DATA.test, DATA.test, tuple(map(str, range(46_341))))


class Dropping(nn.Module):
    always: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        x = images.mean((1, 2))
        drop = nn.Dropout(0.5, broadcast_dims=[0], deterministic=not (train or self.always))
        return nn.Dense(3)(drop(x))


EVERYTHING = rj.AugmentConfig(
    flip=True, crop=2, randaugment=2, mixup=0.2, cutmix=1.0, shift=1, erase=0.2
)


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        ({"accumulate": 2}, focal),
        pytest.param({"augment": EVERYTHING}, None, marks=pytest.mark.slow),
    ],
)
def test_it_resumes_to_the_same_bits(changes, loss, tmp_path, stop_after):
    """With dropout: in parts of a batch with a custom loss, or with every augmentation."""
    begin = partial(start, config=changed(**changes), model=Dropping(), loss=loss)
    whole = begin(tmp_path / "whole")
    said = r"enough: saved step 7 of 12 in .*run; the same command continues"
    with pytest.raises(rj.ResNetJaxError, match=said) as stop:
        begin(tmp_path / "run", should_stop=stop_after(7))
    assert stop.value.exit_code == 75
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"6", "7"}
    again = begin(tmp_path / "run")
    assert again.metrics()["seconds"].is_monotonic_increasing  # over both starts
    for checkpoint in ("latest", "best"):
        chex.assert_trees_all_equal(again.variables(checkpoint), whole.variables(checkpoint))


def test_each_step_of_a_run_draws_anew(tmp_path):
    """Each has the same images and weights, so that without new draws the losses would be equal."""
    config = changed(batch_size=60, epochs=4, log_every=1, ema=None)
    run = start(tmp_path / "run", config, model=Dropping(), optimizer=optax.sgd(0.0), loss=None)
    losses = run.metrics().query("kind == 'train'")["loss"]
    assert len(set(losses.round(3))) > 1


def test_losses_in_bfloat16_are_averaged_in_more_than_that(tmp_path):
    """In bfloat16 256 + 1 is 256: the mean of 299 losses of 1 was 0.86."""
    config = changed(epochs=50, eval_every=300, log_every=300)
    run = start(tmp_path, config, loss=lambda x, _: jnp.ones(len(x), jnp.bfloat16))
    assert run.metrics().query("kind == 'train'")["loss"].tolist() == [1, 1]


def test_each_key_and_each_part_of_a_batch_draws_its_own():
    """Dropout by half leaves 0 or 2 of each of 64 features; the mean of two parts can also be 1."""
    images = jnp.ones((2, 1, 1, 64))
    state = rj.TrainState.create(Dropping(), optax.sgd(1.0), jax.random.key(0), images)
    first = partial(rj.train_step, loss=lambda logits, _: logits[:, 0])
    step = jax.jit(first, static_argnames="accumulate")

    def left(seed, accumulate):
        batch, key = rj.Batch(images, jnp.zeros(2, jnp.int32)), jax.random.key(seed)
        moved, _ = step(state, batch, key=key, accumulate=accumulate)
        kernels = (s.params["Dense_0"]["kernel"][:, 0] for s in (state, moved))
        return np.rint(np.subtract(*kernels)).astype(int).tolist()

    assert (set(left(0, 1)), set(left(0, 2))) == ({0, 2}, {0, 1, 2})
    assert left(0, 1) == left(0, 1) != left(1, 1)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"model": Dropping(always=True)}, "model draws random numbers with train=False"),
        ({"model": rj.ResNet18}, r"model is functools.partial.*: give .* rj.ResNet18\(\)"),
        ({"model": Dropping}, "model is .*Dropping.*: give a Linen module"),
        ({"optimizer": optax.adam}, "optimizer is <function adam.*: give an optax transformation"),
        ({"loss": "focal"}, r"loss is 'focal': give a function of \(logits, targets\)"),
        ({"model": tiny(num_classes=10)}, r"one for each of 3 classes"),
        ({"model": Two()}, r"one for each of 3 classes"),
        ({"model": Table()}, r"needs more than params and batch_stats"),
        ({"data": MANY}, "46,340"),  # this was refused only after an epoch
        ({"config": "quickstart"}, "config is 'quickstart': give a TrainConfig"),
        ({"config": changed(data=rj.DataConfig(validation=5))}, "cut already, with 20 images"),
        ({"config": changed(init_from="weights")}, r"--init-from .* SqueezeExcitation: leave"),
        ({"config": changed(model=rj.ModelConfig(frozen_stages=0))}, r"--model.frozen-stages"),
        ({"config": changed(optim=rj.OptimConfig(body_rate=0.1))}, r"--optim.body-rate"),
    ],
)
def test_what_is_no_such_part_is_refused_before_anything(part, said, tmp_path):
    """Such a part ended in a traceback in the first step."""
    assert re.search(said, refused(start, tmp_path / "run", **part))
    assert not (tmp_path / "run").exists()


def test_a_tag_is_the_text_that_the_folder_has():
    """A run whose tag was a number did not recognise the tag when it resumed."""
    assert Custom(tag=np.float64(0.003)).describe(None, None, 3) == {"tag": "0.003"}


def test_labels_that_a_streamed_dataset_has_no_names_for_are_refused(tmp_path):
    """They are first read in training, where they added nothing to the loss."""
    split = DATA.train
    counted_from_one = DiskSplit(
        lambda at: (split.images[at], split.labels[at] + 1), np.arange(60), (8, 8, 1)
    )
    data = Dataset.of("ones", *[counted_from_one] * 3, "abc", source="version 1")
    said = "labels must be 0 to 2 for 3 names, got 1 to 3"
    assert said in refused(start, tmp_path / "run", data=data)


def test_without_batch_norm_one_image_is_a_batch_and_float64_needs_its_configuration(tmp_path):
    """One in float64 was trained in float32; weights without statistics started no network."""
    affine = partial(tiny, num_classes=3, norm=Affine)
    one = changed(batch_size=1, epochs=1 / len(DATA.train), ema=None)
    for network in (SqueezeExcitation(), rj.ResNet18(num_classes=3, norm=Affine)):
        check_against_dataset(one, DATA, network)
    wide = affine(dtype=jnp.float64, param_dtype=jnp.float64)
    assert "--model.dtype float64" in refused(start, tmp_path, one, model=wide)
    float64 = dataclasses.replace(one, model=rj.ModelConfig(dtype="float64"))
    run = start(tmp_path / "run", float64, model=wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(run.variables()["params"])} == {np.dtype("f8")}
    begun = dataclasses.replace(one, init_from=str(run.path))
    again = start(tmp_path / "again", begun, model=affine())
    assert again.metrics().step.max() == run.metrics().step.max() == 1


def test_frozen_stages_do_not_decay(tmp_path):
    """The default optimiser follows the configuration; batch norm and gradients, the network.

    A custom optimiser must follow the network, too: it used to decay frozen parameters.
    """
    model, decaying = tiny(num_classes=3, frozen_stages=1), optax.adamw(0.1, weight_decay=0.1)
    config = changed(epochs=1, optim=rj.OptimConfig(weight_decay=0.1), ema=None)
    parts = {"model": model, "loss": None}
    assert "give both the same" in refused(start, tmp_path, config, optimizer=None, **parts)
    after = start(tmp_path, config, optimizer=decaying, **parts).variables("latest")["params"]
    key, _ = jax.random.split(jax.random.key(config.seed))
    init = jax.jit(partial(model.init, train=False))
    before = init(key, jnp.zeros((1, *DATA.image_shape)))["params"]
    chex.assert_trees_all_close(after["stem"], before["stem"])
    assert not np.allclose(after["head"]["kernel"], before["head"]["kernel"])


def test_weights_in_bfloat16_start_from_others(finished_run, tmp_path):
    """The weights had another type than the step was compiled for."""
    plain = {"init_from": str(finished_run.path), "augment": rj.AugmentConfig(), "ema": None}
    config = dataclasses.replace(finished_run.config, epochs=0.2, **plain)
    own = tiny(num_classes=10, width=4, stem="imagenet", param_dtype=jnp.bfloat16)
    run = rj.train(config, tmp_path / "run", quiet=True, model=own)
    assert run.metrics()["step"].max() == 2
