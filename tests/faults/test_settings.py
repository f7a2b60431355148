"""Settings: what a dataset is given, what is compared as one, and what the help says of them."""

import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from test_docs import help_of

import resnet_jax as rj

OPTIONS = """
    --data.name folder --data.validation 2 --model.width 2 --model.lowering reference --epochs 1
    --augment.rotation 0 --augment.shift 0 --augment.scale 0 --augment.shear 0 --no-report
    --batch-size 8
"""


def test_a_folder_is_normalised_by_its_own_images_and_finished_without_test_images(
    one_unit, tmp_path, command, refusal
):
    """MNIST's mean stood for every dataset; without a test, a run was never finished."""
    random = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "split/train" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(50, 150, (8, 8, 3), np.uint8)).save(path)
    places = ("--data.dir", tmp_path / "split", "--run-dir", tmp_path / "run")
    train = ["train", *OPTIONS.split(), *places]
    assert command(*train)[0] == 0
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["config"]["data"]
    data = rj.load_dataset("folder", tmp_path / "split", validation=2)
    pixels = data.train.images.reshape(-1, 3) / 255
    assert settings["mean"] == pytest.approx(pixels.mean(0), abs=1e-4)
    assert settings["std"] == pytest.approx(pixels.std(0), abs=1e-4)
    # The same command takes what the run keeps, and has nothing to do.
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    code, out, _ = command(*train)
    assert (code, "finished" in out) == (0, True)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    # What is given is another configuration.
    assert "data.mean" in refusal(*train, "--data.mean", "0.25")


def test_the_help_states_each_default_once():
    """It said "Default: 300. (default: None)"."""
    commands = ("train", "export", "demo", "predict", "summary", "data", "verify")
    text = " ".join("".join(map(help_of, commands)).replace("│", " ").split())
    assert "Train a network, or resume" in text  # it was that of `functools.partial`
    assert "(default:" in text
    assert "Default:" not in text


def test_a_few_images_are_not_predicted_in_a_whole_training_batch(finished_run, monkeypatch):
    """The batch that is computed is the next power of two at most."""
    sizes = []
    softmax = jax.nn.softmax

    def noting(logits, *args, **kwargs):
        sizes.append(logits.shape[0])
        return softmax(logits, *args, **kwargs)

    run = rj.Run.open(finished_run.path)
    monkeypatch.setattr(jax.nn, "softmax", noting)
    images = np.zeros((3, 28, 28, 1), np.uint8)
    assert run.predict(images).shape == (3, 10)
    assert max(sizes) <= 4
