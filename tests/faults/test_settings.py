"""Configurations that cannot be meant, and the mean and deviation that a dataset is given."""

import json

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main

OPTIONS = """
    --data.name folder --data.validation 2 --model.width 2 --model.lowering reference --epochs 1
    --augment.rotation 0 --augment.shift 0 --augment.scale 0 --augment.shear 0 --no-report
"""


@pytest.fixture
def train(tmp_path):
    """The command on two classes of colour pictures around a grey level, 8x8."""
    random = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "split/train" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(50, 150, (8, 8, 3), np.uint8)).save(path)
    places = ("--data.dir", tmp_path / "split", "--run-dir", tmp_path / "run")
    return ["train", *OPTIONS.split(), *places]


def test_a_folder_is_normalised_by_its_own_images_and_finished_without_test_images(
    train, one_unit, tmp_path, command, refusal
):
    """MNIST's mean stood for every dataset; without a test, a run was never finished."""
    train += ["--batch-size", "8"]
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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_value_for_each_channel_is_refused_before_training(
    accumulate, train, tmp_path, refusal
):
    """Batch norm of one image whose last map is 1x1 has nothing to normalise."""
    line = refusal(*train, "--accumulate", accumulate, "--batch-size", accumulate)
    assert "--batch-size" in line
    assert not (tmp_path / "run/checkpoints").exists()


def test_seeds_that_differ_in_how_images_are_read_are_compared_as_one(
    finished_run, tmp_path, command
):
    config = (finished_run.path / "config.yaml").read_text()
    folders = []
    for seed, changes in enumerate([{}, {"workers": 3, "streaming": "never", "memory_limit": 1.0}]):
        document = yaml.safe_load(config)
        document["config"]["seed"] = seed
        document["config"]["data"] |= changes
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        (folder / "metrics.jsonl").write_text((finished_run.path / "metrics.jsonl").read_text())
        folders.append(folder)
    code, out, _ = command("compare", *folders, "--json")
    assert code == 0
    assert [row["runs"] for row in json.loads(out)] == [2]


def test_the_help_states_each_default_once(capsys):
    """It said "Default: 300. (default: None)"."""
    for command in ("train", "export", "demo", "predict", "summary", "data", "verify"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
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
