"""A folder of images with a folder for each class: scanned to a table of files, split and read."""

import dataclasses
import errno
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.cache import cached_facts
from resnet_jax.data.dataset import DiskSplit
from resnet_jax.data.image import DecodeSpec, open_image, read_bytes, read_image
from resnet_jax.data.report import VerifyReport
from resnet_jax.data.walk import SPLITS, find_classes
from resnet_jax.errors import ResNetJaxError

log = logging.getLogger(__name__)

# Of a folder that is not split, the share of each class that is held back for the test.
TEST_SHARE = 0.1
# Lines that a command shows; `resnet-jax verify` shows all.
SHOWN = 20


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """What is known of an image file without its pixels."""

    path: Path
    split: str  # "" where the folder is not split
    class_name: str
    sha256: str  # of the content
    size: tuple[int, int]  # height and width in pixels, upright
    grey: bool
    broken: str  # why it cannot be used; "" if it can
    duplicate: str = ""  # of what it is a duplicate

    @property
    def problem(self) -> str:
        return self.broken or self.duplicate


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A table of the image files in a folder."""

    root: Path
    class_names: tuple[str, ...]
    files: tuple[ImageFile, ...]
    left_out: tuple[str, ...] = ()  # a line for each kind of thing that is no row

    @property
    def label_of(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.class_names)}

    def problems(self) -> list[str]:
        """Return a line for each file that is broken, empty, or a duplicate."""
        bad = sorted((file for file in self.files if file.problem), key=lambda file: file.path)
        return [f"{file.path}: {file.problem}" for file in bad]

    def report(self) -> VerifyReport:
        """Count usable files by class, and list the others."""
        whole = [file for file in self.files if not file.problem]
        counts = Counter(str(Path(file.split, file.class_name)) for file in whole)
        good = tuple(f"{name} ({count} images)" for name, count in sorted(counts.items()))
        damaged = tuple(self.problems())
        usable = f"{len(whole)} images" if damaged or self.left_out else "all of it"
        return VerifyReport(
            str(self.root), self.root, good, damaged, usable, images=True, left_out=self.left_out
        )

    def spec(self, size: int | None, fit: Any = "pad", background: int | None = None) -> DecodeSpec:
        """Return how the images are decoded: grey or RGB, at ``size`` or as they are."""
        sizes = sorted({file.size for file in self.files})
        if size is None and len(sizes) > 1:
            (low, left), (high, right) = sizes[0], sizes[-1]
            raise ResNetJaxError(
                f"{self.root} holds images of {len(sizes)} sizes, from {left}x{low} to "
                f"{right}x{high} pixels: give the side to bring them to, --data.image-size 224 for "
                "photographs or less for drawings"
            )
        channels = 1 if all(file.grey for file in self.files) else 3
        height, width = (size, size) if size else sizes[0]
        return DecodeSpec((height, width, channels), fit, background)

    def splits(self) -> dict[str, list[ImageFile]]:
        """Return the files of each split.

        Each class is in the order of its files' SHA-256, and the classes are interleaved evenly,
        so that any end of a split has its share of each class. Of a folder that is not split the
        last tenth is the test. All this follows from the files' contents alone, not from names or
        a seed.
        """
        splits = {
            split: _interleaved([file for file in self.files if file.split == split])
            for split in (*SPLITS, "")
        }
        if everything := splits.pop(""):
            cut = len(everything) - round(TEST_SHARE * len(everything))
            splits |= {"train": everything[:cut], "test": everything[cut:]}
        return splits

    def digest(self, splits: dict[str, list[ImageFile]], spec: DecodeSpec) -> str:
        """Return a SHA-256 over the files' contents, their labels, and how they are decoded."""
        digest = hashlib.sha256(f"({self.class_names!r}, {spec.fingerprint_text})".encode())
        label_of = self.label_of
        for split, files in splits.items():
            if files:
                content = [(file.sha256, label_of[file.class_name]) for file in files]
                digest.update(repr((split, content)).encode())
        return digest.hexdigest()


class ImageFiles(DiskSplit):
    """Image files of a folder with their labels."""

    def __init__(self, folder: ImageFolder, files: Sequence[ImageFile], spec: DecodeSpec) -> None:
        super().__init__(len(files), spec)
        label_of = folder.label_of
        self.labels = np.array([label_of[file.class_name] for file in files], np.int32)
        self.paths = [file.path for file in files]

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(positions), *self.spec.shape), np.uint8)
        for i, position in enumerate(positions):
            images[i] = read_image(self.paths[position], self.spec)
        return images, self.labels[positions]


