"""Opening a dataset by its name: digits from a package, a folder of images, or a TFDS dataset."""

import logging
import math
import os
from functools import partial
from typing import Literal

from resnet_jax.config import DataConfig, Fit, TrainConfig, replaced
from resnet_jax.data.cache import cached_arrays
from resnet_jax.data.dataset import ArraySplit, Dataset, Examples, Split, hold_out, read_all, sample
from resnet_jax.data.image_folder import open_image_folder
from resnet_jax.data.mnist import DATASETS, mnist_5k
from resnet_jax.data.prepare import prepare
from resnet_jax.data.tfds import find_prepared, not_prepared, open_prepared, tfds_root
from resnet_jax.data.walk import SPLITS
from resnet_jax.errors import ResNetJaxError
from resnet_jax.storage import PathLike

log = logging.getLogger(__name__)


def load_dataset(
    name: str,
    data_dir: PathLike | None = None,
    *,
    validation: int | None = None,
    from_idx: PathLike | None = None,
    size: int | None = None,
    fit: Fit = "pad",
    background: int | None = None,
    skip_bad: bool = False,
    streaming: Literal["auto", "always", "never"] = "auto",
    memory_limit: float = 2.0,
    workers: int | None = None,
) -> Dataset:
    """Open a dataset: load it into memory if it fits, and prepare it first if need be.

    The validation examples are the last training examples in TFDS's order, which hashes their
    keys: for ``mnist``, ``train[-5000:]`` in TFDS's notation. The choice depends on nothing else,
    not even on the seed of a run, and a larger validation split contains a smaller one. If a
    dataset has a validation split, it is appended to the training examples before the cut: the
    default gives exactly that split, and 0 gives its examples back to training.

    Args:
        name: ``folder``: a folder of images; ``mnist_5k``, which an installed package carries;
            ``mnist`` or ``fashion_mnist``, downloaded if they are not prepared and no
            ``data_dir`` is given; or any other dataset of images and class labels that TFDS
            prepared (`resnet-jax data prepare`).
        data_dir: the folder of images, or of TFDS's datasets. Default: ``$TFDS_DATA_DIR``, then
            ``~/tensorflow_datasets``.
        from_idx: prepare first from the four IDX files of MNIST or Fashion-MNIST in this folder.
        size: the side in pixels to which images of several sizes, and those of a folder, are
            resized.

    The other arguments are those of `resnet_jax.DataConfig`.

    Raises:
        ResNetJaxError: the dataset is unknown, cannot be loaded, or is damaged, an argument is
            refused, or ``validation`` leaves nothing to train on.

    Example:
        >>> load_dataset("mnist_5k")
        <Dataset mnist_5k: 4000 + 500 + 500 images of 28x28x1, 10 classes>
    """
    if from_idx is not None:
        prepare(name, data_dir, from_idx)
    settings = DataConfig(
        name, None if data_dir is None else os.fsdecode(data_dir), validation,
        read_size=size, fit=fit, background=background, skip_bad=skip_bad,
        streaming=streaming, memory_limit=memory_limit, workers=workers,
    )  # fmt: skip
    return _load(TrainConfig(data=settings).data)  # TrainConfig refuses invalid settings


def load_splits(
    settings: DataConfig, data: Dataset | None = None
) -> tuple[Dataset, dict[str, Split]]:
    """Return a configuration's dataset, opened unless ``data`` is given, and its splits by name.

    With ``--data.subset`` there is a further split, ``test_all``: every test image of the dataset.
    """
    data, more = data or _load(settings), {}
    if settings.subset is not None:
        more["test_all"] = data.test
        sizes = dict(zip(SPLITS, settings.subset, strict=True))
        data = sample(data, **sizes, seed=settings.subset_seed)
    return data, {"train": data.train, "validation": data.validation, "test": data.test, **more}


def _load(settings: DataConfig) -> Dataset:
    name, opened = settings.name, _open(replaced(settings, {}))  # NumPy's numbers as Python's
    images = opened.images
    gibibytes = len(images) * math.prod(images.image_shape) / 2**30
    fits = settings.streaming == "auto" and gibibytes <= settings.memory_limit
    if opened.digest and (fits or settings.streaming == "never"):
        read = partial(read_all, images, settings.workers or opened.workers)
        images = ArraySplit(*cached_arrays(name, opened.folder, opened.digest, read))
    cut = len(images) - opened.num_test
    held_out = opened.num_validation if settings.validation is None else settings.validation
    train, validation = hold_out(name, images.take(slice(cut)), held_out)
    if lost := sorted({*opened.labels[len(train) :]} - {*opened.labels[: len(train)]}):
        log.warning(
            "%d classes have no training image, first %s: their images are held out for "
            "validation; --data.validation 0 holds none out",
            len(lost), opened.class_names[lost[0]],
        )  # fmt: skip
    # The fingerprint of a dataset in DATASETS is computed from its images and labels.
    source = "" if name in DATASETS else opened.digest
    test = images.take(slice(cut, None))
    return Dataset.of(name, train, validation, test, opened.class_names, source)


def _open(settings: DataConfig) -> Examples:
    name = settings.name
    if name == "folder":
        return open_image_folder(settings)
    if name == "mnist_5k":
        info = DATASETS[name]
        return Examples(tuple("0123456789"), ArraySplit(*mnist_5k()), info.test, info.validation)
    root = tfds_root(settings.dir).absolute()
    if settings.dir is not None and not root.is_dir():
        raise ResNetJaxError(f"{root} is no folder of prepared datasets (--data.dir)")
    place = find_prepared(name, root)
    if place is None:
        # Only datasets that need no TensorFlow are downloaded, and only to the default folder.
        if name not in DATASETS or settings.dir is not None:
            raise not_prepared(name, root)
        place = prepare(name)
    return open_prepared(place, root, settings)
