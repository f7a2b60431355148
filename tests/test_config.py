"""Configurations: senseless settings are refused by name, and YAML restores the same ones."""

import dataclasses

import numpy as np
import pytest
import yaml

import resnet_jax as rj
from resnet_jax import config as settings
from resnet_jax.config import differences, from_dict, to_dict
from resnet_jax.training.setup import Custom, open_data

nan, infinity = float("nan"), float("inf")


REFUSED = {
    "batch-size": (64.5, "64", True, 0),
    "epochs": (0, infinity),
    "seed": (-1, 2**31),
    "label-smoothing": (1,),
    "ema": ("0.9", 1.0),
    "eval-every": (0,),
    "patience": (0,),
    "optim.learning-rate": (0, nan),
    "optim.momentum": (1,),
    "optim.boundaries": ((0.5, 2),),
    "optim.name": ("lars",),
    "model.name": ("resnet19",),
    "model.width": (0,),
    "augment.erase": (1.5,),
    "augment.shift": (-2,),
    "augment.crop": (-1,),
    "augment.mixup": (-0.2,),
    "augment.cutmix": (nan,),
    "augment.resized-crop": (8,),
    "augment.randaugment": (100,),
    "augment.magnitude": (11,),
    "data.validation": (-5,),
    "data.mean": ((33.0,), (nan,), ()),  # as for levels of 0 to 255
    "data.std": ((78.0,), (0.5, 0), 0.3),
    "data.subset": ((100, 10),),
}


@pytest.mark.parametrize("option", REFUSED)
def test_settings_that_make_no_sense_are_refused_by_name(option):
    for value in REFUSED[option]:
        with pytest.raises(rj.ResNetJaxError, match=rf"^--{option} must be .* got .+$") as refusal:
            settings.replaced(rj.TrainConfig(), {option: value})
        assert str(refusal.value).rpartition("got ")[2].strip("'") in str(value)


def test_settings_that_do_not_fit_together_are_refused_by_name():
    crops = rj.AugmentConfig(crop=4, resized_crop=0.08)
    sizes = rj.DataConfig(subset=[100, 10, 9])
    for said, changes in (
        (r"--data\.subset must .* got \[100, 10, 9\]$", {"data": sizes}),
        ("optim must .*None", {"optim": None}),
        ("--seed must .* at most 2147483647, got 2147483648$", {"seed": 2**31}),  # with every digit
        ("--optim.nesterov .*give", {"optim": rj.OptimConfig(nesterov=True, momentum=0)}),
        ("--augment.crop 4 and --augment.resized-crop 0.08 .*give", {"augment": crops}),
        ("--data.center-crop .*give", {"data": rj.DataConfig(center_crop=True)}),
    ):
        with pytest.raises(rj.ResNetJaxError, match=f"^{said}"):
            rj.TrainConfig(**changes)


def test_yaml_brings_a_configuration_back():
    for config in rj.PRESETS.values():
        assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_the_book_preset_is_the_books_experiment():
    book = rj.PRESETS["book"]
    assert book.data.subset == (1000, 200, 200)
    assert (book.data.image_size, book.data.mean, book.data.std) == (32, (0.5,), (0.5,))
    assert (book.epochs, book.batch_size, book.eval_every) == (5, 64, 15)
    assert book.optim == rj.OptimConfig(name="sgd", learning_rate=0.005, momentum=0.0)
    assert book.model.initializer == "torch"
    assert book.augment == rj.AugmentConfig()


def test_what_changes_the_numbers_is_the_default_and_named_where_not():
    named = {effect: set() for effect in settings.Effect}
    for setting in settings.settings(rj.TrainConfig()):
        named[setting.effect].add(setting.option)
    assert named[settings.Effect.SELECTION] == {"eval-every", "patience", "target"}
    assert named[settings.Effect.LOCAL] == {"data.dir", "data.workers"}
    assert named[settings.Effect.EXECUTION] == {
        *("log-every", "tensorboard", "compilation-cache", "model.remat"),
        *("data.streaming", "data.memory-limit", "data.find-digit"),
    }


def test_settings_are_replaced_and_compared_by_their_options():
    config = rj.PRESETS["mnist"]
    changed = settings.replaced(
        config, {"seed": 2, "optim.learning-rate": 0.5, "data.image-size": None}
    )
    assert (changed.seed, changed.optim.learning_rate, changed.data.image_size) == (2, 0.5, None)
    assert differences(config, changed) == {
        "seed": (0, 2),
        "optim.learning-rate": (config.optim.learning_rate, 0.5),
        "data.image-size": (config.data.image_size, None),
    }
    assert settings.replaced(config, {}) == config
    assert differences(config, config) == {}


def test_numbers_of_numpy_are_settings_and_are_written_as_pythons(tiny_config):
    mean = tuple(np.float32([0.25, 0.5]))
    optim = rj.OptimConfig(learning_rate=np.float64(0.1))
    config = rj.TrainConfig(seed=np.int64(3), optim=optim, data=rj.DataConfig(mean=mean))
    text = yaml.safe_dump(to_dict(config))
    assert from_dict(yaml.safe_load(text)) == config
    open_data(dataclasses.replace(tiny_config, seed=np.int64(3)), None, Custom(), 1)
    for wrong in (np.float64(3), np.True_):
        with pytest.raises(rj.ResNetJaxError, match="--seed must be"):
            rj.TrainConfig(seed=wrong)