def _interleaved(files: list[ImageFile]) -> list[ImageFile]:
    """Order files so that every stretch has the classes in their proportions."""
    by_class = defaultdict(list)
    for file in sorted(files, key=lambda f: (f.sha256, str(f.path))):
        by_class[file.class_name].append(file)
    placed = [
        ((k + 0.5) / len(of_class), file.sha256, name, k)
        for name, of_class in by_class.items()
        for k, file in enumerate(of_class)
    ]
    return [by_class[name][k] for *_, name, k in sorted(placed)]


def open_image_folder(
    root: Path, skip_bad: bool, background: int | None, workers: int | None
) -> ImageFolder:
    """Scan a folder for training, and warn of what is wrong with it.

    A broken file is an error, unless ``skip_bad`` leaves it out as it does duplicates.
    """
    folder = scan(root, background=background, workers=workers)
    problems = folder.problems()
    for line in folder.left_out:
        log.warning("%s in %s", line, root)
    for line in problems[:SHOWN]:
        log.warning("%s%s", "left out: " if skip_bad else "", line)
    if len(problems) > SHOWN:
        log.warning("and %d more: `resnet-jax verify %s` lists all", len(problems) - SHOWN, root)
    broken = [file.path for file in folder.files if file.broken]
    if broken and not skip_bad:
        raise ResNetJaxError(
            f"{len(broken)} of {len(folder.files)} image files in {root} cannot be used, first "
            f"{min(broken)}: mend or remove them, or leave them and duplicates out by "
            "--data.skip-bad"
        )
    if skip_bad:
        usable = tuple(file for file in folder.files if not file.problem)
        folder = dataclasses.replace(folder, files=usable)
    trained = {file.class_name for file in folder.files if file.split in ("", "train")}
    if untrained := set(folder.class_names) - trained:
        raise ResNetJaxError(
            f"class {min(untrained)!r} of {root} has no usable training image: add some or remove "
            "its folder"
        )
    return folder


def scan(
    root: Path, *, background: int | None = None, workers: int | None = None, refresh: bool = False
) -> ImageFolder:
    """Find the classes and decode every image file once; what was found is cached.

    ``root`` holds a folder for each class, or folders ``train``, ``val`` and ``test`` that do. The
    image files at any depth of a class's folder are its examples. ``refresh`` decodes the files
    that are cached, too.
    """
    if not root.is_dir():
        raise ResNetJaxError(f"{root} is no folder: expected one with a folder for each class")
    rows, class_names, left_out = find_classes(root)
    facts = cached_facts(
        f"folder{'' if background is None else background}",
        root,
        [path for path, *_ in rows],
        partial(_look, background=background),
        workers=workers,
        refresh=refresh,
    )
    files = []
    for row, fact in zip(rows, facts, strict=True):
        if isinstance(fact, OSError):
            fact = ("", 0, 0, True, f"it cannot be read: {fact.strerror}")
        sha256, height, width, grey, broken = fact
        files.append(ImageFile(*row, sha256, (height, width), grey, broken))
    return ImageFolder(root, class_names, _with_duplicates(files), left_out)


def _look(path: Path, background: int | None) -> list[object]:
    """Return SHA-256, height, width, whether grey, and the problem of an image file."""
    content = read_bytes(path)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        picture = open_image(content, background=background, name="it")
    except ResNetJaxError as error:
        if isinstance(error.__cause__, MemoryError):  # passes, while facts are kept
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        return [sha256, 0, 0, True, str(error)]
    return [sha256, picture.height, picture.width, picture.mode == "L", ""]


def _with_duplicates(files: list[ImageFile]) -> tuple[ImageFile, ...]:
    """Mark the files to leave out so that no picture is used twice.

    Of equal files one stays: the test's rather than the validation's, and theirs rather than the
    training's, so that nothing tested was trained on; then the first by path. Of equal files of
    several classes none stays, since nothing says which class is right.
    """
    equal = defaultdict(list)
    order = ("test", "validation", "train", "")
    for file in sorted(files, key=lambda f: (order.index(f.split), str(f.path))):
        if not file.broken:
            equal[file.sha256].append(file)
    marks: dict[Path, str] = {}
    for first, *others in equal.values():
        if len(classes := {file.class_name for file in (first, *others)}) > 1:
            mark = f"the same picture is in classes {', '.join(sorted(classes))}"
            marks |= {file.path: mark for file in (first, *others)}
        else:
            marks |= {file.path: f"the same picture as {first.path}" for file in others}
    return tuple(dataclasses.replace(file, duplicate=marks.get(file.path, "")) for file in files)
