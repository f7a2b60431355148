"""Folders of their own for these tests: none reads or writes the user's."""

import dataclasses
import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.data import DATASETS, prepare
from resnet_jax.data.idx import FILES

CHECKOUT = Path(__file__).parents[2]
# Read before the tests replace it.
PREPARED = Path(os.environ.get("TFDS_DATA_DIR") or CHECKOUT.parent / "shared" / "data" / "tfds")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """An empty cache and an empty TFDS folder for each test."""
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "own-cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own-tfds"))


@pytest.fixture(scope="session")
def tfds_5k(tmp_path_factory):
    """A TFDS folder with `mnist_5k`, prepared once. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("tfds")
    prepare("mnist_5k", root)
    return root


@pytest.fixture(scope="session")
def full_tfds():
    """The TFDS folder with the full MNIST and Fashion-MNIST."""
    if not all((PREPARED / name / "3.0.1").is_dir() for name in ("mnist", "fashion_mnist")):
        pytest.skip(f"no prepared mnist and fashion_mnist in {PREPARED}: set TFDS_DATA_DIR")
    return PREPARED


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of bytes."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder of IDX files with 30 and 12 images, which `mnist` stands for in the test."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    digests = {}
    for split, count in (("train", 30), ("test", 12)):
        images = rng.integers(0, 256, (count, 28, 28))
        for name, array in zip(FILES[split], (images, np.arange(count) % 10), strict=True):
            content = idx_bytes(array)
            digests[name] = hashlib.sha256(content).hexdigest()
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    info = DATASETS["mnist"]
    tiny = dataclasses.replace(info, train=24, validation=6, test=12, idx_sha256=digests)
    monkeypatch.setitem(DATASETS, "mnist", tiny)
    return folder
