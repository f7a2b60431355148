"""Data that stay on disk: the same batches, the same run to the bit, from any step on."""

import dataclasses
import shutil

import chex
import numpy as np
import pytest
from PIL import Image

import resnet_jax as rj
from resnet_jax.data import IndexStream, load_dataset
from resnet_jax.data.streaming import ReadAhead
from resnet_jax.errors import ResNetJaxError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 digits as PNG files, a folder for each class."""
    root = tmp_path_factory.mktemp("digits")
    train = load_dataset("mnist_5k").train
    for label in range(10):
        (root / str(label)).mkdir()
        for number, index in enumerate(np.flatnonzero(train.labels == label)[:12]):
            image = Image.fromarray(train.images[index, :, :, 0])
            image.save(root / str(label) / f"{number}.png")
    return root


def config_of(folder, config: rj.TrainConfig, **data: object) -> rj.TrainConfig:
    settings = rj.DataConfig(name="folder", dir=str(folder), **data)
    return dataclasses.replace(config, data=settings, epochs=1, eval_every=3)


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_are_those_of_memory_from_any_step_on(folder, workers):
    held, read = (
        load_dataset("folder", folder, streaming=how).train for how in ("never", "always")
    )
    stream = IndexStream(len(held), 7, seed=3)
    for first in (0, 5):
        ahead = ReadAhead(read, stream.batch, range(first, 30), workers)
        for step in range(first, 30):
            images, labels = ahead.take(stream.batch(step))
            np.testing.assert_array_equal(images, held.images[stream.batch(step)])
            np.testing.assert_array_equal(labels, held.labels[stream.batch(step)])


@pytest.mark.slow
def test_a_streamed_run_is_the_run_in_memory(folder, tiny_config, tmp_path):
    held = rj.train(config_of(folder, tiny_config, streaming="never"), tmp_path / "a", quiet=True)
    # By its size: 120 images of 784 bytes are more than a hundred-thousandth of a GiB.
    small = config_of(folder, tiny_config, memory_limit=1e-5)
    streamed = rj.train(small, tmp_path / "b", quiet=True)
    chex.assert_trees_all_equal(held.variables("latest"), streamed.variables("latest"))
    columns = ["step", "kind", "loss", "accuracy"]
    assert held.metrics()[columns].equals(streamed.metrics()[columns])
    assert held.fingerprint == streamed.fingerprint
    found, expected = streamed.evaluate("test"), held.evaluate("test")
    np.testing.assert_array_equal(found.confusion, expected.confusion)


@pytest.mark.slow
def test_a_run_changes_from_disk_to_memory_on_its_way(folder, tiny_config, tmp_path, monkeypatch):
    from resnet_jax.training.program import Program

    whole = rj.train(config_of(folder, tiny_config, streaming="never"), tmp_path / "a", quiet=True)
    train, steps = Program.train, []

    def stopping(self, *args):
        steps.append(None)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(Program, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        rj.train(config_of(folder, tiny_config, streaming="always"), tmp_path / "b", quiet=True)
    monkeypatch.undo()
    again = rj.train(config_of(folder, tiny_config, streaming="never"), tmp_path / "b", quiet=True)
    chex.assert_trees_all_equal(whole.variables("latest"), again.variables("latest"))


@pytest.mark.slow
def test_a_file_that_goes_away_is_one_line(folder, tiny_config, tmp_path):
    root = shutil.copytree(folder, tmp_path / "digits")
    config = config_of(root, tiny_config, streaming="always")
    data = load_dataset("folder", root, streaming="always")
    gone = data.train.source.paths[data.train.positions[0]]
    gone.unlink()
    stream = IndexStream(len(data.train), config.batch_size, config.seed)
    ahead = ReadAhead(data.train, stream.batch, range(10))

    def read_all() -> None:
        for step in range(10):
            ahead.take(stream.batch(step))

    with pytest.raises(ResNetJaxError, match=gone.name):
        read_all()


@pytest.mark.slow
def test_memory_is_flat_when_the_data_are_ten_times_the_limit(tmp_path):
    """An epoch of 224x224 JPEGs: 1,000 of 150 kB decoded, through a window of a few batches."""
    from pathlib import Path

    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(500):
            pixels = rng.integers(0, 255, (7, 7, 3), np.uint8).repeat(32, 0).repeat(32, 1)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.jpg")
    data = load_dataset("folder", tmp_path, size=224, memory_limit=0.014, streaming="auto")
    assert isinstance(data.train, rj.data.StreamedSplit)

    def resident() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    stream = IndexStream(len(data.train), 16, seed=0)
    steps = stream.steps(2)
    ahead = ReadAhead(data.train, stream.batch, range(steps), workers=2)
    taken = []
    for step in range(steps):
        ahead.take(stream.batch(step))
        taken.append(resident())
    early, late = max(taken[: steps // 4]), max(taken)
    assert late < early + 20, (early, late)
