"""Datasets from names, arrays and custom splits: cut, sampled, identified and refused."""

import os

import numpy as np
import pandas as pd
import pytest
from make_datasets import Noting, refusal, refused

from resnet_jax.data import dataset
from resnet_jax.data.dataset import ArraySplit, Dataset, DiskSplit, sample
from resnet_jax.data.load import load_dataset
from resnet_jax.data.mnist import DATASETS
from resnet_jax.data.preprocessing import pixel_statistics
from resnet_jax.errors import ResNetJaxError


def examples(split: ArraySplit) -> dict[bytes, int]:
    pairs = zip(split.images, split.labels.tolist(), strict=True)
    return {image.tobytes(): label for image, label in pairs}


@pytest.fixture(scope="module")
def mnist_5k():
    return load_dataset("mnist_5k")


def test_mnist_5k_is_described_and_fixed(mnist_5k):
    assert mnist_5k.image_shape == DATASETS["mnist_5k"].image_shape == (28, 28, 1)
    assert mnist_5k.num_classes == 10
    assert mnist_5k.class_names == tuple("0123456789")
    # A constant, because runs trained on other splits cannot be compared with these.
    assert mnist_5k.fingerprint == (
        "76ee8207164ee67cc5aea835712b2cd232914b87afc59d3b6817000ac5951489"
    )
    assert len(repr(mnist_5k.train)) < 80


def test_validation_is_cut_from_the_end_of_training(mnist_5k):
    everything = load_dataset("mnist_5k", validation=0)
    assert (len(everything.train), len(everything.validation)) == (4500, 0)
    assert everything.validation.images.shape == (0, 28, 28, 1)
    np.testing.assert_array_equal(everything.train.images[:4000], mnist_5k.train.images)
    np.testing.assert_array_equal(everything.train.images[4000:], mnist_5k.validation.images)
    np.testing.assert_array_equal(everything.test.images, mnist_5k.test.images)

    larger = load_dataset("mnist_5k", validation=700)
    np.testing.assert_array_equal(larger.validation.images[-500:], mnist_5k.validation.images)
    assert not examples(larger.train).keys() & examples(larger.validation).keys()


def test_the_fingerprint_covers_every_pixel_label_and_cut(mnist_5k):
    parts = [mnist_5k.train, mnist_5k.validation, mnist_5k.test]
    arrays = [array.copy() for part in parts for array in (part.images, part.labels)]
    seen = {load_dataset("mnist_5k", validation=0).fingerprint}

    def again():
        splits = map(ArraySplit, arrays[::2], arrays[1::2])
        return Dataset.of("mnist_5k", *splits, mnist_5k.class_names).fingerprint

    assert again() == mnist_5k.fingerprint == load_dataset("mnist_5k", validation=500).fingerprint
    for array in arrays:
        seen.add(again())
        array.reshape(-1)[-1] ^= 1
    assert len({*seen, again()}) == 8


def test_sample_is_fixed_disjoint_and_from_the_right_parts(mnist_5k):
    small = sample(mnist_5k, train=300, validation=60, test=40, seed=3)
    assert [len(s) for s in (small.train, small.validation, small.test)] == [300, 60, 40]
    train, validation, test = map(examples, (small.train, small.validation, small.test))
    assert len(train | validation) == 360
    assert (train | validation).items() <= examples(mnist_5k.train).items()
    assert test.items() <= examples(mnist_5k.test).items()
    again = sample(mnist_5k, train=300, validation=60, test=40, seed=3)
    other = sample(mnist_5k, train=300, validation=60, test=40, seed=4)
    assert again.fingerprint == small.fingerprint != other.fingerprint
    assert small.class_names == mnist_5k.class_names


@pytest.mark.parametrize(
    "sizes", [(3500, 501, 10), (100, 10, 501), (0, 10, 10), (10, -1, 10), (10, 10, -1)]
)
def test_a_sample_larger_than_the_data_is_refused(mnist_5k, sizes):
    said = refused(sample, mnist_5k, train=sizes[0], validation=sizes[1], test=sizes[2])
    assert said.startswith("--data.subset must be at least 1 0 0, ")
    assert said.endswith("got {} {} {}".format(*sizes))


