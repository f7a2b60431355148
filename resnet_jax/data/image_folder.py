"""Folders of images with a folder for each class: scanned into a table, split and read."""

import errno
import hashlib
import logging
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

from resnet_jax.config import DataConfig
from resnet_jax.data.cache import cached_facts
from resnet_jax.data.dataset import DiskSplit, Examples
from resnet_jax.data.image import DecodeSpec, open_image, read_bytes, read_image
from resnet_jax.data.walk import SPLITS, find_classes
from resnet_jax.errors import ResNetJaxError, command
from resnet_jax.storage import VerifyReport, expanded

log = logging.getLogger(__name__)

# The share of each class that becomes the test split of a folder without splits.
TEST_SHARE = 0.1
# Bytes below which decoding takes less time than the Python code around it. The GIL lets only one
# thread run that code at a time, and two threads then take twice as long as one.
SMALL_FILE = 4_000
# The most lines that a command shows; `resnet-jax verify` shows all.
SHOWN = 20


@dataclass(slots=True)
class ImageFile:
    """The facts that are kept about an image file, without its pixels."""

    path: str
    split: str  # "" if the folder has no splits
    class_name: str
    sha256: str  # of the content
    height: int  # in pixels, upright; 0 if the file is broken
    width: int
    grey: bool
    problem: str  # why it is broken, or which file it duplicates; "" if neither


@dataclass(frozen=True)
class ImageFolder:
    """A table of the image files in a folder."""

    root: Path
    class_names: tuple[str, ...]
    files: list[ImageFile]
    left_out: tuple[str, ...] = ()  # a line for each kind of entry that is not in the table

    def report(self) -> VerifyReport:
        """Count usable files by class, and list those that are broken, empty, or duplicates."""
        counts = Counter(os.path.join(f.split, f.class_name) for f in self.files if not f.problem)
        good = tuple(f"{name} ({count} images)" for name, count in sorted(counts.items()))
        bad = sorted((Path(file.path), file.problem) for file in self.files if file.problem)
        damaged = tuple(f"{path}: {problem}" for path, problem in bad)
        usable = f"{counts.total()} images" if damaged or self.left_out else "all of it"
        usable += ", without the others by --data.skip-bad" if damaged else ""
        return VerifyReport(self.root, good, damaged, usable, self.left_out)


