"""The full MNIST and Fashion-MNIST, as TFDS prepared them."""

import gzip
import hashlib
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import idx_bytes
from tensorflow_datasets.core.hashing import Hasher

from resnet_jax.data import DATASETS, load_dataset, prepare
from resnet_jax.data.idx import FILES
from resnet_jax.data.prepared import find_prepared, read_info, read_prepared

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker")


def published(arrays):
    """The arrays in the published order: TFDS sorts by the hash of (split, number)."""
    result = {}
    for split, (images, labels) in arrays.items():
        hasher = Hasher(split)
        order = sorted(range(len(labels)), key=hasher.hash_key)
        sorted_images, sorted_labels = np.empty_like(images), np.empty_like(labels)
        sorted_images[order], sorted_labels[order] = images, labels
        result[split] = sorted_images, sorted_labels
    return result


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_every_byte_is_that_of_the_published_files(full_tfds, name):
    arrays = published(read_prepared(read_info(find_prepared(name, full_tfds))))
    digests = {}
    for split, (images, labels) in arrays.items():
        for file, array in zip(FILES[split], (images[..., 0], labels), strict=True):
            digests[file] = hashlib.sha256(idx_bytes(array)).hexdigest()
    assert digests == DATASETS[name].idx_sha256
    if name == "mnist":  # the MD5 sums that others publish of the unpacked files
        assert arrays["train"][1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        images = idx_bytes(arrays["train"][0][..., 0])
        assert hashlib.md5(images).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"


def test_mnist_holds_out_a_fixed_five_thousand(full_tfds):
    data = load_dataset("mnist", full_tfds)
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.image_shape == (28, 28, 1)
    assert data.class_names == tuple("0123456789")
    assert data.train.labels.dtype == np.int32
    assert data.fingerprint == "1edc46a2e3b16588c550522a194ad9d1ca1a003c035cbb0e6ae5160fe072d5f4"
    start = time.perf_counter()
    everything = load_dataset("mnist", full_tfds, validation=0)
    assert time.perf_counter() - start < 3  # from the cache: 0.2 s on a quiet machine
    assert (len(everything.train), len(everything.validation)) == (60_000, 0)
    np.testing.assert_array_equal(everything.train.images[55_000:], data.validation.images)
    # class counts of the published training set
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(everything.train.labels).tolist() == counts


def test_fashion_mnist_names_its_classes(full_tfds):
    data = load_dataset("fashion_mnist", full_tfds)
    assert data.class_names == (*FASHION, "Bag", "Ankle boot")
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_our_builder_prepares_the_same_dataset_as_tfds(full_tfds, tmp_path, name):
    arrays = published(read_prepared(read_info(find_prepared(name, full_tfds))))
    for split, (images, labels) in arrays.items():
        for file, array in zip(FILES[split], (images[..., 0], labels), strict=True):
            (tmp_path / f"{file}.gz").write_bytes(gzip.compress(idx_bytes(array), 1))
    prepare(name, tmp_path / "root", tmp_path)
    ours, theirs = load_dataset(name, tmp_path / "root"), load_dataset(name, full_tfds)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.class_names == theirs.class_names
    for root in (tmp_path / "root", full_tfds):
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        source = builder.as_data_source(split="test")
        for i in range(0, 10_000, 97):
            np.testing.assert_array_equal(source[i]["image"], theirs.test.images[i])
            assert source[i]["label"] == theirs.test.labels[i]