def test_a_shape_of_numpys_numbers_is_a_shape(mnist_5k):
    """An `.npz` gives such a shape; a run could neither record it nor recognise it again."""

    class Own(ArraySplit):
        image_shape = np.array((28, 28, 1))

    few = mnist_5k.train.take(slice(6))
    plain, own = (
        Dataset.of("few", split, split, split, mnist_5k.class_names)
        for split in (few, Own(few.images, few.labels))
    )
    assert own.fingerprint == plain.fingerprint
    assert repr(own.image_shape) == "(28, 28, 1)"
    Own.image_shape = np.array((28, 28, 2))
    said = refused(Dataset.of, "few", few, own.test, own.test, "ab")
    assert said == "images are (28, 28, 1) and (28, 28, 2): give one shape"


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3), np.uint8)
LABELS = np.arange(30) % 3


def test_a_dataset_is_made_from_arrays():
    names = np.array(["a", "b", "c"])
    test = IMAGES[:6], LABELS[:6]
    data = Dataset.from_arrays("own", IMAGES, LABELS, test=test, class_names=names)
    assert list(map(type, data.class_names)) == [str] * 3
    np.testing.assert_array_equal(data.train.images, IMAGES[:27])
    np.testing.assert_array_equal(data.validation.labels, LABELS[27:])
    np.testing.assert_array_equal(data.test.images, IMAGES[:6])
    assert data.train.labels.dtype == np.int32
    assert (data.image_shape, data.class_names) == ((4, 5, 3), ("a", "b", "c"))
    parts = (data.train, data.validation, data.test)
    assert data.fingerprint == Dataset.of("x", *parts, ["c", "b", "a"]).fingerprint
    bare = Dataset.from_arrays("own", IMAGES, LABELS, validation=0)
    assert (len(bare.train), len(bare.validation), len(bare.test)) == (30, 0, 0)
    assert bare.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"images": IMAGES / 255}, "images must be uint8"),
        ({"images": IMAGES[..., 0]}, r"uint8\[N, H, W, C\], .* got uint8\[30, 4, 5\]"),
        ({"labels": LABELS[1:]}, r"labels must be integers\[30\], got int64\[29\]"),
        ({"labels": LABELS.astype(float)}, "labels must be integers"),
        ({"labels": LABELS - 1}, "labels must be from 0, got -1: leave such"),
        ({"class_names": ["a", "b"]}, "labels must be 0 to 1 for 2 names"),
        ({"test": (IMAGES[:, :3], LABELS)}, r"images are \(3, 5, 3\) and \(4, 5, 3\)"),
        ({"validation": 30}, r"--data\.validation must be .* below the 30 .*, got 30$"),
        ({"class_names": ["a", "b", "a"]}, "give each class its own"),
        ({"validation": 0.2}, "--data.validation must be"),
        ({"validation": float("nan")}, "--data.validation must be"),
        ({"images": IMAGES[:, :0]}, "images must be uint8"),
        ({"labels": np.where(LABELS == 2, 2**32, LABELS)}, r"below 2\^31"),
        ({"labels": np.where(LABELS == 2, 10**7, LABELS)}, "10000001 classes have no confusion"),
        ({"images": [IMAGES[0], IMAGES[0, :3]], "labels": [0, 1]}, "give parts of one shape"),
    ],
)
def test_arrays_that_are_no_dataset_are_refused(arguments, named):
    with pytest.raises(ResNetJaxError, match=named):
        Dataset.from_arrays(**{"name": "own", "images": IMAGES, "labels": LABELS, **arguments})


def test_what_makes_no_sense_is_refused_from_python_too():
    for name, value in {
        "fit": "Pad", "streaming": "Always", "memory_limit": float("nan"), "size": 16.5,
        "skip_bad": "no", "workers": -1, "validation": 2.5,
    }.items():  # fmt: skip
        option = {"size": "read-size"}.get(name, name.replace("_", "-"))
        assert f"--data.{option} must be " in refusal(None, "mnist_5k", **{name: value})


def test_mean_and_deviation_are_found_a_few_images_at_a_time(monkeypatch):
    monkeypatch.setattr(dataset, "PART_BYTES", 4 * 60 + 59)
    images = np.random.default_rng(0).integers(0, 256, (250, 4, 5, 3), np.uint8)
    images[..., 2] = 0
    split = Noting(images, np.zeros(250, np.int32))
    mean, std = pixel_statistics(split)
    assert max(map(len, split.asked)) <= 4
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255, atol=1e-4)
    # A constant channel was divided by 1e-4, so that what augmentation added became thousands.
    np.testing.assert_allclose(std, [*images.std((0, 1, 2))[:2] / 255, 1], atol=1e-4)


