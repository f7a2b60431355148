"""The presets for CIFAR-10 and ImageNet, on small data sets with their features."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main
from resnet_jax.data.image import DecodeSpec, read_image
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.checks import check_against_dataset
from resnet_jax.training.engine import Engine

NETWORK = ["--model.width", "2", "--model.lowering", "reference"]


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As TFDS describes `cifar10`: an id, PNGs of 32x32x3, ten names."""

    VERSION = tfds.core.Version("3.0.2")
    name = "cifar10"

    def _info(self):
        names = ["airplane", "automobile", "bird", "cat", "deer"]
        names += ["dog", "frog", "horse", "ship", "truck"]
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(60, 0), "test": self._generate_examples(12, 1)}

    def _generate_examples(self, count, seed):
        rng = np.random.default_rng(seed)
        for i in range(count):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            yield i, {"id": f"{i}", "image": encoded(pixels, "png"), "label": i % 10}


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As TFDS describes `imagenet2012`: JPEGs of several sizes, file names, no labels in test."""

    VERSION = tfds.core.Version("5.1.0")
    name = "imagenet2012"

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=[f"n{k:08d}" for k in range(1000)]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(8, 0),
            "validation": self._generate_examples(4, 1),
            "test": self._generate_examples(2, 2, labelled=False),
        }

    def _generate_examples(self, count, seed, labelled=True):
        rng = np.random.default_rng(seed)
        for i in range(count):
            height, width = ((300, 400), (500, 333), (260, 260), (120, 90))[i % 4]
            pixels = rng.integers(0, 256, (height // 10, width // 10, 3), np.uint8)
            picture = Image.fromarray(pixels).resize((width, height))
            label = int(rng.integers(1000)) if labelled else -1
            example = {"image": encoded(np.asarray(picture), "jpeg"), "file_name": f"{i}.JPEG"}
            yield i, {**example, "label": label}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of prepared data sets."""
    root = tmp_path_factory.mktemp("tfds")
    for builder in (Cifar10, Imagenet2012):
        builder(data_dir=root).download_and_prepare(file_format="array_record")
    return root


@pytest.mark.slow
def test_cifar10_trains_by_its_preset(prepared, tmp_path, capsys):
    options = ["--data.dir", str(prepared), "--batch-size", "20", "--epochs", "1", "--no-report"]
    run_dir = tmp_path / "run"
    assert main(["train", "cifar10", "--run-dir", str(run_dir), *options, *NETWORK]) == 0
    run = rj.Run.open(run_dir)
    assert run.image_shape == (32, 32, 3)
    assert run.class_names[3] == "cat"
    assert run.metrics()["step"].max() == 3  # 54 images, a tenth held out
    capsys.readouterr()
    assert main(["evaluate", str(run_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 12
    assert "top5" not in found  # of ten classes five say little


@pytest.mark.slow
def test_imagenet_trains_by_its_preset(prepared, tmp_path, capsys):
    run_dir = tmp_path / "run"
    options = ["--data.dir", str(prepared), "--batch-size", "4", "--epochs", "1"]
    options += ["--data.streaming", "always"]
    assert main(["train", "imagenet", "--run-dir", str(run_dir), *options, *NETWORK]) == 0
    shown = capsys.readouterr().out
    assert "top-5" in shown
    assert "report: " in shown  # of the validation images: the test's labels are not published
    run = rj.Run.open(run_dir)
    assert run.image_shape == (256, 256, 3)
    assert len(run.class_names) == 1000
    metrics = run.metrics()
    assert metrics["step"].max() == 2
    assert set(metrics["kind"]) == {"train", "validation"}
    row = metrics[metrics["kind"] == "validation"].iloc[-1]
    assert main(["evaluate", str(run_dir), "--split", "validation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 4
    assert found["top5"] == row["top5"]
    assert found["accuracy"] <= found["top5"]
    evaluation = rj.inspection.examine(run, "validation").evaluation
    assert (evaluation.correct5, evaluation.correct) == (4 * found["top5"], found["correct"])


def test_imagenet_is_evaluated_as_torchvision_does():
    """Resize(256) and CenterCrop(224) by Pillow, scaled and normalised."""
    config = rj.PRESETS["imagenet"]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (30, 40, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((450, 300), Image.Resampling.BICUBIC)
    read = read_image(bytes_of(picture), DecodeSpec((256, 256, 3), config.data.fit))
    resized = picture.resize((384, 256), Image.Resampling.BILINEAR)
    cut = resized.crop((80, 16, 80 + 224, 16 + 224))
    mean, std = np.array(config.data.mean), np.array(config.data.std)
    expected = (np.asarray(cut) / 255 - mean) / std
    found = Preprocessing.of(config.data, (256, 256, 3))(read[None])[0]
    assert found.shape == (224, 224, 3)
    # The square is cut before it is resized: the same to a grey level.
    assert np.abs((found - expected) * std * 255).max() < 1.01


def bytes_of(picture: Image.Image) -> bytes:
    return encoded(np.asarray(picture), "png")


MNIST = {"num_train": 100, "num_validation": 10, "image_shape": (28, 28, 1)}


def test_what_cannot_be_cropped_is_refused():
    data = rj.DataConfig(image_size=32, center_crop=True)
    with pytest.raises(ResNetJaxError, match=r"--data\.center-crop .* 28x28 .*--data\.read-size"):
        check_against_dataset(rj.TrainConfig(data=data), **MNIST)
    augment = rj.AugmentConfig(crop=28)
    with pytest.raises(ResNetJaxError, match=r"--augment\.crop must be below 28 .* 28x28"):
        check_against_dataset(rj.TrainConfig(augment=augment), **MNIST)


@pytest.mark.slow
def test_every_augmentation_at_once_trains_and_resumes_to_the_same_bits(tiny_config, tmp_path):
    everything = rj.AugmentConfig(
        flip=True, crop=2, randaugment=2, mixup=0.2, cutmix=1.0, shift=1, erase=0.2
    )
    config = dataclasses.replace(tiny_config, augment=everything, epochs=1)
    whole = rj.train(config, tmp_path / "whole", quiet=True)
    program, stopped = Engine.train, []

    def stopping(self, *args):
        stopped.append(None)
        if len(stopped) == 6:
            raise KeyboardInterrupt
        return program(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "train", stopping)
        with pytest.raises(KeyboardInterrupt):
            rj.train(config, tmp_path / "parts", quiet=True)
    parts = rj.train(config, tmp_path / "parts", quiet=True)
    for one, other in zip(
        jax.tree.leaves(whole.variables("latest")),
        jax.tree.leaves(parts.variables("latest")),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    train = whole.metrics().query("kind == 'train'")
    assert jnp.isfinite(train["loss"].to_numpy()).all()
