"""Small datasets, and an empty cache and TFDS folder for each test in place of the user's."""

import dataclasses
import gzip
import hashlib
import tempfile

import numpy as np
import pytest
from make_datasets import build, encoded, idx_bytes, picture

from resnet_jax.data.mnist import DATASETS, IDX_FILES


@pytest.fixture(autouse=True)
def own_folders(tmp_path, tmp_path_factory, monkeypatch):
    """An empty cache and an empty TFDS folder for each test."""
    # Each builder of TFDS leaves an empty folder where temporary files are.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "own-cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own-tfds"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A TFDS folder with `digits`: noise in two files for each split. Tests do not change it."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("tfds")
    splits = {
        split: [(encoded(rng.integers(0, 256, (28, 28), np.uint8)), k % 10) for k in range(count)]
        for split, count in (("train", 60), ("validation", 20), ("test", 20))
    }
    build(root, splits, names=[f"name {k}" for k in range(10)], shards=2)
    return root


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder of IDX files with 30 and 12 images, to which `mnist` refers in the test."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    contents = []
    for count in (30, 12):
        images = rng.integers(0, 256, (count, 28, 28))
        contents += [idx_bytes(images), idx_bytes(np.arange(count) % 10)]
    for name, content in zip(IDX_FILES, contents, strict=True):
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    digests = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    info = DATASETS["mnist"]
    tiny = dataclasses.replace(info, train=24, validation=6, test=12, idx_sha256=digests)
    monkeypatch.setitem(DATASETS, "mnist", tiny)
    return folder


@pytest.fixture
def flat(tmp_path):
    """40 pictures of cats and 20 of dogs, in two class folders."""
    for seed in range(60):
        picture(tmp_path / "pets" / ("dog" if seed >= 40 else "cat") / f"{seed}.png", seed)
    return tmp_path / "pets"