def open_image_folder(settings: DataConfig) -> Examples:
    """Scan a folder of images and return its examples."""
    if settings.dir is None:
        raise ResNetJaxError("dataset folder needs --data.dir DIR, which holds a folder a class")
    root = expanded(settings.dir).absolute()  # images on disk are read later, maybe elsewhere
    folder = scan(root, background=settings.background, workers=settings.workers)
    files, class_names = _usable(folder, settings.skip_bad), folder.class_names
    if not files:
        raise ResNetJaxError(f"{root} has no usable image: {command('verify', root)} lists why")
    sizes = sorted({(file.height, file.width) for file in files})
    (low, left), (high, right) = sizes[0], sizes[-1]
    sides = sizes[0] if len(sizes) == 1 else (None, None)
    what = f"images in {root}, of {left}x{low} to {right}x{high} pixels,"
    channels = 1 if all(file.grey for file in files) else 3
    spec = DecodeSpec.of(what, (*sides, channels), settings)
    label_of = {name: label for label, name in enumerate(class_names)}
    digest = hashlib.sha256(f"({class_names!r}, {spec.fingerprint_text})".encode())
    splits = _splits(files)
    if untrained := set(label_of) - {file.class_name for file in splits["train"]}:
        raise ResNetJaxError(
            f"class {min(untrained)!r} of {root} has no usable training image: add one or remove it"
        )
    for split, members in splits.items():
        if members:
            content = [(file.sha256, label_of[file.class_name]) for file in members]
            digest.update(repr((split, content)).encode())

    ordered = [file for members in splits.values() for file in members]
    paths = [file.path for file in ordered]
    labels = np.array([label_of[file.class_name] for file in ordered], np.int32)

    def read(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.array([read_image(paths[i], spec) for i in positions], np.uint8)
        return images.reshape(-1, *spec.shape), labels[positions]

    images = DiskSplit(read, np.arange(len(paths)), spec.shape)
    test, held_out = len(splits["test"]), len(splits["validation"]) or None
    sha256, threads = digest.hexdigest(), _threads(paths)
    return Examples(class_names, images, test, held_out, root, sha256, labels, threads)


def _usable(folder: ImageFolder, skip_bad: bool) -> list[ImageFile]:
    """Return the files to train on and to test with, and warn of what is wrong with the others.

    A broken file is an error unless ``skip_bad``, which leaves out broken and duplicate files.
    """
    root, problems = folder.root, folder.report().damaged
    for line in folder.left_out:
        log.warning("%s in %s", line, root)
    for line in problems[:SHOWN]:
        log.warning("%s%s", "left out: " if skip_bad else "", line)
    if len(problems) > SHOWN:
        log.warning("and %d more: %s lists all", len(problems) - SHOWN, command("verify", root))
    broken = [Path(file.path) for file in folder.files if not file.height]
    if broken and not skip_bad:
        raise ResNetJaxError(
            f"{len(broken)} of {len(folder.files)} image files in {root} cannot be used, first "
            f"{min(broken)}: mend or remove them, or skip them and duplicates (--data.skip-bad)"
        )
    return [file for file in folder.files if not (skip_bad and file.problem)]


def _splits(files: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Return the files of each split, interleaved so that any slice has about the class shares.

    In a folder without splits the last tenth becomes the test split. The files of each class are
    ordered by SHA-256, so that the order follows from contents alone, not from names or a seed.
    """
    files = sorted(files, key=attrgetter("sha256", "class_name"))
    kinds = defaultdict(list)
    for file in files:
        kinds[file.split, file.class_name].append(file)
    # For each file, the share of the files of its class and split that come before it.
    shares = {f.path: (i + 0.5) / len(kind) for kind in kinds.values() for i, f in enumerate(kind)}
    files.sort(key=lambda file: shares[file.path])
    splits = {split: [file for file in files if file.split == split] for split in (*SPLITS, "")}
    if everything := splits.pop(""):
        cut = len(everything) - round(TEST_SHARE * len(everything))
        splits |= {"train": everything[:cut], "test": everything[cut:]}
    return splits


def scan(
    root: Path, *, background: int | None = None, workers: int | None = None, refresh: bool = False
) -> ImageFolder:
    """Find the classes and decode every image file once; the results are cached.

    ``root`` holds a folder for each class, or folders ``train``, ``val`` and ``test`` that do. The
    image files at any depth of a class's folder are its examples. ``refresh`` decodes every file
    again, even if its facts are cached.
    """
    if not root.is_dir():
        raise ResNetJaxError(f"{root} is no folder: give one with a folder a class (--data.dir)")
    rows, class_names, left_out = find_classes(root)
    paths = [path for path, *_ in rows]
    name = f"folder{'' if background is None else background}"
    look = partial(_examine, background=background)
    workers = workers or _threads(paths)
    facts = cached_facts(name, root, paths, look, workers=workers, refresh=refresh)
    for i, fact in enumerate(facts):
        if isinstance(fact, OSError):
            facts[i] = ("", 0, 0, True, f"it cannot be read: {fact.strerror}")
    files = [ImageFile(*row, *fact) for row, fact in zip(rows, facts, strict=True)]
    _mark_duplicates(files)
    return ImageFolder(root, class_names, files, left_out)


def _threads(paths: list[str]) -> int | None:
    """Return how many threads read files fastest: 1 if they are small, else None, the default."""
    some = [path for path in paths[:: len(paths) // 100 + 1] if os.path.isfile(path)]
    return 1 if sum(map(os.path.getsize, some)) < SMALL_FILE * len(some) else None


def _examine(path: str, background: int | None) -> list[object]:
    """Return SHA-256, height, width, whether grey, and the problem of an image file."""
    content = read_bytes(path)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        picture = open_image(content, background=background, name="it")
    except ResNetJaxError as error:
        if isinstance(error.__cause__, MemoryError):  # a shortage passes, but facts are cached
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        return [sha256, 0, 0, True, str(error)]
    return [sha256, picture.height, picture.width, picture.mode == "L", ""]


def _mark_duplicates(files: list[ImageFile]) -> None:
    """Mark the files to leave out so that no picture is used twice.

    Of equal files in one class, one stays: a test file before a validation file before a training
    file, so that no tested picture was trained on; then the first by path. Equal files in several
    classes are all left out, because nothing says which class is right.
    """
    order = ("test", "validation", "train", "")
    counts = Counter(file.sha256 for file in files)
    twins = [file for file in files if counts[file.sha256] > 1 and not file.problem]
    twins.sort(key=lambda f: (f.sha256, order.index(f.split), f.path))
    for _, (first, *others) in groupby(twins, attrgetter("sha256")):
        problem = f"the same picture as {first.path}"
        if len(classes := {file.class_name for file in (first, *others)}) > 1:
            problem = first.problem = f"the same picture is in classes {', '.join(sorted(classes))}"
        for file in others:
            file.problem = problem
