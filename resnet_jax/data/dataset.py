"""Datasets: splits of labelled images, in memory or on disk, read in batches ahead of their use."""

import dataclasses
import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
from numpy.typing import ArrayLike

from resnet_jax.data.sampler import PADDING, permutation
from resnet_jax.errors import ResNetJaxError
from resnet_jax.memory import cores

VALIDATION_FRACTION = 0.1  # of the training examples, if a dataset has no validation split
PART_BYTES = 2**22  # of images that a thread reads at once
AHEAD_PER_WORKER = 2  # parts of batches that are being read or wait to be used


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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ArraySplit:
    """A split in memory: ``images`` are uint8[N, H, W, C], ``labels`` int32[N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return cast(tuple[int, int, int], self.images.shape[1:])

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[indices], self.labels[indices]

    def take(self, indices: np.ndarray | slice) -> "ArraySplit":
        return ArraySplit(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DiskSplit:
    """A split on disk: ``read`` maps positions, int[M], to uint8[M, H, W, C] and int32[M]."""

    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    positions: np.ndarray
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.read(self.positions[indices])

    def take(self, indices: np.ndarray | slice) -> "DiskSplit":
        return dataclasses.replace(self, positions=self.positions[indices])


@dataclasses.dataclass(frozen=True)
class Examples:
    """A dataset before it is cut into splits; no images are read yet, except those of mnist_5k."""

    class_names: tuple[str, ...]
    images: Split  # first training, then validation, then test images
    num_test: int
    num_validation: int | None  # held out by default; None: a tenth of the training images
    folder: Path = Path()
    digest: str = ""  # SHA-256 over the files and how they are decoded; "" for mnist_5k
    labels: np.ndarray | tuple[int, ...] = ()  # known for a folder before its images are read
    workers: int | None = None  # threads that read all images fastest; None: one for each core


def small_parts(split: Split, array: Any = None, most: int = 1000) -> list[np.ndarray]:
    """Cut an array, or all indices, into parts of about 4 MiB of images to read ahead."""
    array = np.arange(len(split)) if array is None else array
    size = max(1, min(most, PART_BYTES // max(1, math.prod(split.image_shape))))
    return np.split(array, range(size, len(array), size))


def _fill(split: Split, images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> None:
    """Read ``indices`` into the arrays; `PADDING` gives a black image and the label `PADDING`."""
    present = indices >= 0
    images[~present], labels[~present] = 0, PADDING
    if present.any():
        found, classes = map(np.asarray, split.batch(indices[present]))
        _check(found, classes)
        if found.shape != (expected := (int(present.sum()), *split.image_shape)):
            raise ResNetJaxError(f"images read are {found.shape}, expected are {expected}")
        if (lowest := classes.min()) < 0:
            raise ResNetJaxError(f"labels must be from 0, got {lowest}: leave such images out")
        images[present], labels[present] = found, classes


def read_batches(
    split: Split, order: Iterable[np.ndarray], workers: int | None = None, most: int = 1000
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the batch of each array of indices, in order; threads read parts of batches ahead."""
    workers, order = workers or cores(), iter(order)
    pool = ThreadPoolExecutor(workers)
    pending: deque[tuple[np.ndarray, np.ndarray, list[Future[None]]]] = deque()

    def read_ahead() -> None:
        while len(pending) < 2 or sum(len(p) for *_, p in pending) < AHEAD_PER_WORKER * workers:
            if (indices := next(order, None)) is None:
                return
            images = np.empty((len(indices), *split.image_shape), np.uint8)
            labels = np.empty(len(indices), np.int32)
            parts = [small_parts(split, array, most) for array in (images, labels, indices)]
            reads = [pool.submit(_fill, split, *part) for part in zip(*parts, strict=True)]
            pending.append((images, labels, reads))

    try:
        read_ahead()
        while pending:
            images, labels, reads = pending.popleft()
            for done in reads:
                done.result()
            read_ahead()
            yield images, labels
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_all(split: Split, workers: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a whole split into memory, by threads (default: one for each core)."""
    workers = workers or cores()
    # A record takes array_record a quarter of the time if many are requested at once.
    most = min(1000, len(split) // (4 * workers))
    (whole,) = read_batches(split, [np.arange(len(split))], workers, most)
    return whole


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A dataset cut into training, validation and test examples.

    Attributes:
        name: the dataset's name.
        train: examples to learn from.
        validation: examples held out from training to make choices with; may be empty.
        test: examples for the final evaluation; may be empty.
        class_names: the name of each label.
        fingerprint: SHA-256 over the shapes, images and labels of the three splits; if there is a
            ``source``, over the source, the ``cut`` that `of` was given, and the splits' sizes.
        source: text that identifies the examples without reading them, such as a SHA-256 over the
            files that they come from; "" for arrays.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str
    source: str = ""

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} + {len(self.validation)} + {len(self.test)} images"
        shape = "x".join(map(str, self.image_shape))
        return f"<Dataset {self.name}: {sizes} of {shape}, {self.num_classes} classes>"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return cast(tuple[int, int, int], tuple(map(int, self.train.image_shape)))

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
        class_names: Sequence[str],
        source: str = "",
        cut: object = None,
    ) -> "Dataset":
        """Make a dataset from its splits and compute its fingerprint.

        Without a ``source`` all examples are read once for the fingerprint. For your own streamed
        dataset, give a ``source`` that changes whenever the examples do, such as the version of a
        collection, and as ``cut`` whatever else decided which examples are in the splits.

        Raises:
            ResNetJaxError: arrays have another type, the splits differ in their images' shape, or a
                label that is read has no name.
        """
        splits, names = (train, validation, test), tuple(map(str, class_names))
        if len(set(names)) < len(names) and not source:
            twice = next(name for name in names if names.count(name) > 1)
            raise ResNetJaxError(f"class name {twice} is given twice: give each class its own")
        for split in splits:
            if isinstance(split, ArraySplit):
                _check(split.images, split.labels)
        shapes = sorted({tuple(map(int, split.image_shape)) for split in splits if len(split)})
        if len(shapes) > 1:
            raise ResNetJaxError(f"images are {' and '.join(map(str, shapes))}: give one shape")
        digest = hashlib.sha256()
        if source:
            # Arrays as lists: NumPy's text of them varies, and leaves out the middle of long ones.
            text = json.dumps(cut, default=lambda x: getattr(x, "tolist", x.__repr__)())
            cut = tuple(json.loads(text)) if isinstance(cut, tuple) else json.loads(text)
            digest.update(repr((source, cut, [len(split) for split in splits])).encode())
        else:
            for split in splits:
                digest.update(str((len(split), *map(int, split.image_shape))).encode())
                labels = b""
                for images, some in read_batches(split, small_parts(split)):
                    check_labels(some, len(names))
                    digest.update(np.ascontiguousarray(images).data)
                    labels += np.ascontiguousarray(some, "<i4").tobytes()
                digest.update(labels)
        return cls(name, *splits, names, digest.hexdigest(), source)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        images: ArrayLike,
        labels: ArrayLike,
        *,
        validation: int | None = None,
        test: tuple[ArrayLike, ArrayLike] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "Dataset":
        """Make a dataset from arrays.

        Args:
            name: the dataset's name.
            images: uint8[N, H, W, C], in an order that does not depend on the labels; not copied.
            labels: integers[N], from 0.
            validation: how many of the last examples are held out for validation. Default: a tenth.
            test: images and labels of the test split. Default: none.
            class_names: the name of each label. Default: the label itself.

        Raises:
            ResNetJaxError: shapes, types or numbers do not fit.

        Example:
            >>> images = np.zeros((50, 8, 8, 1), np.uint8)
            >>> Dataset.from_arrays("black", images, np.arange(50) % 2)
            <Dataset black: 45 + 5 + 0 images of 8x8x1, 2 classes>
        """
        pool = _split_of(images, labels)
        if class_names is None:
            check_countable(classes := int(pool.labels.max(initial=0)) + 1)  # before naming them
            class_names = list(map(str, range(classes)))
        tested = pool.take(slice(0)) if test is None else _split_of(*test)
        train, held_out = hold_out(name, pool, validation)
        return cls.of(name, train, held_out, tested, class_names)


def _split_of(images: ArrayLike, labels: ArrayLike) -> ArraySplit:
    images, labels = array_of(images), array_of(labels)
    _check(images, labels)
    if (labels.astype(np.int32) != labels).any():
        raise ResNetJaxError(f"labels must be below 2^31, got {labels.min()} to {labels.max()}")
    return ArraySplit(images, labels.astype(np.int32))


def _check(images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise ResNetJaxError(
            "images must be uint8[N, H, W, C], of a pixel at least, got "
            f"{images.dtype}{list(images.shape)}: give levels 0 to 255, images[..., None] of grey"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ResNetJaxError(
            f"labels must be integers[{len(images)}], got {labels.dtype}{list(labels.shape)}: cast "
            "them, as by labels.astype(np.int32)"
        )


def check_countable(num_classes: int) -> None:
    """Refuse so many classes that int32 cannot number the cells of their confusion matrix."""
    if num_classes**2 >= 2**31:
        raise ResNetJaxError(f"{num_classes} classes have no confusion matrix: at most 46,340 do")


def array_of(values: ArrayLike) -> np.ndarray:
    """Return values as an array; lists whose parts differ in shape raise `ResNetJaxError`."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ResNetJaxError(f"lists make no array ({error}): give parts of one shape") from error


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raise `ResNetJaxError` if a label has no class name; `PADDING` needs none."""
    if labels.max(initial=0) >= classes:
        found = f"{labels[labels != PADDING].min()} to {labels.max()}"
        raise ResNetJaxError(f"labels must be 0 to {classes - 1} for {classes} names, got {found}")


def hold_out(name: str, pool: Split, validation: int | None) -> tuple[Split, Split]:
    held_out = round(VALIDATION_FRACTION * len(pool)) if validation is None else validation
    kept = len(pool) - held_out
    if held_out < 0 or kept < 1 or held_out % 1 != 0:
        raise ResNetJaxError(
            f"--data.validation must be at least 0 and below the {len(pool)} training examples of "
            f"`{name}`, got {held_out}"
        )
    return pool.take(slice(int(kept))), pool.take(slice(int(kept), None))


def sample(dataset: Dataset, *, train: int, validation: int, test: int, seed: int = 0) -> Dataset:
    """Draw a small dataset from another at random, regardless of the labels.

    Training and validation examples are drawn from its training examples, without overlap, and
    test examples from its test examples. The three sizes and the ``seed`` determine the draw.
    """
    most, tested = len(dataset.train), len(dataset.test)
    if min(train - 1, validation, test) < 0 or train + validation > most or test > tested:
        raise ResNetJaxError(
            f"--data.subset must be at least 1 0 0, the first two together at most {most} and the "
            f"last {tested}, got {train} {validation} {test}"
        )
    training, testing = permutation(most, seed, 0), permutation(tested, seed, 1)
    drawn = dataset.train.take(training[:train])
    held_out = dataset.train.take(training[train : train + validation])
    tests = dataset.test.take(testing[:test])
    names, source, cut = dataset.class_names, dataset.source, (dataset.fingerprint, int(seed))
    return Dataset.of(dataset.name, drawn, held_out, tests, names, source, cut)
