import dataclasses
import gzip

import numpy as np
import pytest
from conftest import idx_bytes

from resnet_jax.data import DATASETS
from resnet_jax.data.idx import find_idx_files, read_idx, read_idx_folder
from resnet_jax.errors import ResNetJaxError

LABELS = np.array([3, 1, 4])


def fault(path, dimensions, sha256=None):
    with pytest.raises(ResNetJaxError) as error:
        read_idx(path, dimensions, sha256)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert "--data.from-idx" in text
    return text


def test_reads_what_the_format_says(tmp_path):
    # Written by hand: magic, 2 images of 1 x 3.
    content = bytes.fromhex("00000803 00000002 00000001 00000003") + bytes([1, 2, 3, 250, 251, 252])
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    for path in (plain, packed):
        np.testing.assert_array_equal(read_idx(path, 3), [[[1, 2, 3]], [[250, 251, 252]]])


@pytest.mark.parametrize("packed", [False, True])
def test_faults_are_named(tmp_path, packed):
    path = tmp_path / "labels"

    def write(content):
        path.write_bytes(gzip.compress(content) if packed else content)

    good = idx_bytes(LABELS)
    write(good[:-1])
    assert "truncated" in fault(path, 1)
    write(good + b"\0")
    assert "extra bytes" in fault(path, 1)
    write(good)
    assert "starts with 00 00 08 01, not with 00 00 08 03" in fault(path, 3)
    write(good[:6])
    assert "ends inside its header" in fault(path, 1)
    write(b"")
    assert "starts with nothing" in fault(path, 1)
    write(b"<html>404</html>")
    assert "starts with 3c 68 74 6d" in fault(path, 1)
    write(good)
    assert "other content than the published" in fault(path, 1, sha256="0" * 64)


def test_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "labels.gz"
    packed = gzip.compress(idx_bytes(np.arange(200) % 10))
    for content in (packed[:-9], packed[:30] + bytes([packed[30] ^ 64]) + packed[31:]):
        path.write_bytes(content)
        assert "cannot be read" in fault(path, 1)


def test_missing_files_are_all_named(tiny_mnist):
    (tiny_mnist / "t10k-images-idx3-ubyte.gz").unlink()
    (tiny_mnist / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        ResNetJaxError, match="lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte:"
    ):
        find_idx_files(tiny_mnist)
    with pytest.raises(ResNetJaxError, match="no folder"):
        find_idx_files(tiny_mnist / "elsewhere")


def test_files_are_found_packed_or_not_and_with_a_dot(tiny_mnist):
    images = tiny_mnist / "train-images-idx3-ubyte.gz"
    (tiny_mnist / "train-images.idx3-ubyte").write_bytes(gzip.decompress(images.read_bytes()))
    before = read_idx_folder(tiny_mnist, DATASETS["mnist"])
    images.unlink()
    after = read_idx_folder(tiny_mnist, DATASETS["mnist"])
    np.testing.assert_array_equal(before["train"][0], after["train"][0])
    assert after["train"][0].shape == (30, 28, 28, 1)
    assert after["test"][1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_counts_and_labels_must_fit_the_dataset(tiny_mnist):
    unknown = dataclasses.replace(DATASETS["mnist"], idx_sha256={})
    with pytest.raises(ResNetJaxError, match=r"hold \(30, 28, 28\) pixels.*expected \(31, 28, 28"):
        read_idx_folder(tiny_mnist, dataclasses.replace(unknown, train=25))
    with pytest.raises(ResNetJaxError, match="label 9: expected 0 to 8"):
        read_idx_folder(tiny_mnist, dataclasses.replace(unknown, num_classes=9))


def test_fashion_mnist_is_not_taken_for_mnist(tiny_mnist):
    # The four names are the same: only the content tells them apart.
    with pytest.raises(ResNetJaxError, match="other content than the published file"):
        read_idx_folder(tiny_mnist, DATASETS["fashion_mnist"])
