"""The presets for CIFAR-10 and ImageNet, on small datasets with their features."""

import json

import numpy as np
import pytest
from make_datasets import build, encoded
from PIL import Image

import resnet_jax as rj
from resnet_jax.data.image import DecodeSpec, read_image
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.models import VARIANTS

NETWORK = ["--model.width", "2", "--model.lowering", "reference"]
SIZES = ((300, 400), (500, 333), (260, 260), (120, 90))


def cifar(count):
    pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return [(encoded(image), i % 10) for i, image in enumerate(pixels)]


def photographs(count, seed, *, labelled=True):
    """Yield JPEGs of several sizes; without labels, as in ImageNet's test split, all have -1."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        height, width = SIZES[i % 4]
        pixels = rng.integers(0, 256, (height // 10, width // 10, 3), np.uint8)
        picture = np.asarray(Image.fromarray(pixels).resize((width, height)))
        yield encoded(picture, "jpeg"), int(rng.integers(1000)) if labelled else -1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of datasets as TFDS prepares `cifar10` and `imagenet2012`."""
    root = tmp_path_factory.mktemp("tfds")
    splits = {"train": cifar(60), "test": cifar(12)}
    build(root, splits, name="cifar10", shape=(32, 32, 3))
    splits = {"train": photographs(8, 0), "validation": photographs(4, 1)}
    splits["test"] = photographs(2, 2, labelled=False)
    names = [f"n{k:08d}" for k in range(1000)]
    build(root, splits, name="imagenet2012", shape=(None, None, 3), names=names)
    return root


@pytest.mark.slow
def test_cifar10_trains_by_its_preset(prepared, one_unit, tmp_path, command):
    options = ["--data.dir", prepared, "--batch-size", 20, "--epochs", 1, "--no-report"]
    assert command("train", "cifar10", "--run-dir", tmp_path, *options, *NETWORK)[0] == 0
    run = rj.Run.open(tmp_path)
    assert run.image_shape == (32, 32, 3)
    assert run.metrics()["step"].max() == 3  # 54 images: a tenth of the 60 is held out
    assert run.evaluate().count == 12


@pytest.mark.slow
def test_imagenet_trains_by_its_preset(prepared, one_unit, tmp_path, command, monkeypatch):
    monkeypatch.setitem(VARIANTS, "resnet50", VARIANTS["resnet18"])
    run_dir = tmp_path / "run"
    options = ["--data.dir", prepared, "--data.streaming", "always", "--batch-size", 4]
    options += ["--epochs", 1]
    code, shown, _ = command("train", "imagenet", "--run-dir", run_dir, *options, *NETWORK)
    assert code == 0
    assert "BN 81% initial" in shown  # in place of top-5, after only two steps
    assert "report: " in shown  # of the validation images: the test's labels are not published
    run = rj.Run.open(run_dir)
    assert run.image_shape == (256, 256, 3)
    assert len(run.class_names) == 1000
    metrics = run.metrics()
    assert metrics["step"].max() == 2
    row = metrics[metrics["kind"] == "validation"].iloc[-1]
    tests = metrics[metrics["kind"] == "test"]
    assert list(tests["split"]) == ["validation"] * 2
    assert tests["accuracy"].max() == row["accuracy"]
    found = json.loads(command("evaluate", run_dir, "--split", "validation", "--json")[1])
    assert found["count"] == 4
    assert found["top5"] == row["top5"]
    assert found["accuracy"] <= found["top5"]
    evaluation = rj.inspection.examine(run, "validation").evaluation
    assert (evaluation.correct5, evaluation.correct) == (4 * found["top5"], found["correct"])


def test_imagenet_is_evaluated_as_torchvision_does():
    """The reference is Resize(256) and CenterCrop(224) by Pillow, scaled and normalised."""
    config = rj.PRESETS["imagenet"]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (30, 40, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((450, 300), Image.Resampling.BICUBIC)
    read = read_image(encoded(np.asarray(picture)), DecodeSpec((256, 256, 3), config.data.fit))
    resized = picture.resize((384, 256), Image.Resampling.BILINEAR)
    cut = resized.crop((80, 16, 80 + 224, 16 + 224))
    mean, std = np.array(config.data.mean), np.array(config.data.std)
    expected = (np.asarray(cut) / 255 - mean) / std
    found = Preprocessing.of(config.data, (256, 256, 3))(read[None])[0]
    assert found.shape == (224, 224, 3)
    # `read_image` cuts the square before it resizes: that agrees to a grey level.
    assert np.abs((found - expected) * std * 255).max() < 1.01
