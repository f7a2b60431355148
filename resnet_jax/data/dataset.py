"""Datasets: splits of labelled images, in memory or read from disk when they are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np

from resnet_jax.config import DataConfig
from resnet_jax.data.cache import Arrays, cached_arrays
from resnet_jax.data.image import DecodeSpec, Fit
from resnet_jax.data.image_folder import open_image_folder
from resnet_jax.data.mnist import DATASETS, mnist_5k
from resnet_jax.data.sampler import permutation
from resnet_jax.data.tfds import open_prepared, prepare
from resnet_jax.errors import ResNetJaxError

# Of a dataset without validation examples of its own, the fraction of the training examples held
# out for validation.
VALIDATION_FRACTION = 0.1
# Of a larger training split so many images, evenly spaced, decide its mean and deviation.
STATISTICS_IMAGES = 10_000


class Split(Protocol):
    """Labelled images that are read by index, from any thread."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the examples at ``indices``, integers[M]: uint8[M, H, W, C] and int32[M]."""

    def take(self, indices: np.ndarray | slice) -> Self:
        """Return the split of the examples at ``indices`` (integers[M], or a slice)."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split in memory.

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
        height, width, channels = self.images.shape[1:]
        return (height, width, channels)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[indices], self.labels[indices]

    def take(self, indices: np.ndarray | slice) -> ArraySplit:
        return ArraySplit(self.images[indices], self.labels[indices])


class Source(Protocol):
    """Labelled images on disk, which are decoded as ``spec`` says, from any thread."""

    spec: DecodeSpec

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the examples at ``indices``, integers[M]: uint8[M, H, W, C] and int32[M]."""


@dataclasses.dataclass(frozen=True, eq=False)
class DiskSplit:
    """A split that is read from its sources when it is asked for.

    Attributes:
        sources: one after another they number the examples.
        positions: int[N], the number of each example of the split.
    """

    sources: Sequence[Source]
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.sources[0].spec.shape

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions = self.positions[indices]
        images = np.empty((len(positions), *self.image_shape), np.uint8)
        labels = np.empty(len(positions), np.int32)
        start = 0
        for source in self.sources:
            chosen = (start <= positions) & (positions < start + len(source))
            if chosen.any():
                images[chosen], labels[chosen] = source.read(positions[chosen] - start)
            start += len(source)
        return images, labels

    def take(self, indices: np.ndarray | slice) -> DiskSplit:
        return DiskSplit(self.sources, self.positions[indices])


