"""Datasets of TFDS: reading them, and what happens when files are damaged."""

import errno
import hashlib
import os
import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from make_datasets import build, encoded, examples, flip, refusal, refused
from PIL import ImageFile

from resnet_jax.data.load import load_dataset
from resnet_jax.data.mnist import DATASETS
from resnet_jax.data.prepare import prepare
from resnet_jax.data.tfds import find_prepared, image_and_label, verify_prepared
from resnet_jax.errors import ResNetJaxError


@pytest.fixture
def copy(digits, tmp_path):
    """A copy of the prepared `digits` to damage: its TFDS folder, and the dataset's folder."""
    root = tmp_path / "copy"
    shutil.copytree(digits, root)
    return root, root / "digits" / "1.0.0"


SHARD = "digits-{}.array_record-0000{}-of-00002"
FEATURES = "features.json"


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 alone")
def test_a_folder_may_be_named_in_another_encoding(digits, tmp_path):
    root = tmp_path / os.fsdecode(b"d\xe9")
    shutil.copytree(digits, root)
    assert verify_prepared("digits", root).ok


def test_arrays_are_what_tfds_reads_in_memory_and_streamed(digits):
    sources = tfds.builder_from_directory(digits / "digits" / "1.0.0").as_data_source()
    held = load_dataset("digits", digits)
    streamed = load_dataset("digits", digits, streaming="always")
    assert held.class_names == tuple(f"name {k}" for k in range(10))
    assert held.fingerprint == streamed.fingerprint
    assert held.image_shape == streamed.image_shape == (28, 28, 1)
    for split in ("train", "validation", "test"):
        theirs = list(sources[split])
        order = np.random.default_rng(0).permutation(len(theirs))  # over both files
        for data in (held, streamed):
            images, labels = getattr(data, split).batch(order)
            np.testing.assert_array_equal(images, [theirs[i]["image"] for i in order])
            np.testing.assert_array_equal(labels, [theirs[i]["label"] for i in order])


def test_the_fingerprint_is_that_of_earlier_versions(digits):
    # A hash of the files and of how they are read, in the words of the first version.
    folder = digits / "digits" / "1.0.0"
    order = ("train", "validation", "test")
    shards = [folder / SHARD.format(split, i) for split in order for i in range(2)]
    names = tuple(f"name {k}" for k in range(10))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in shards]
    how = "ReadAs(shape=(28, 28, 1), fit='pad', background=None)"
    text = f"({names}, ({digests}, {{'train': 60, 'validation': 20, 'test': 20}}, {how}))"
    files = hashlib.sha256(text.encode()).hexdigest()
    expected = repr((files, None, [60, 20, 20]))
    fingerprint = load_dataset("digits", digits).fingerprint
    assert fingerprint == hashlib.sha256(expected.encode()).hexdigest()


