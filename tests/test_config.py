"""Configurations: what makes no sense is refused by name, and YAML brings the same back."""

import re

import pytest
import yaml

from resnet_jax.config import (
    AugmentConfig,
    DataConfig,
    Effect,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    differences,
    from_dict,
    options_with,
    replaced,
    to_dict,
)
from resnet_jax.errors import ResNetJaxError
from resnet_jax.presets import PRESETS, preset

nan, infinity = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("--batch-size 0", lambda: TrainConfig(batch_size=0)),
        ("--epochs 0", lambda: TrainConfig(epochs=0)),
        ("--epochs inf", lambda: TrainConfig(epochs=infinity)),
        ("--seed -1", lambda: TrainConfig(seed=-1)),
        ("--label-smoothing 1", lambda: TrainConfig(label_smoothing=1)),
        ("--ema 1", lambda: TrainConfig(ema=1.0)),
        ("--eval-every 0", lambda: TrainConfig(eval_every=0)),
        ("--patience 0", lambda: TrainConfig(patience=0)),
        ("--optim.learning-rate 0", lambda: TrainConfig(optim=OptimConfig(learning_rate=0))),
        ("--optim.learning-rate nan", lambda: TrainConfig(optim=OptimConfig(learning_rate=nan))),
        ("--optim.momentum 1", lambda: TrainConfig(optim=OptimConfig(momentum=1))),
        ("--optim.boundaries 2", lambda: TrainConfig(optim=OptimConfig(boundaries=(0.5, 2)))),
        ("--optim.nesterov", lambda: TrainConfig(optim=OptimConfig(nesterov=True, momentum=0))),
        ("--optim.name lars", lambda: TrainConfig(optim=OptimConfig(name="lars"))),
        ("--model.name resnet19", lambda: TrainConfig(model=ModelConfig(name="resnet19"))),
        ("--model.width 0", lambda: TrainConfig(model=ModelConfig(width=0))),
        ("--augment.erase 1.5", lambda: TrainConfig(augment=AugmentConfig(erase=1.5))),
        ("--augment.shift -2", lambda: TrainConfig(augment=AugmentConfig(shift=-2))),
        ("--augment.crop -1", lambda: TrainConfig(augment=AugmentConfig(crop=-1))),
        ("--augment.mixup -0.2", lambda: TrainConfig(augment=AugmentConfig(mixup=-0.2))),
        ("--augment.cutmix nan", lambda: TrainConfig(augment=AugmentConfig(cutmix=nan))),
        ("--augment.resized-crop 8", lambda: TrainConfig(augment=AugmentConfig(resized_crop=8))),
        ("--augment.randaugment 100", lambda: TrainConfig(augment=AugmentConfig(randaugment=100))),
        ("--augment.magnitude 11", lambda: TrainConfig(augment=AugmentConfig(magnitude=11))),
        (
            "--augment.crop 4 and --augment.resized-crop 0.08",
            lambda: TrainConfig(augment=AugmentConfig(crop=4, resized_crop=0.08)),
        ),
        ("--data.center-crop", lambda: TrainConfig(data=DataConfig(center_crop=True))),
        ("--data.validation -5", lambda: TrainConfig(data=DataConfig(validation=-5))),
        ("--data.std 0", lambda: TrainConfig(data=DataConfig(std=(0.5, 0)))),
        # A scale of 0 to 255, and values of another type
        ("--data.mean 33", lambda: TrainConfig(data=DataConfig(mean=(33.0,)))),
        ("--data.std 78", lambda: TrainConfig(data=DataConfig(std=(78.0,)))),
        ("--data.mean nan", lambda: TrainConfig(data=DataConfig(mean=(nan,)))),
        ("--batch-size 64.5", lambda: TrainConfig(batch_size=64.5)),
        ("--batch-size '64'", lambda: TrainConfig(batch_size="64")),
        ("--batch-size True", lambda: TrainConfig(batch_size=True)),
        ("--data.std 0.3", lambda: TrainConfig(data=DataConfig(std=0.3))),
        ("--data.subset [100, 10, 9]", lambda: TrainConfig(data=DataConfig(subset=[100, 10, 9]))),
        ("--data.subset (100, 10)", lambda: TrainConfig(data=DataConfig(subset=(100, 10)))),
        ("--data.mean ()", lambda: TrainConfig(data=DataConfig(mean=()))),
        ("--ema '0.9'", lambda: TrainConfig(ema="0.9")),
        ("optim None", lambda: TrainConfig(optim=None)),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(option, make):
    with pytest.raises(ResNetJaxError) as refusal:
        make()
    message = str(refusal.value)
    name, _, value = option.partition(" ")
    assert message.startswith(name)
    assert value in message
    assert re.search("must|give", message)
    assert "\n" not in message


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_brings_a_configuration_back(name):
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(PRESETS[name])))) == PRESETS[name]


def test_a_setting_of_a_later_version_is_named():
    values = to_dict(PRESETS["mnist"])
    values["optim"]["lookahead"] = True
    with pytest.raises(ResNetJaxError, match=r"optim\.lookahead"):
        from_dict(values)


def test_differences_are_by_option():
    one = PRESETS["quickstart"]
    other = replaced(one, {"seed": 3, "data.name": "mnist"})
    assert differences(one, other) == {"data.name": ("mnist_5k", "mnist"), "seed": (0, 3)}
    assert differences(one, one) == {}


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ResNetJaxError, match="did you mean fashion_mnist"):
        preset("fashion-mnist")
    with pytest.raises(ResNetJaxError, match="give one of quickstart, book"):
        preset("x")


def test_the_book_preset_is_the_books_experiment():
    book = PRESETS["book"]
    assert book.data.subset == (1000, 200, 200)
    assert (book.data.image_size, book.data.mean, book.data.std) == (32, (0.5,), (0.5,))
    assert (book.epochs, book.batch_size, book.eval_every) == (5, 64, 15)
    assert book.optim == OptimConfig(name="sgd", learning_rate=0.005, momentum=0.0)
    assert book.model.initializer == "torch"
    assert book.augment == AugmentConfig()


def test_what_changes_the_numbers_is_the_default_and_named_where_not():
    assert options_with(Effect.SELECTION) == {"eval-every", "patience", "target"}
    assert options_with(Effect.LOCAL) == {"data.dir", "data.workers"}
    assert options_with(Effect.EXECUTION) == {
        *("log-every", "tensorboard", "compilation-cache", "model.remat"),
        *("data.streaming", "data.memory-limit", "data.find-digit"),
    }
    learning = options_with(Effect.LEARNING)
    assert {"seed", "epochs", "batch-size", "optim.learning-rate", "data.mean"} <= learning
    everything = options_with(*Effect)
    assert len(everything) == len(learning) + 3 + 2 + 7


def test_settings_are_replaced_by_their_options():
    config = PRESETS["mnist"]
    changed = replaced(config, {"seed": 2, "optim.learning-rate": 0.5, "data.image-size": None})
    assert (changed.seed, changed.optim.learning_rate, changed.data.image_size) == (2, 0.5, None)
    assert differences(config, changed).keys() == {"seed", "optim.learning-rate", "data.image-size"}
    assert replaced(config, {}) == config


def test_a_run_of_0_1_0_is_read():
    values = to_dict(PRESETS["mnist"])
    values["data"]["from_idx"] = None  # was a setting, though it decided nothing about a run
    assert from_dict(values) == PRESETS["mnist"]
