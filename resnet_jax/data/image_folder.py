"""A folder of images with a folder for each class: found, checked, split, and read."""

from __future__ import annotations

import dataclasses
import errno
import glob
import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_jax.data.cache import cached_facts
from resnet_jax.data.image import FORMATS, DecodeSpec, open_image, read_bytes, read_image
from resnet_jax.data.report import VerifyReport
from resnet_jax.errors import ResNetJaxError

log = logging.getLogger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Of a folder that is not split, the share of each class that is held back for the test.
TEST_SHARE = 0.1
# Lines that a command shows; `resnet-jax verify` shows all.
SHOWN = 20


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """What is known of an image file: all there is to decide, without its pixels."""

    path: Path
    split: str  # "" where the folder is not split
    class_name: str
    sha256: str  # of the content
    size: tuple[int, int]  # height and width in pixels, upright
    grey: bool
    problem: str  # why it cannot be used; "" if it can


class ImageFiles:
    """Image files with their labels, decoded when asked for, from any thread."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], spec: DecodeSpec) -> None:
        self.paths, self.spec = paths, spec
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode the files at ``indices`` (int[M]): uint8[M, H, W, C] and int32[M]."""
        images = np.empty((len(indices), *self.spec.shape), np.uint8)
        for position, index in enumerate(indices):
            images[position] = read_image(self.paths[index], self.spec)
        return images, self.labels[indices]


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A table of the image files in a folder.

    Attributes:
        root: the folder.
        class_names: the names of the class folders, sorted.
        files: every image file, by split, class and path.
        left_out: a line for each kind of thing that is no row, with how many there are.
    """

    root: Path
    class_names: tuple[str, ...]
    files: tuple[ImageFile, ...]
    left_out: tuple[str, ...] = ()

    def broken(self) -> dict[Path, str]:
        """Return the files that cannot be used, and why."""
        return {file.path: file.problem for file in self.files if file.problem}

    def duplicates(self) -> dict[Path, str]:
        """Return the files to leave out so that no picture is used twice, and why.

        Of equal files one stays: the test's rather than the validation's, and theirs rather than
        the training's, so that nothing tested was trained on; then the first by path. Of equal
        files of several classes none stays, since nothing says which class is right.
        """
        order = ["test", "validation", "train", ""]
        equal: dict[str, list[ImageFile]] = {}
        for file in self.files:
            if not file.problem:
                equal.setdefault(file.sha256, []).append(file)
        found = {}
        for group in equal.values():
            first, *others = sorted(group, key=lambda f: (order.index(f.split), str(f.path)))
            classes = sorted({file.class_name for file in group})
            if len(classes) > 1:
                for file in group:
                    found[file.path] = f"the same picture is in classes {', '.join(classes)}"
            else:
                for file in others:
                    found[file.path] = f"the same picture as {first.path}"
        return found

    def without(self, paths: Iterable[Path]) -> ImageFolder:
        """Drop some files."""
        dropped = set(paths)
        kept = tuple(file for file in self.files if file.path not in dropped)
        return dataclasses.replace(self, files=kept)

    def report(self) -> VerifyReport:
        """Count files by class, with a line for each that is broken, empty, or a duplicate."""
        problems = self.broken() | self.duplicates()
        whole = self.without(problems)
        counts = Counter(str(Path(file.split, file.class_name)) for file in whole.files)
        good = tuple(f"{name} ({count} images)" for name, count in sorted(counts.items()))
        lines = tuple(f"{path}: {why}" for path, why in sorted(problems.items()))
        usable = f"{len(whole.files)} images" if lines or self.left_out else "all of it"
        return VerifyReport(
            str(self.root), self.root, good, lines, usable, images=True, left_out=self.left_out
        )

    def sources(
        self, size: int | None, *, fit: str = "pad", background: int | None = None
    ) -> tuple[dict[str, ImageFiles], str]:
        """Return the splits, and a SHA-256 over what they hold.

        Each class is in the order of its files' SHA-256, and the classes are interleaved evenly,
        so that any end of a split has its share of each class. Of a folder that is not split the
        last tenth is the test. All this follows from the files' contents alone, not from names or
        a seed.

        Args:
            size: the side in pixels to which images are brought; None keeps them as they are.
            fit: see `DecodeSpec`.
            background: see `DecodeSpec`.

        Raises:
            ResNetJaxError: the images are of several sizes and ``size`` is None.
        """
        sizes = sorted({file.size for file in self.files})
        if size is None and len(sizes) > 1:
            (low, left), (high, right) = sizes[0], sizes[-1]
            raise ResNetJaxError(
                f"{self.root} holds images of {len(sizes)} sizes, from {left}x{low} to "
                f"{right}x{high} pixels: give the side to bring them to, --data.image-size 224 for "
                "photographs or less for drawings"
            )
        channels = 1 if all(file.grey for file in self.files) else 3
        shape = (size, size, channels) if size else (*sizes[0], channels)
        spec = DecodeSpec(shape, "crop" if fit == "crop" else "pad", background)
        splits = {
            split: _interleaved([file for file in self.files if file.split == split])
            for split in ("", *SPLITS)
        }
        if splits[""]:
            everything = splits[""]
            cut = len(everything) - round(TEST_SHARE * len(everything))
            splits |= {"train": everything[:cut], "test": everything[cut:]}
        label_of = {name: label for label, name in enumerate(self.class_names)}
        digest = hashlib.sha256(f"({self.class_names!r}, {spec.fingerprint_text})".encode())
        sources = {}
        for split in SPLITS:
            if splits[split]:
                labels = [label_of[file.class_name] for file in splits[split]]
                sources[split] = ImageFiles([file.path for file in splits[split]], labels, spec)
                content = [(file.sha256, k) for file, k in zip(splits[split], labels, strict=True)]
                digest.update(repr((split, content)).encode())
        return sources, digest.hexdigest()


def _interleaved(files: list[ImageFile]) -> list[ImageFile]:
    """Order files so that every stretch has the classes in their proportions."""
    by_class: dict[str, list[ImageFile]] = {}
    for file in sorted(files, key=lambda f: (f.sha256, str(f.path))):
        by_class.setdefault(file.class_name, []).append(file)
    placed = [
        ((k + 0.5) / len(of_class), file.sha256, name, k, file)
        for name, of_class in by_class.items()
        for k, file in enumerate(of_class)
    ]
    return [file for *_, file in sorted(placed, key=lambda place: place[:-1])]


def open_image_folder(
    root: Path,
    *,
    skip_bad: bool = False,
    background: int | None = None,
    workers: int | None = None,
) -> ImageFolder:
    """Scan a folder for training, and warn of what is wrong with it.

    Raises:
        ResNetJaxError: a file is broken or empty and ``skip_bad`` does not leave it out; a class
            has no image left; or as `scan`.
    """
    folder = scan(root, background=background, workers=workers)
    broken, duplicates = folder.broken(), folder.duplicates()
    lines = [f"{path}: {why}" for path, why in sorted((broken | duplicates).items())]
    for line in folder.left_out:
        log.warning("%s in %s", line, root)
    for line in lines[:SHOWN]:
        log.warning("%s%s", "left out: " if skip_bad else "", line)
    if len(lines) > SHOWN:
        log.warning("and %d more: `resnet-jax verify %s` lists all", len(lines) - SHOWN, root)
    if broken and not skip_bad:
        first = min(broken)
        raise ResNetJaxError(
            f"{len(broken)} of {len(folder.files)} image files in {root} cannot be used, first "
            f"{first}: mend or remove them, or leave them and duplicates out by --data.skip-bad"
        )
    if skip_bad:
        folder = folder.without([*broken, *duplicates])
    trained = {file.class_name for file in folder.files if file.split in ("", "train")}
    for name in folder.class_names:
        if name not in trained:
            raise ResNetJaxError(
                f"class {name!r} of {root} has no usable training image: add some or remove its "
                "folder"
            )
    return folder


def scan(
    root: Path,
    *,
    background: int | None = None,
    workers: int | None = None,
    refresh: bool = False,
) -> ImageFolder:
    """Find the classes and decode every image file once; what was found is cached.

    ``root`` holds a folder for each class, or folders ``train``, ``val`` and ``test`` that do. The
    image files (by their names' endings) at any depth of a class's folder are its examples. Links
    are followed. Hidden names and the folders of runs are passed over.

    Args:
        root: the folder.
        background: see `DecodeSpec`.
        workers: how many files are decoded in parallel. Default: the number of cores.
        refresh: decode the files that are cached, too.

    Raises:
        ResNetJaxError: there is no such folder, or there are no classes in it.
    """
    if not root.is_dir():
        raise ResNetJaxError(f"{root} is no folder: expected one with a folder for each class")
    folders, left_out = _class_folders(root)
    # One name may be spelled in two ways: "é" is one character, or two.
    spelling: dict[str, str] = {}
    rows: list[tuple[Path, str, str]] = []
    endings: Counter[str] = Counter()
    for split, folder in folders:
        found = _walk(folder)
        if not found.images and found.runs:
            continue
        try:
            folder.name.encode("utf-8")
        except UnicodeEncodeError:
            raise ResNetJaxError(
                f"class folder {str(folder)!r} has a name that is not UTF-8: rename it"
            ) from None
        name = unicodedata.normalize("NFC", folder.name)
        if split in ("", "train"):
            spelling.setdefault(name, folder.name)
            if not found.images:
                raise ResNetJaxError(
                    f"class folder {folder} holds no image file{_others(found.endings)}: add some "
                    "(.png, .jpg, ...) or remove it"
                )
        if name not in spelling:
            raise ResNetJaxError(
                f"{folder} is no class of the training images: expected one of "
                f"{', '.join(sorted(spelling.values()))}"
            )
        rows += [(path, split, spelling[name]) for path in found.images]
        endings += found.endings
    class_names = tuple(sorted(spelling.values()))
    if len(class_names) < 2:
        raise ResNetJaxError(
            f"{root} holds {len(class_names)} class folders: expected two or more, each with the "
            "image files of a class (or folders train, val and test of such)"
        )
    if endings:
        left_out.append(f"left out by ending: {_counts(endings)}")
    facts = cached_facts(
        f"folder{'' if background is None else background}",
        root,
        [path for path, *_ in rows],
        partial(_look, background=background),
        workers=workers or os.cpu_count() or 1,
        refresh=refresh,
    )
    files = []
    for row, fact in zip(rows, facts, strict=True):
        if isinstance(fact, OSError):
            fact = ("", 0, 0, True, f"it cannot be read: {fact.strerror}")
        sha256, height, width, grey, problem = fact
        files.append(ImageFile(*row, sha256, (height, width), grey, problem))
    return ImageFolder(root, class_names, tuple(files), tuple(left_out))


def _look(path: Path, background: int | None) -> Sequence[object]:
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


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files among ``paths``, and in place of a folder the image files that training
    would find in it.

    A path that is not there is a pattern where it has ``*``, ``?`` or ``[``: for shells that leave
    patterns alone, and for more files than a command line holds.

    Raises:
        ResNetJaxError: nothing fits a pattern; a folder has no image in it (by the names' endings).
    """
    found: list[Path] = []
    for path in paths:
        matches = [path]
        if not os.path.lexists(path) and glob.has_magic(str(path)):
            matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            if not matches:
                raise ResNetJaxError(f"no file fits {path}: give another pattern")
        for match in matches:
            if not os.path.isdir(match):
                found.append(match)
                continue
            inside = _walk(match)
            if inside.endings:
                log.warning("left out by ending: %s in %s", _counts(inside.endings), match)
            if not inside.images and match == path:
                raise ResNetJaxError(
                    f"folder {path} holds no image file{_others(inside.endings)}: expected names "
                    "that end in .png, .jpg or another image format's ending"
                )
            found += inside.images
    return list(dict.fromkeys(found))  # a pattern's folders and the files in them


@dataclasses.dataclass
class _Contents:
    images: list[Path]
    endings: Counter[str]  # of the other files
    runs: int


def _walk(folder: Path) -> _Contents:
    """Find the image files at any depth of a folder.

    A folder that cannot be listed is among them: whoever reads it is told why.
    """
    images: list[Path] = []
    endings: Counter[str] = Counter()
    runs = 0
    suffixes = image_suffixes()
    # A link to a folder above would make all classes one.
    seen = {_identity(place) for place in (folder.resolve(), *folder.resolve().parents)}
    walk = os.walk(
        folder, followlinks=True, onerror=lambda error: images.append(Path(error.filename))
    )
    for place, below, names in walk:
        entered = []
        for name in sorted(below):
            path = Path(place, name)
            if name.startswith("."):
                continue
            if _is_run(path):
                runs += 1
                continue
            try:
                identity = _identity(path)
            except OSError:
                images.append(path)
                continue
            if identity not in seen:
                seen.add(identity)
                entered.append(name)
        below[:] = entered
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending in suffixes:
                images.append(Path(place, name))
            else:
                endings[ending] += 1
    return _Contents(sorted(images), endings, runs)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _is_run(folder: Path) -> bool:
    """Whether a run was trained into a folder; its pictures are reports."""
    signs = ({"config.yaml", "checkpoints"}, {".lock", "run.log"})  # the latter from the start on
    return any(all(os.path.exists(folder / name) for name in names) for names in signs)


def _class_folders(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return split and folder of each class, sorted, and lines on what is in none of them."""
    inside = _subfolders(root)
    left_out = []
    train = next((path for path in inside if path.name.lower() in SPLITS["train"]), None)
    # A class may be called "train" as well; then there are images in it.
    if train is None or not _subfolders(train) or _loose_images(train):
        folders, places = [("", folder) for folder in inside], [root]
    else:
        split_of = {name: split for split, names in SPLITS.items() for name in names}
        if other := [path.name for path in inside if path.name.lower() not in split_of]:
            left_out.append(f"left out, neither train, val nor test: {', '.join(other)}")
        places = [path for path in inside if path.name.lower() in split_of]
        folders = [
            (split, folder)
            for split in SPLITS
            for place in places
            if split_of[place.name.lower()] == split
            for folder in _subfolders(place)
        ]
        places = [root, *places]
    if loose := Counter(path.suffix.lower() for place in places for path in _loose_images(place)):
        left_out.append(f"left out, in no class folder: {_counts(loose)}")
    return folders, left_out


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if os.path.isdir(path) and not _is_run(path)]


def _loose_images(folder: Path) -> list[Path]:
    suffixes = image_suffixes()
    return [p for p in _entries(folder) if p.suffix.lower() in suffixes and not os.path.isdir(p)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ResNetJaxError(f"folder {folder} cannot be read: {error.strerror}") from error


def image_suffixes() -> set[str]:
    """Return the endings of image files' names, in lower case and with their dot."""
    return {end for end, name in Image.registered_extensions().items() if name in FORMATS}


def _counts(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {ending or 'without'}" for ending, count in endings.most_common())


def _others(endings: Counter[str]) -> str:
    return f" but {_counts(endings)}" if endings else ""
