"""Datasets: as arrays in memory, or read example by example where they do not fit."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from resnet_jax.data.cache import cached, file_digest, read_cached, remembered
from resnet_jax.data.catalogue import DATASETS
from resnet_jax.data.files import Fit
from resnet_jax.data.folders import usable_folder
from resnet_jax.data.preparation import locate
from resnet_jax.data.prepared import Arrays, RecordSource, damaged, read_info
from resnet_jax.data.source import Joined, Source, default_workers, read_all
from resnet_jax.data.stream import permutation
from resnet_jax.errors import ResNetJaxError

# Of a dataset without validation examples of its own, the share of the training examples held out.
VALIDATION_SHARE = 0.1


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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        height, width, channels = self.images.shape[1:]
        return (height, width, channels)

    def take(self, indices: np.ndarray | slice) -> Split:
        """Returns the examples at ``indices`` (integers[M], or a slice), in that order."""
        return Split(self.images[indices], self.labels[indices])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels at ``indices`` (integers[M])."""
        return self.images[indices], self.labels[indices]


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Examples that stay on disk and are decoded when they are asked for.

    Attributes:
        source: where they are read.
        positions: int[N], the source's example that each of this split is.
    """

    source: Source
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.source.read_as.shape

    def take(self, indices: np.ndarray | slice) -> StreamedSplit:
        """Returns the examples at ``indices`` (integers[M], or a slice), in that order."""
        return StreamedSplit(self.source, self.positions[indices])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads the images and labels at ``indices`` (integers[M]): uint8[M, H, W, C], int32[M]."""
        return self.source.read(self.positions[indices])