def read_all(split: Split, workers: int | None = None) -> ArraySplit:
    """Read a whole split into memory, by threads (default: one for each core)."""
    workers = workers or os.cpu_count() or 1
    images = np.empty((len(split), *split.image_shape), np.uint8)
    labels = np.empty(len(split), np.int32)
    # array_record takes a quarter of the time for each record if it is asked for many.
    step = max(1, min(1000, len(split) // (4 * workers)))

    def read(start: int) -> None:
        part = np.arange(start, min(start + step, len(split)))
        images[part], labels[part] = split.batch(part)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(read, range(0, len(split), step)))
    return ArraySplit(images, labels)


def pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, of pixels scaled to [0, 1].

    Rounded to four decimals. Of more than 10,000 images, 10,000 evenly spaced ones decide.
    """
    if len(split) > STATISTICS_IMAGES:
        split = split.take(np.linspace(0, len(split) - 1, STATISTICS_IMAGES).astype(int))
    pixels = read_all(split).images.reshape(-1, split.image_shape[2])
    # By the counts of the 256 levels: exact, and without a copy as floats.
    levels = np.arange(256) / 255
    counts = [np.bincount(channel, minlength=256) / len(pixels) for channel in pixels.T]
    means = [float(count @ levels) for count in counts]
    stds = [
        math.sqrt(count @ (levels - mean) ** 2) for count, mean in zip(counts, means, strict=True)
    ]
    # Images of one colour have no deviation to divide by.
    return tuple(round(m, 4) for m in means), tuple(max(round(s, 4), 1e-4) for s in stds)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset cut into training, validation and test examples.

    Attributes:
        name: the dataset's name.
        train: examples to learn from.
        validation: examples held out from training, for choices; may be empty.
        test: examples for the end.
        class_names: the name of each label.
        fingerprint: SHA-256 over the three splits: over ``files`` where that is given, else over
            the shapes, images and labels.
        files: SHA-256 over the contents of the files that the images come from, and over how they
            are decoded; "" for arrays, and for the datasets of `resnet_jax.data.mnist`.
    """

    name: str
    train: Split
    validation: Split
    test: Split
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
        train: Split,
        validation: Split,
        test: Split,
        class_names: tuple[str, ...],
        files: str = "",
        cut: object = None,
    ) -> Dataset:
        """Make a dataset from its splits and compute its fingerprint.

        Args:
            name: see the attributes, as for the next ones.
            train: training examples.
            validation: validation examples.
            test: test examples.
            class_names: the name of each label.
            files: where given, the examples are not read for the fingerprint.
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
                    images, some = split.batch(np.arange(start, min(start + 1000, len(split))))
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
    streaming: Literal["auto", "always", "never"] = "auto",
    memory_limit: float = 2.0,
    workers: int | None = None,
) -> Dataset:
    """Open a dataset: load it into memory if it fits, and prepare it first if need be.

    ``folder`` is a folder of images, ``data_dir`` (`resnet_jax.data.image_folder`). Any other name
    is a dataset prepared by TFDS, looked for in ``data_dir`` if given, else in ``$TFDS_DATA_DIR``,
    else in TFDS's folder ``~/tensorflow_datasets``. ``mnist_5k`` comes with an installed package,
    ``mnist`` and ``fashion_mnist`` are downloaded, unless ``data_dir`` is given and lacks them;
    others are prepared by `prepare` alone.

    The validation examples are the last ones in TFDS's order, which hashes the examples' keys:
    for ``mnist`` ``train[-5000:]`` in TFDS's notation. The choice depends on nothing else, least
    of all on the seed of a run, and a larger one contains a smaller one. A dataset with a
    validation split of its own (``mnist_5k``) has it appended to the training split before the
    cut, so that the default gives that split itself, and 0 gives its examples back to training.

    Args:
        name: ``folder``, a name in ``DATASETS``, or any dataset of images and class labels in TFDS.
        data_dir: the folder of TFDS's datasets, or of the images.
        validation: the number of training examples to hold out. Default: the dataset's own, which
            is a tenth for a folder and for a dataset that is not in the table.
        from_idx: prepare first from this folder with the four IDX files of MNIST or Fashion-MNIST.
        size: the side in pixels to which images of several sizes, and those of a folder, are
            resized.
        fit: how an image that is not square becomes so: ``"pad"`` or ``"crop"``.
        background: the grey level under transparent pixels. Default: such images are refused.
        skip_bad: leave out a folder's broken, empty and duplicate files.
        streaming: ``"auto"``: read the images when they are needed if all of them would take more
            than ``memory_limit`` as uint8. The examples are the same.
        memory_limit: in GiB.
        workers: how many images are decoded in parallel. Default: the number of cores.

    Raises:
        ResNetJaxError: the dataset is unknown, cannot be loaded, or is damaged, or ``validation``
            is negative or leaves nothing to train on.

    Example:
        >>> data = load_dataset("mnist_5k")
        >>> len(data.train), len(data.validation), len(data.test), data.image_shape
        (4000, 500, 500, (28, 28, 1))
    """
    if from_idx is not None:
        prepare(name, data_dir, from_idx)
    decoding = {"fit": fit, "background": background}
    if name == "folder":
        opened = _open_folder(data_dir, size, decoding, skip_bad, workers)
    elif name == "mnist_5k":
        opened = _open_mnist_5k()
    else:
        opened = _open_prepared(name, data_dir, size, decoding, workers)
    gigabytes = opened.values / 2**30
    on_disk = streaming == "always" or (streaming == "auto" and gigabytes > memory_limit)
    splits = opened.on_disk() if on_disk else opened.in_memory()
    pool, test = splits["train"], splits.get("test", splits["train"].take(slice(0)))
    default = opened.validation
    if "validation" in splits:
        pool = _concatenated(pool, splits["validation"])
        default = len(splits["validation"]) if default is None else default
    if default is None:
        default = round(VALIDATION_FRACTION * len(pool))
    held_out = default if validation is None else validation
    kept = len(pool) - held_out
    if held_out < 0 or kept < 1:
        raise ResNetJaxError(
            f"--data.validation must be at least 0 and below the {len(pool)} training examples of "
            f"`{name}`, got {held_out}"
        )
    train, validating = pool.take(slice(kept)), pool.take(slice(kept, None))
    return Dataset.of(name, train, validating, test, opened.class_names, opened.files)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A dataset whose files are known and whose images are not read yet."""

    class_names: tuple[str, ...]
    on_disk: Callable[[], Mapping[str, Split]]
    in_memory: Callable[[], Mapping[str, Split]]
    values: int  # of all images, one byte each
    files: str = ""  # see `Dataset`
    validation: int | None = None  # examples that are held out unless asked otherwise