def test_listing_imports_nothing_heavy_loading_no_tensorflow_and_from_the_cache_no_tfds(
    digits, python
):
    code = """
import os, sys
from resnet_jax.data.mnist import DATASETS
print(*DATASETS, {"jax", "tensorflow_datasets", "array_record", "pandas", "PIL"} & set(sys.modules))
from resnet_jax.data.load import load_dataset
sys.stdout.flush()
if child := os.fork():
    os.waitpid(child, 0)
load_dataset("digits", sys.argv[1])
print(*{"jax", "tensorflow", "tensorflow_datasets", "array_record"} & set(sys.modules))
"""
    listing, first, second = python("-c", code, digits).stdout.splitlines()
    assert listing == "mnist_5k mnist fashion_mnist set()"
    assert sorted(first.split()) == ["array_record", "tensorflow_datasets"]
    assert second == ""


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_images_are_read_as_they_are(tmp_path, kind, channels):
    shape = (6, 5) if channels == 1 else (6, 5, 3)
    pairs = [(encoded(np.full(shape, i * 9, np.uint8), kind), i % 2) for i in range(7)]
    for name, described in (("fixed", (6, 5, channels)), ("free", (None, None, channels))):
        build(tmp_path, {"train": pairs}, name=name, shape=described, names=["cat", "dog"])
        data = load_dataset(name, tmp_path, size=6, validation=0)
        assert data.class_names == ("cat", "dog")
        images, labels = data.train.images, data.train.labels
        assert images.shape == (7, 6, 5 if name == "fixed" else 6, channels)
        assert sorted(images[:, 0, 0, 0]) == [0, 9, 18, 27, 36, 45, 54]
        np.testing.assert_array_equal(labels, images[:, 0, 0, 0] // 9 % 2)
    assert "several sizes: give the side" in refusal(tmp_path, "free")


def test_configurations_are_named_where_there_are_several(tmp_path):
    pairs = [(encoded(np.zeros((28, 28), np.uint8)), 0)] * 3
    build(tmp_path, {"train": pairs}, config="letters")
    assert len(load_dataset("digits", tmp_path, validation=0).train) == 3
    build(tmp_path, {"train": pairs}, config="balanced")
    assert "give one of digits/balanced, digits/letters" in refusal(tmp_path)
    next(tmp_path.glob("digits/letters/1.0.0/*train.array_record*")).unlink()
    shown = refusal(tmp_path, "digits/letters")
    assert f"data prepare digits/letters --dir {shlex.quote(str(tmp_path))}" in shown


def test_a_dataset_has_training_images_with_a_class(tmp_path):
    build(tmp_path, {"validation": [(encoded(np.zeros((28, 28), np.uint8)), 0)]})
    assert "has no split `train` with labels" in refusal(tmp_path)
    image, label = tfds.features.Image(), tfds.features.ClassLabel(num_classes=2)
    held = {"text": tfds.features.Text(), "kind": label, "picture": image}
    info = mock.Mock(features=tfds.features.FeaturesDict(held), supervised_keys=("text", "kind"))
    assert image_and_label("own", info) == ("picture", "kind")
    info.features = tfds.features.FeaturesDict(held | {"another": image})
    assert "holds Text, ClassLabel, Image, Image in" in refused(image_and_label, "own", info)


def test_the_newest_finished_version_is_read(copy):
    root, folder = copy
    for version in ("0.9.0", "1.10.0", "2.0.0.incomplete", "3.0.0"):
        shutil.copytree(folder, folder.with_name(version))
    (folder.with_name("3.0.0") / "dataset_info.json").unlink()  # not described: not finished
    assert find_prepared("digits", root).name == "1.10.0"


def test_the_argument_comes_before_the_environment(digits, copy, monkeypatch):
    root, folder = copy
    (folder / SHARD.format("train", 0)).unlink()
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert str(folder) in refusal(None)
    monkeypatch.chdir(root)
    above = os.path.relpath(digits)
    assert above.startswith("..")
    for place in (digits, above):
        assert len(load_dataset("digits", place).test) == 20


def test_what_is_not_there_is_named(tmp_path, digits):
    (tmp_path / "MNIST").symlink_to(digits / "digits")  # as on a disk that ignores case
    for name in ("cifar11", "/etc", "../x", "mnist_5k*", "", ".", "digits/..", "MNIST"):
        for folder in (None, digits, tmp_path):
            assert "unknown dataset" in refusal(folder, name)
    text = refusal(None, "Fashion-MNST")
    assert all(name in text for name in ("did you mean `fashion_mnist`?", *DATASETS))
    assert "nowhere is no folder" in refusal(tmp_path / "nowhere")
    assert "holds no prepared `cifar10`" in refusal(digits, "cifar10")
    text = refused(verify_prepared, "mnist", digits)
    assert refusal(digits, "mnist") == text
    assert "holds no prepared `mnist`" in text
    assert "--data.from-idx" in text


def read_all(root, streaming="always"):
    data = load_dataset("digits", root, streaming=streaming)
    return examples(data.train, data.validation, data.test)


def test_damaged_shards_are_named_when_the_dataset_is_opened(copy):
    root, folder = copy
    shard = folder / SHARD.format("test", 1)
    good = shard.read_bytes()
    other = folder / SHARD.format("train", 0)
    load_dataset("digits", root)  # cached now, which must not hide the damage
    for damage in (
        partial(flip, shard, 5000),
        *[partial(shard.write_bytes, good[:length]) for length in (len(good) // 2, 1000, 0)],
        lambda: shard.unlink(),
        lambda: (shard.unlink(), os.mkfifo(shard)),
        lambda: shutil.copy(other, shard),  # a whole file, with another number of records
    ):
        damage()
        for streaming in ("never", "always"):
            shown = refused(read_all, root, streaming)
            assert str(shard) in shown
            assert f"data prepare digits --dir {shlex.quote(str(root))}" in shown
        shard.unlink(missing_ok=True)
        shard.write_bytes(good)
    load_dataset("digits", root)


def test_a_flipped_byte_anywhere_is_noticed_or_harmless(copy):
    root, folder = copy
    shard = folder / SHARD.format("test", 0)
    good, expected = shard.read_bytes(), read_all(root)
    rng, noticed = np.random.default_rng(0), 0
    for position in rng.integers(0, len(good), 12):
        flip(shard, position, 1 << int(rng.integers(8)))
        try:
            np.testing.assert_equal(read_all(root), expected)  # if the byte is padding
        except ResNetJaxError:
            noticed += 1
        shard.write_bytes(good)
    assert noticed > 2


def test_damaged_descriptions_are_named_and_harmless(copy, tmp_path, monkeypatch):
    """Nor can they have files read elsewhere, modules imported or a smaller network made."""
    root, folder = copy
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    info, features = ((folder / name).read_bytes() for name in ("dataset_info.json", FEATURES))
    place = b"{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    kind = b'"pythonClassName": "tensorflow_datasets.core.features.image'
    either = "features.json or dataset_info.json is damaged"
    cases = [
        *[("dataset_info.json", text, "info.json is damaged") for text in (info[:99], b"", b"[]")],
        *[(FEATURES, text, either) for text in (features.replace(b"Image", b"Tensor"), b"{", None)],
        *[("label.labels.txt", text, "labels.txt") for text in (b"zero\none\n", b"", b"\xff\xfe")],
        ("dataset_info.json", b"{}", "info.json is damaged"),
        ("dataset_info.json", info.replace(b"array_record", b"tfrecord"), "prepared as tfrecord"),
        (FEATURES, features.replace(b"28", b"999999"), "expected uint8 of at most"),
        (FEATURES, features.replace(b"uint8", b"uint16"), "expected uint8 of at most"),
    ]
    for elsewhere in (b"../{SPLIT}", b"/etc/passwd", b"a/{SHARD_INDEX}"):
        cases.append(("dataset_info.json", info.replace(place, elsewhere), "is no file in it"))
    # TFDS parses descriptions within a text too, and takes class names from any file.
    within = b'"jsonFeature": {"json": "{\\"x\\": {\\"type\\": \\"evil.X\\"}}"}, "pythonClassName"'
    cases.append(
        (FEATURES, features.replace(b'"pythonClassName"', within, 1), "evil.X is no class")
    )
    within = b'"names_file": "/etc/passwd", "pythonClassName"'
    cases.append(
        (FEATURES, features.replace(b'"pythonClassName"', within, 1), "are in a file else")
    )
    for count in (b'"100000000"', b'"1000000"'):  # would have taken gigabytes
        cases.append((FEATURES, re.sub(rb'(?<="numClasses": )"10"', count, features), "46,340"))
    many = re.sub(rb'("shardLengths": \[\s*")\d+', rb"\g<1>300000000", info)
    cases.append(("dataset_info.json", many, "more records than its files have bytes"))
    for key in (b"pythonClassName", b"python_class_name", b"type"):
        cases.append((FEATURES, features.replace(kind, b'"%s": "evil' % key), "evil"))
    for name, content, named in cases:
        path = folder / name
        good = path.read_bytes()
        assert content != good
        path.unlink() if content is None else path.write_bytes(content)
        assert named in refusal(root)
        assert named in refused(verify_prepared, "digits", root)
        path.write_bytes(good)
    path.unlink()
    os.mkfifo(path)  # reading it would never end
    assert "is no file" in refusal(root)
    path.unlink()
    path.write_bytes(good)
    load_dataset("digits", root)


def test_verify_reports_each_file(copy):
    root, folder = copy
    load_dataset("digits", root)  # cached now: verifying must not use the cache
    report = verify_prepared("digits", root)
    assert (report.ok, report.folder, len(report.good)) == (True, folder, 8)
    flipped, missing = SHARD.format("validation", 0), SHARD.format("test", 1)
    flip(folder / flipped, 5_000)
    (folder / missing).unlink()
    damaged = verify_prepared("digits", root)
    assert damaged.usable == "nothing"
    assert set(report.good) - set(damaged.good) == {flipped, missing}
    first, second = damaged.damaged
    assert flipped in first
    assert f"{missing} is damaged (the file is missing)" in second


ERRORS = [OSError(n, os.strerror(n), "a file") for n in (errno.EMFILE, errno.EACCES, errno.ESTALE)]
ERRORS.append(OSError(errno.EIO, os.strerror(errno.EIO)))  # of a reader that names no file


@pytest.mark.parametrize("name", ["dataset_info.json", "digits-train.array_record-00001-of-00002"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (e, rf"^{e.filename or '/.*'} cannot be read \({e.strerror}\): .*ulimit -n\)$")
        for e in ERRORS
    ]
    + [(MemoryError("none is left"), "^none is left$")],
)
def test_what_cannot_be_read_now_is_no_damage_and_replaces_nothing(
    name, error, said, digits, monkeypatch, tmp_path
):
    """After a server was away for a moment, `prepare` downloaded a whole dataset again."""
    data, usual = load_dataset("digits", digits, streaming="always"), Path.open

    def opened(path, *arguments, **options):
        if path.name == name:
            raise error
        return usual(path, *arguments, **options)

    readings = [lambda: load_dataset("digits", digits), lambda: prepare("digits", digits)]
    readings += [lambda: examples(data.train)] * ("array_record" in name)
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "empty"))
    for reading in readings:
        with pytest.raises((MemoryError, ResNetJaxError), match=said):
            reading()


def test_a_shard_that_cannot_be_read_to_its_end_is_named(digits, monkeypatch):
    failing = mock.Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr("resnet_jax.data.tfds.file_sha256", failing)
    assert re.match(r"/.*array_record-\d+-of-\d+ cannot be read \(Input/output", refusal(digits))


def test_pictures_of_any_size_that_memory_lacks_for_are_no_damage(tmp_path, monkeypatch):
    shards = {"train": [(encoded(np.zeros((6, 5), np.uint8)), 0)] * 4}
    build(tmp_path, shards, shape=(None, None, 1))
    assert verify_prepared("digits", tmp_path).ok
    monkeypatch.setattr(ImageFile.ImageFile, "load", mock.Mock(side_effect=MemoryError))
    assert "memory" in refused(verify_prepared, "digits", tmp_path)


def test_array_record_files_beside_tfrecord_files_are_read(copy):
    """As TFDS's own converter leaves a dataset."""
    root, folder = copy
    about = folder / "dataset_info.json"
    text = about.read_text().replace('"array_record"', '"tfrecord"')
    about.write_text(text.replace("{", '{"alternativeFileFormats": ["array_record"],', 1))
    assert len(load_dataset("digits", root).test) == 20


def test_a_dataset_is_verified_from_within_its_folder(digits, monkeypatch, command):
    """It was taken for a folder of pictures."""
    monkeypatch.chdir(digits)
    assert command("verify", "digits", "--data.dir", ".")[0] == 0


def test_transparency_in_a_record_is_refused_or_on_a_background_as_in_a_file(tmp_path):
    pairs = [(encoded(np.full((8, 8), 20 * k, np.uint8), transparency=180), k) for k in range(10)]
    build(tmp_path, {"train": pairs}, shape=(8, 8, 1))
    assert "transparent pixels" in refusal(tmp_path)
    images = load_dataset("digits", tmp_path, background=255, validation=0).train.images
    assert sorted(images[:, 0, 0, 0]) == [*range(0, 180, 20), 255]
