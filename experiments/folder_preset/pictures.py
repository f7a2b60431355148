"""Known datasets as folders of pictures like a user's: train/<class>/ and val/<class>/.

Each class has a fixed order: held-out pictures first, then training pictures. So the 200 training
pictures are among the 2,000, and both sets are validated on the same pictures.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import resnet_jax as rj

# Pictures held out for validation, of all classes together.
HELD_OUT = {"cifar": 2_000, "first5": 1_000, "last5": 1_000, "fashion": 2_000, "digits": 500}

# A function that writes a picture to a path.
Write = Callable[[Path], object]


def folder_of(data: str, count: int, held_out: int, place: Path, cifar: Path | None) -> Path:
    """Return the folder of ``count`` training pictures in ``place``; make it if it is not there."""
    folder = place / f"{data}-{count}-{held_out}"
    if folder.exists():
        return folder
    ending, classes = _cifar(data, cifar) if data in ("cifar", "first5", "last5") else _grey(data)
    each, aside = count // len(classes), held_out // len(classes)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        for name, pictures in classes.items():
            if each + aside > (known := len(pictures)):
                raise rj.ResNetJaxError(
                    f"{data}: expected {each} + {aside} pictures of {name}, got {known}"
                )
            order = np.random.default_rng(0).permutation(known)
            for split, chosen in (("val", order[:aside]), ("train", order[aside : aside + each])):
                class_ = Path(temporary, data, split, name)
                class_.mkdir(parents=True)
                for number in chosen:
                    pictures[number](class_ / f"{number:05d}{ending}")
        with suppress(OSError):  # another process was quicker
            Path(temporary, data).rename(folder)
    return folder


def _cifar(data: str, folder: Path | None) -> tuple[str, dict[str, list[Write]]]:
    """Return links to the JPEG files of all classes, of the first five, or of the last five."""
    if folder is None or not (folder / "train").is_dir():
        raise rj.ResNetJaxError(
            f"{folder} holds no images of CIFAR-10: give the folder with train/, or CIFAR10_FOLDER"
        )
    names = sorted(path.name for path in (folder / "train").iterdir())
    chosen = {"cifar": names, "first5": names[:5], "last5": names[5:]}[data]
    return ".jpg", {
        name: [
            partial(os.symlink, p.resolve()) for p in sorted((folder / "train" / name).iterdir())
        ]
        for name in chosen
    }


def _grey(data: str) -> tuple[str, dict[str, list[Write]]]:
    """Return PNGs of scikit-learn's digits, 8x8, or of Fashion-MNIST's training images, 28x28."""
    if data == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images, names = (images * 255 / 16).round().reshape(-1, 8, 8), "0123456789"
    else:
        dataset = rj.load_dataset("fashion_mnist", validation=0)
        images, labels = dataset.train.batch(np.arange(len(dataset.train)))
        images, names = images[..., 0], [n.replace("/", " ") for n in dataset.class_names]
    pictures = [Image.fromarray(image).save for image in images.astype(np.uint8)]
    return ".png", {
        name: [pictures[i] for i in np.flatnonzero(labels == label)]
        for label, name in enumerate(names)
    }