AnySplit = Split | StreamedSplit


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset cut into training, validation and test examples.

    Attributes:
        name: the dataset's name.
        train: examples to learn from.
        validation: examples held out from training, for choices; may be empty.
        test: examples for the end.
        class_names: the name of each label.
        fingerprint: SHA-256 over the three splits as cut: over ``files`` where that is given, else
            over the shapes, images and labels.
        files: SHA-256 over the contents of the files that the images come from, and over how they
            are read; "" for arrays, and for the datasets of the table.
    """

    name: str
    train: AnySplit
    validation: AnySplit
    test: AnySplit
    class_names: tuple[str, ...]
    fingerprint: str
    files: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.train.image_shape

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.class_names)

    @classmethod
    def of(
        cls,
        name: str,
        train: AnySplit,
        validation: AnySplit,
        test: AnySplit,
        class_names: tuple[str, ...],
        files: str = "",
        cut: object = None,
    ) -> Dataset:
        """Makes a dataset from its splits and works out its fingerprint.

        Args:
            name: the dataset's name.
            train: see the attributes.
            validation: see the attributes.
            test: see the attributes.
            class_names: see the attributes.
            files: see the attributes; saves reading every example for the fingerprint.
            cut: with ``files``, what else decided which examples are in the splits.
        """
        splits = (train, validation, test)
        digest = hashlib.sha256()
        if files:
            digest.update(repr((files, cut, [len(split) for split in splits])).encode())
        else:
            for split in splits:
                digest.update(str((len(split), *split.image_shape)).encode())
                labels = []
                for start in range(0, len(split), 1000):
                    part = np.arange(start, min(start + 1000, len(split)))
                    images, some = split.read(part)
                    digest.update(np.ascontiguousarray(images).data)
                    labels.append(some)
                for some in labels:
                    digest.update(np.ascontiguousarray(some, "<i4").data)
        return cls(name, *splits, class_names, digest.hexdigest(), files)


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    validation: int | None = None,
    from_idx: str | os.PathLike[str] | None = None,
    size: int | None = None,
    fit: Fit = "pad",
    background: int | None = None,
    skip_bad: bool = False,
    streaming: Literal["auto", "always", "never"] = "never",
    memory_limit: float = 2.0,
    workers: int | None = None,
) -> Dataset:
    """Opens a dataset: loads it into memory if it fits, and prepares it first if need be.

    ``folder`` is a folder of images, ``data_dir`` (`resnet_jax.data.folders`). Any other name is
    a dataset prepared by TFDS, looked for in ``data_dir`` if given, else in ``$TFDS_DATA_DIR``,
    else in TFDS's folder ``~/tensorflow_datasets``. ``mnist_5k`` is prepared on first use from an
    installed package, ``mnist`` and ``fashion_mnist`` are downloaded, unless ``data_dir`` is given
    and lacks them; others are prepared by `prepare` alone.

    The validation examples are the last ones in TFDS's order, which hashes the examples' keys:
    for ``mnist`` ``train[-5000:]`` in TFDS's notation. The choice depends on nothing else, least
    of all on the seed of a run, and a larger one contains a smaller one. A dataset with a
    validation split of its own (``mnist_5k``) has it appended to the training split before the
    cut, so that the default gives that split itself, and 0 gives its examples back to training.

    Args:
        name: ``folder``, a name in ``DATASETS``, or any dataset of images and class labels in TFDS.
        data_dir: the folder of TFDS's datasets, or of the images.
        validation: the number of training examples to hold out; None for the dataset's default,
            which is a tenth for a folder and for a dataset that is not in the table.
        from_idx: a folder with the four IDX files of MNIST or Fashion-MNIST, to prepare from.
        size: the side in pixels to which images of several sizes are brought, and those of a
            folder in any case.
        fit: how: see `resnet_jax.data.files.read_image`.
        background: likewise.
        skip_bad: leave out a folder's broken, empty and duplicate files.
        streaming: auto: read the images when they are needed if all of them would take more than
            ``memory_limit`` as uint8. Both give the same examples.
        memory_limit: in GiB.
        workers: how many files are decoded in parallel. Default: the number of cores.

    Raises:
        ResNetJaxError: if the dataset is unknown, not to be had, or damaged, or ``validation`` is
            negative or leaves nothing to train on.

    Example:
        >>> data = load_dataset("mnist_5k")
        >>> len(data.train), len(data.validation), len(data.test), data.image_shape
        (4000, 500, 500, (28, 28, 1))
    """
    workers = workers or default_workers()
    files, default = "", None
    sources: Mapping[str, Source]
    if name == "folder":
        if data_dir is None:
            raise ResNetJaxError(
                "data set folder needs a folder of images: give --data.dir DIR, with a folder for "
                "each class in it"
            )
        root = Path(data_dir).expanduser()
        folder = usable_folder(root, skip_bad=skip_bad, background=background, workers=workers)
        sources, files = folder.sources(size, fit=fit, background=background)
        class_names = folder.class_names
    else:
        info = read_info(locate(name, data_dir, from_idx))
        root, class_names = info.folder, info.class_names
        read_as = info.read_as(size, fit=fit, background=background)
        records: dict[str, RecordSource] = {
            split: RecordSource(info, split, read_as)
            for split in ("train", "validation", "test")
            if split in info.splits
        }
        if name in DATASETS:
            default = DATASETS[name].validation
        else:
            records = {split: source for split, source in records.items() if source.is_labelled}
            shards = [shard.path for split in records for shard in info.splits[split]]
            digests = _shard_digests(name, root, shards, workers)
            what = (digests, {split: len(records[split]) for split in records}, read_as)
            files = hashlib.sha256(repr((class_names, what)).encode()).hexdigest()
        sources = records
    if "train" not in sources:
        raise ResNetJaxError(
            f"{root} has no training examples with labels: expected a split `train` (--data.name)"
        )
    shape = sources["train"].read_as.shape
    gigabytes = sum(len(source) for source in sources.values()) * math.prod(shape) / 2**30
    splits: dict[str, AnySplit]
    if streaming == "always" or (streaming == "auto" and gigabytes > memory_limit):
        splits = {
            split: StreamedSplit(source, np.arange(len(source)))
            for split, source in sources.items()
        }
    else:
        if name in DATASETS:  # whose arrays are read in one go
            arrays = read_cached(info)
        else:
            read: Callable[[], Arrays] = lambda: {  # noqa: E731
                split: read_all(source, workers) for split, source in sources.items()
            }
            arrays = cached(Path(name).name, root, files, read)
        splits = {split: Split(*pair) for split, pair in arrays.items()}
    pool, test = splits["train"], splits.get("test", splits["train"].take(slice(0)))
    if "validation" in splits:
        pool = _joined(pool, splits["validation"])
        default = len(splits["validation"]) if default is None else default
    if validation is None:
        validation = round(VALIDATION_SHARE * len(pool)) if default is None else default
    kept = len(pool) - validation
    if validation < 0 or kept < 1:
        raise ResNetJaxError(
            f"{validation} validation examples of `{name}`: expected 0 to {len(pool) - 1}, the "
            "training examples they are taken from less one (--data.validation)"
        )
    train, held_out = pool.take(slice(kept)), pool.take(slice(kept, None))
    return Dataset.of(name, train, held_out, test, class_names, files)


def _shard_digests(name: str, root: Path, shards: list[Path], workers: int) -> list[str]:
    for path in shards:
        if not path.is_file():
            raise damaged(path, "the file is missing")
    found: list[str] = remembered(Path(name).name, root, shards, file_digest, workers=workers)
    return found


def _joined(first: AnySplit, second: AnySplit) -> AnySplit:
    if isinstance(first, Split) and isinstance(second, Split):
        return Split(
            np.concatenate([first.images, second.images]),
            np.concatenate([first.labels, second.labels]),
        )
    assert isinstance(first, StreamedSplit)
    assert isinstance(second, StreamedSplit)
    source = Joined(first.source, second.source)
    return StreamedSplit(source, np.arange(len(source)))


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
        dataset.files,
        cut=(dataset.fingerprint, seed),
    )
