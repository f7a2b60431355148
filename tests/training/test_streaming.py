"""Batches read ahead from memory and from disk are the same, to the bit, from any step on."""

import shutil
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from faults import digits
from make_datasets import Noting, refused
from PIL import Image

from resnet_jax.data.dataset import ArraySplit, read_batches
from resnet_jax.data.load import load_dataset
from resnet_jax.data.sampler import EpochSampler, padded_order


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """118 digits as files, a folder for each class."""
    return digits(tmp_path_factory.mktemp("digits"), train=range(0, 4000, 34)) / "train"


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_are_those_of_memory_from_any_step_on(folder, workers):
    data = [load_dataset("folder", folder, streaming=how) for how in ("never", "always")]
    assert data[0].fingerprint == data[1].fingerprint
    held, read = (each.train for each in data)
    sampler = EpochSampler(len(held), 7, seed=3)
    for first in (0, 5):
        for split in (held, read):
            batches = read_batches(split, map(sampler.batch, range(first, 30)), workers)
            for step, (images, labels) in enumerate(batches, start=first):
                np.testing.assert_array_equal(images, held.images[sampler.batch(step)])
                np.testing.assert_array_equal(labels, held.labels[sampler.batch(step)])
            assert step == 29


def test_padding_is_black_and_labelled_so():
    split = ArraySplit(np.full((5, 2, 2, 1), 9, np.uint8), np.arange(5, dtype=np.int32))
    assert padded_order(5, 3).tolist() == [[0, 1, 2], [3, 4, -1]]
    assert padded_order(0, 3).shape == (0, 3)
    (_, first), (images, labels) = read_batches(split, padded_order(5, 3))
    assert (first.tolist(), labels.tolist()) == ([0, 1, 2], [3, 4, -1])
    assert images[:, 0, 0, 0].tolist() == [9, 9, 0]
    # One of several processes may have nothing but padding.
    ((images, labels),) = read_batches(split, [np.array([-1, -1])])
    assert (images.sum(), labels.tolist()) == (0, [-1, -1])


def test_large_batches_are_read_in_parts_and_few_ahead():
    """On a host of a hundred cores, two whole batches for each core filled the memory."""
    large = np.broadcast_to(np.arange(400, dtype=np.uint8)[:, None, None, None], (400, 256, 256, 1))
    order = np.random.default_rng(0).permutation(400).reshape(2, 200)
    split = Noting(large, np.arange(400, dtype=np.int32))
    batches = read_batches(split, [*order, *order], workers=2)
    images, labels = next(batches)
    assert labels.tolist() == order[0].tolist()
    np.testing.assert_array_equal(images[:, 0, 0, 0], order[0] % 256)
    assert max(map(len, split.asked)) == 64  # 4 MiB
    assert sum(map(len, split.asked)) <= 3 * 200  # this batch, and the minimum of two read ahead
    assert [labels.tolist() for _, labels in batches] == [*order[1:].tolist(), *order.tolist()]


def test_no_more_is_read_than_two_batches_for_each_worker_and_threads_end():
    split = Noting(np.zeros((1000, 1, 1, 1), np.uint8), np.zeros(1000, np.int32))
    batches = read_batches(split, padded_order(1000, 1), workers=3)
    before = set(threading.enumerate())
    assert len(list(islice(batches, 10))) == 10
    assert len(split.asked) <= 10 + 6
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_a_file_that_goes_away_is_one_line(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "digits")
    train = load_dataset("folder", root, streaming="always").train
    for file in root.glob("*/*0.png"):
        file.unlink()
    assert "0.png" in refused(list, read_batches(train, padded_order(len(train), 20)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_flat_when_the_data_are_ten_times_the_limit(tmp_path):
    """An epoch of 1,000 JPEGs, 224x224 and 150 kB decoded, is read a few batches at a time."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(500):
            pixels = rng.integers(0, 255, (7, 7, 3), np.uint8).repeat(32, 0).repeat(32, 1)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.jpg")
    data = load_dataset("folder", tmp_path, size=224, memory_limit=0.014, streaming="auto")
    assert not isinstance(data.train, ArraySplit)

    def resident() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    sampler = EpochSampler(len(data.train), 16, seed=0)
    steps = sampler.steps(1)
    order = map(sampler.batch, range(steps))
    taken = [resident() for _ in read_batches(data.train, order, workers=2)]
    early, late = max(taken[: steps // 4]), max(taken)
    assert late < early + 50, (early, late)  # 107 MiB are read after the first quarter
