"""Datasets as arrays in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import numpy as np

from resnet_jax.data import catalogue
from resnet_jax.data.cache import read_cached
from resnet_jax.data.preparation import locate
from resnet_jax.data.prepared import Arrays, read_info
from resnet_jax.data.stream import permutation
from resnet_jax.errors import ResNetJaxError


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8[N, H, W, C].
        labels: int32[N].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """Returns the examples at ``indices`` (integers[M]), in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset cut into training, validation and test examples.

    Attributes:
        name: the dataset's name.
        train: examples to learn from.
        validation: examples held out from training, for choices; may be empty.
        test: examples for the end.
        class_names: the name of each label.
        fingerprint: SHA-256 over the shapes, images and labels of the three splits, as cut.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        height, width, channels = self.train.images.shape[1:]
        return (height, width, channels)

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.class_names)

    @classmethod
    def of(
        cls,
        name: str,
        train: Split,
        validation: Split,
        test: Split,
        class_names: tuple[str, ...],
    ) -> Dataset:
        """Makes a dataset from its splits and works out its fingerprint."""
        digest = hashlib.sha256()
        for split in (train, validation, test):
            digest.update(str(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels, "<i4").data)
        return cls(name, train, validation, test, class_names, digest.hexdigest())


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    validation: int | None = None,
    from_idx: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads a dataset into memory, and prepares it first if that needs doing.

    It is looked for in ``data_dir`` if given, else in ``$TFDS_DATA_DIR``, else in TFDS's folder
    ``~/tensorflow_datasets``. ``mnist_5k`` is prepared on first use from an installed package,
    ``mnist`` and ``fashion_mnist`` are downloaded, unless ``data_dir`` is given and lacks them.

    The validation examples are the last ones in TFDS's order, which hashes the examples' keys:
    for ``mnist`` ``train[-5000:]`` in TFDS's notation. The choice depends on nothing else, least
    of all on the seed of a run, and a larger one contains a smaller one. A dataset with a
    validation split of its own (``mnist_5k``) has it appended to the training split before the
    cut, so that the default gives that split itself, and 0 gives its examples back to training.

    Args:
        name: a name in ``DATASETS``.
        data_dir: the folder of TFDS's datasets.
        validation: the number of training examples to hold out; None for the dataset's default.
        from_idx: a folder with the four IDX files of MNIST or Fashion-MNIST, to prepare from.

    Raises:
        ResNetJaxError: if the dataset is unknown, not to be had, or damaged, or ``validation`` is
            negative or leaves nothing to train on.

    Example:
        >>> data = load_dataset("mnist_5k")
        >>> len(data.train), len(data.validation), len(data.test), data.image_shape
        (4000, 500, 500, (28, 28, 1))
    """
    info = catalogue.lookup(name)
    prepared = read_info(locate(name, data_dir, from_idx))
    arrays = read_cached(prepared)
    train, held_out = _hold_out(name, arrays, info.validation if validation is None else validation)
    return Dataset.of(name, train, held_out, Split(*arrays["test"]), prepared.class_names)


def _hold_out(name: str, arrays: Arrays, count: int) -> tuple[Split, Split]:
    images, labels = arrays["train"]
    if "validation" in arrays:
        images = np.concatenate([images, arrays["validation"][0]])
        labels = np.concatenate([labels, arrays["validation"][1]])
    kept = len(labels) - count
    if count < 0 or kept < 1:
        raise ResNetJaxError(
            f"{count} validation examples of `{name}`: expected 0 to {len(labels) - 1}, the "
            "training examples they are taken from less one (--data.validation)"
        )
    return Split(images[:kept], labels[:kept]), Split(images[kept:], labels[kept:])


def sample(dataset: Dataset, *, train: int, validation: int, test: int, seed: int = 0) -> Dataset:
    """Returns a small dataset drawn from another at random, whatever the labels.

    Training and validation examples are drawn from its training examples, without overlap, and
    test examples from its test examples. The draw is fixed by ``seed`` and the sizes of the
    splits drawn from; a larger draw begins with a smaller one's training examples only if
    ``validation`` examples are not in the way, so give all numbers to repeat a sample.

    Args:
        dataset: where to draw from.
        train: the number of training examples.
        validation: the number of validation examples.
        test: the number of test examples.
        seed: an integer of 0 or more.

    Raises:
        ResNetJaxError: if there are fewer examples than asked for.
    """
    for asked, there, what in (
        (train + validation, len(dataset.train), "training and validation"),
        (test, len(dataset.test), "test"),
    ):
        if asked > there or min(train - 1, validation, test) < 0:
            raise ResNetJaxError(
                f"a sample of {asked} {what} examples of `{dataset.name}`: expected 1 to {there} "
                "(--data.subset)"
            )
    training = permutation(len(dataset.train), seed, 0)
    return Dataset.of(
        dataset.name,
        dataset.train.take(training[:train]),
        dataset.train.take(training[train : train + validation]),
        dataset.test.take(permutation(len(dataset.test), seed, 1)[:test]),
        dataset.class_names,
    )
