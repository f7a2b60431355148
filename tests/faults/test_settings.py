"""Configurations that cannot be meant, and the mean and deviation that a dataset is given."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main


def photos(folder, grey=100, per_class=10):
    """Two classes of flat colour pictures around a grey level, 8x8."""
    random = np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = random.integers(grey - 50, grey + 50, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def options(folder, run):
    return [
        *("train", "--data.name", "folder", "--data.dir", str(folder), "--run-dir", str(run)),
        *("--model.width", "2", "--model.lowering", "reference", "--batch-size", "8"),
        *("--epochs", "1", "--no-report", "--data.validation", "2", "--augment.rotation", "0"),
        *("--augment.shift", "0", "--augment.scale", "0", "--augment.shear", "0"),
    ]


def test_a_folder_is_normalised_by_its_own_images_and_finished_without_test_images(
    one_unit, tmp_path, capsys
):
    """FAULTS A11 and A16, by one training."""
    photos(tmp_path / "split/train")
    command = options(tmp_path / "split", tmp_path / "run")
    assert main(command) == 0
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["config"]["data"]
    data = rj.load_dataset("folder", tmp_path / "split", validation=2)
    pixels = data.train.images.reshape(-1, 3) / 255
    assert settings["mean"] == pytest.approx(pixels.mean(0), abs=1e-4)
    assert settings["std"] == pytest.approx(pixels.std(0), abs=1e-4)
    # The same command takes what the run keeps, and has nothing to do.
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(command) == 0
    assert "finished" in capsys.readouterr().out
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    # What is given is another configuration.
    assert main([*command, "--data.mean", "0.25"]) == 1
    assert "data.mean" in capsys.readouterr().err


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_value_for_each_channel_is_refused_before_training(accumulate, tmp_path, capsys):
    """FAULTS A5: batch norm of one image whose last map is 1x1 has nothing to normalise."""
    folder = photos(tmp_path / "photos")
    command = [*options(folder, tmp_path / "run"), "--accumulate", str(accumulate)]
    command[command.index("--batch-size") + 1] = str(accumulate)
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert "--batch-size" in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "run/checkpoints").exists()


def test_seeds_that_differ_in_how_images_are_read_are_compared_as_one(
    finished_run, tmp_path, capsys
):
    """FAULTS A14."""
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
        folders.append(str(folder))
    assert main(["compare", *folders, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["runs"] for row in rows] == [2]


def test_the_help_states_each_default_once(capsys):
    """FAULTS D: it said "Default: 300. (default: None)"."""
    for command in ("train", "export", "demo", "predict", "summary", "data", "verify"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default:" in text
    assert "Default:" not in text


def test_a_few_images_are_not_predicted_in_a_whole_training_batch(finished_run, monkeypatch):
    """FAULTS C1: the batch that is computed is the next power of two at most."""
    import jax

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