def _open_sources(
    name: str,
    root: Path,
    class_names: tuple[str, ...],
    sources: Mapping[str, Source],
    files: str,
    workers: int | None,
) -> _Opened:
    splits = {
        split: DiskSplit((source,), np.arange(len(source))) for split, source in sources.items()
    }
    if "train" not in splits:
        raise ResNetJaxError(
            f"{root} has no training examples with labels: expected a split `train` (--data.name)"
        )

    def read() -> Arrays:
        held = {split: read_all(part, workers) for split, part in splits.items()}
        return {split: (part.images, part.labels) for split, part in held.items()}

    def in_memory() -> dict[str, Split]:
        arrays = cached_arrays(name, root, files, read)
        return {split: ArraySplit(*pair) for split, pair in arrays.items()}

    values = sum(map(len, splits.values())) * math.prod(splits["train"].image_shape)
    return _Opened(class_names, lambda: splits, in_memory, values, files)


def _open_folder(
    data_dir: str | os.PathLike[str] | None,
    size: int | None,
    decoding: Mapping[str, Any],
    skip_bad: bool,
    workers: int | None,
) -> _Opened:
    if data_dir is None:
        raise ResNetJaxError(
            "dataset folder needs a folder of images: give --data.dir DIR, with a folder for "
            "each class in it"
        )
    root = Path(data_dir).expanduser()
    background = decoding["background"]
    folder = open_image_folder(root, skip_bad=skip_bad, background=background, workers=workers)
    sources, files = folder.sources(size, **decoding)
    return _open_sources("folder", root, folder.class_names, sources, files, workers)


def _open_prepared(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    size: int | None,
    decoding: Mapping[str, Any],
    workers: int | None,
) -> _Opened:
    prepared = open_prepared(name, data_dir)
    spec = prepared.spec(size, **decoding)
    present = [split for split in ("train", "validation", "test") if split in prepared.splits]
    if name not in DATASETS:
        present = [split for split in present if prepared.is_labelled(split)]
    sources: dict[str, Source] = {split: prepared.records(split, spec) for split in present}
    files = prepared.content_digest(present, spec, workers=workers or os.cpu_count() or 1)
    opened = _open_sources(
        Path(name).name, prepared.folder, prepared.class_names, sources, files, workers
    )
    if name in DATASETS:  # whose fingerprint is that of the arrays
        return dataclasses.replace(opened, files="", validation=DATASETS[name].validation)
    return opened


def _open_mnist_5k() -> _Opened:
    splits = {split: ArraySplit(*pair) for split, pair in mnist_5k().items()}
    held_out = DATASETS["mnist_5k"].validation
    return _Opened(tuple("0123456789"), lambda: splits, lambda: splits, 0, validation=held_out)


def _concatenated(first: Any, second: Any) -> Split:
    """Return one split after another, both in memory or both, as they were opened, on disk."""
    if isinstance(first, DiskSplit):
        sources = (*first.sources, *second.sources)
        return DiskSplit(sources, np.arange(len(first) + len(second)))
    return ArraySplit(
        np.concatenate([first.images, second.images]),
        np.concatenate([first.labels, second.labels]),
    )


def load_splits(
    settings: DataConfig, data: Dataset | None = None
) -> tuple[Dataset, dict[str, Split]]:
    """Open the dataset that a run is configured for, or take one; also return its splits by name.

    With ``--data.subset`` there is a further split, ``test_all``: every test image of the dataset,
    for a test result that does not depend on a few images.
    """
    data = data or load_dataset(
        settings.name,
        settings.dir,
        validation=settings.validation,
        size=settings.read_size or settings.image_size,
        fit=settings.fit,
        background=settings.background,
        skip_bad=settings.skip_bad,
        streaming=settings.streaming,
        memory_limit=settings.memory_limit,
        workers=settings.workers,
    )
    more = {}
    if settings.subset is not None:
        more["test_all"] = data.test
        train, validation, test = settings.subset
        data = sample(
            data, train=train, validation=validation, test=test, seed=settings.subset_seed
        )
    return data, {"train": data.train, "validation": data.validation, "test": data.test, **more}


def sample(dataset: Dataset, *, train: int, validation: int, test: int, seed: int = 0) -> Dataset:
    """Draw a small dataset from another at random, whatever the labels.

    Training and validation examples are drawn from its training examples, without overlap, and
    test examples from its test examples. The draw is fixed by ``seed`` and the sizes of the
    splits drawn from; a larger draw begins with a smaller one's training examples only if
    ``validation`` examples are not in the way, so give all numbers to repeat a sample.

    Args:
        dataset: where to draw from.
        train: the number of training examples.
        validation: the number of validation examples.
        test: the number of test examples.
        seed: an integer of at least 0.

    Raises:
        ResNetJaxError: there are fewer examples than asked for.
    """
    for asked, available, what in (
        (train + validation, len(dataset.train), "training and validation"),
        (test, len(dataset.test), "test"),
    ):
        if asked > available or min(train - 1, validation, test) < 0:
            raise ResNetJaxError(
                f"a sample of {asked} {what} examples of `{dataset.name}`: expected 1 to "
                f"{available} (--data.subset)"
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