def test_a_streamed_dataset_of_one_s_own_gives_what_identifies_it():
    whole = DiskSplit(lambda _: pytest.fail("read"), np.arange(30), (4, 5, 3))
    parts = (whole.take(slice(20)), whole.take(slice(20, 25)), whole.take(slice(25, 30)))
    data = Dataset.of("own", *parts, ["a", "b", "c"], source="version 1")
    other = Dataset.of("own", *parts, ["a", "b", "c"], source="version 2")
    small = sample(data, train=10, validation=5, test=5)
    again = sample(data, train=10, validation=5, test=5)
    assert small.fingerprint == again.fingerprint
    assert len({data.fingerprint, other.fingerprint, small.fingerprint}) == 3
    # If the same source is cut elsewhere, the same draw gets other examples, even where the cuts
    # differ only in the middle of a long array, which NumPy leaves out of its text.
    cuts = [np.arange(5000) == k for k in (2000, 2500)]
    others = [Dataset.of("own", *parts, "abc", source="version 1", cut=cut) for cut in cuts]
    drawn = {sample(d, train=10, validation=5, test=5).fingerprint for d in (data, *others)}
    assert len(drawn) == 3


def test_a_cut_is_known_by_all_its_numbers_however_they_are_printed():
    """Of arrays in a tuple or a table the text was hashed: without the middle, and wrapped."""
    part = DiskSplit(lambda _: pytest.fail("read"), np.arange(5), (4, 5, 3))

    def known(*cut):
        return Dataset.of("own", part, part, part, "abc", source="version 1", cut=cut).fingerprint

    one, other = (np.where(np.arange(5000) == k, 0, 1) for k in (2000, 2500))
    for form in (lambda array: {"train": array, "folds": 3}, lambda array: [array], pd.Series):
        assert known(form(one)) != known(form(other))
    with np.printoptions(linewidth=40, threshold=5, formatter={"int": hex}):
        expected = known(np.arange(60), np.int64(3))
    assert known(np.arange(60), np.int64(3)) == known(list(range(60)), 3) == expected


def test_a_split_of_ones_own_is_what_it_says():
    def own(batch, **more):
        return type("Own", (ArraySplit,), {"batch": batch, **more})

    # Lists of numbers do not tell a type.
    lists = own(lambda s, i: (s.images[i].tolist(), s.labels[i].tolist()))
    assert "got int64" in refused(next, dataset.read_batches(lists(IMAGES, LABELS), [np.arange(2)]))
    listed = own(lambda s, i: (np.array(list(s.images[i])), s.labels[i]), image_shape=[4, 5, 3])
    none = listed(IMAGES[:0], LABELS[:0])
    assert len(Dataset.of("own", listed(IMAGES, LABELS), none, none, "abc").test) == 0
    for batch, said in (
        (lambda s, i: (s.images[i] / np.float32(255), s.labels[i]), "got float32"),
        (lambda s, i: (s.images[i, 1:], s.labels[i]), "3, 5, 3), expected are ("),
        (lambda s, i: (s.images[:0], s.labels[:0]), "read are (0, "),
    ):
        split = own(batch)(IMAGES, LABELS)
        assert said in refused(Dataset.of, "own", *[split] * 3, "abc")
        # A streamed split's arrays are checked when a batch is read, with or without padding.
        for indices in ([0, 1], [0, dataset.PADDING]):
            assert said in refused(next, dataset.read_batches(split, [np.array(indices)]))
    other = ArraySplit(IMAGES[:, 1:], LABELS)
    said = refused(Dataset.of, "own", *[ArraySplit(IMAGES, LABELS)] * 2, other, "abc", "version 1")
    assert "(3, 5, 3)" in said


@pytest.mark.parametrize(("count", "most"), [(40, 5), (3, 1), (9000, 1000)])
def test_a_whole_split_is_read_in_parts_for_all_threads(count, most, monkeypatch):
    """Four parts for each core that a scheduler gives; one thread was given 300 photographs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    split = Noting(images, np.zeros(count, np.int32))
    found, _ = dataset.read_all(split)
    np.testing.assert_array_equal(found, images)
    assert max(map(len, split.asked)) == most
