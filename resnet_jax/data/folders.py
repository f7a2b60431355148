"""A person's own images: one folder for each class, looked through before anything is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from resnet_jax.data.cache import remembered
from resnet_jax.data.files import image_suffixes, open_picture
from resnet_jax.data.report import VerifyReport
from resnet_jax.data.source import FileSource, ReadAs, default_workers
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
class Picture:
    """What is known of one image file.

    Attributes:
        path: the file.
        split: the split whose folder it is in; "" where the folder is not split.
        class_name: the class whose folder it is in.
        sha256: of its content.
        size: height and width in pixels, as it is to be seen.
        grey: whether it has no colour.
        problem: why it cannot be used; "" if it can.
    """

    path: Path
    split: str
    class_name: str
    sha256: str
    size: tuple[int, int]
    grey: bool
    problem: str


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder of images, looked through.

    Attributes:
        root: the folder.
        class_names: the names of the class folders, sorted.
        pictures: every image file, by split, class and path.
    """

    root: Path
    class_names: tuple[str, ...]
    pictures: tuple[Picture, ...]

    @property
    def is_split(self) -> bool:
        """Whether there are folders train, val and test, rather than the classes at once."""
        return any(picture.split for picture in self.pictures)

    def broken(self) -> dict[Path, str]:
        """The files that cannot be used, and why."""
        return {picture.path: picture.problem for picture in self.pictures if picture.problem}

    def duplicates(self) -> dict[Path, str]:
        """The files to leave out so that no picture is there twice, and why.

        Of equal files one stays: the test's rather than the validation's, and theirs rather than
        the training's, so that nothing tested was trained on; then the first by path. Of equal
        files of several classes none stays, since nothing says which class is right.
        """
        order = ["test", "validation", "train", ""]
        equal: dict[str, list[Picture]] = {}
        for picture in self.pictures:
            if not picture.problem:
                equal.setdefault(picture.sha256, []).append(picture)
        found = {}
        for group in equal.values():
            first, *others = sorted(group, key=lambda p: (order.index(p.split), str(p.path)))
            classes = sorted({picture.class_name for picture in group})
            if len(classes) > 1:
                for picture in group:
                    found[picture.path] = f"the same picture is in classes {', '.join(classes)}"
            else:
                for picture in others:
                    found[picture.path] = f"the same picture as {first.path}"
        return found

    def without(self, paths: Iterable[Path]) -> ImageFolder:
        """The folder as it would be without some of its files."""
        left_out = set(paths)
        kept = tuple(picture for picture in self.pictures if picture.path not in left_out)
        return dataclasses.replace(self, pictures=kept)

    def report(self) -> VerifyReport:
        """Files by class, and a line for each that is broken, empty, or there twice."""
        problems = self.broken() | self.duplicates()
        whole = self.without(problems)
        counts = Counter(str(Path(p.split, p.class_name)) for p in whole.pictures)
        good = tuple(f"{name} ({count} images)" for name, count in sorted(counts.items()))
        lines = tuple(f"{path}: {why}" for path, why in sorted(problems.items()))
        usable = "all of it" if not lines else f"{len(whole.pictures)} images"
        return VerifyReport(str(self.root), self.root, good, lines, usable, images=True)

    def sources(
        self, size: int | None, *, fit: str = "pad", background: int | None = None
    ) -> tuple[dict[str, FileSource], str]:
        """The splits, and a SHA-256 over what they hold.

        Each class is in the order of its files' SHA-256, and the classes are interleaved evenly,
        so that any end of a split has its share of each class. Of a folder that is not split the
        last tenth is the test. All this follows from the files' contents alone, not from names or
        a seed.

        Args:
            size: the side in pixels to which images are brought; None keeps them as they are.
            fit: see `read_image`.
            background: see `read_image`.

        Raises:
            ResNetJaxError: the images are of several sizes and ``size`` is None.
        """
        sizes = sorted({picture.size for picture in self.pictures})
        if size is None and len(sizes) > 1:
            (low, left), (high, right) = sizes[0], sizes[-1]
            raise ResNetJaxError(
                f"{self.root} holds images of {len(sizes)} sizes, from {left}x{low} to "
                f"{right}x{high} pixels: give the side to bring them to, --data.image-size 224 for "
                "photographs or less for drawings"
            )
        channels = 1 if all(picture.grey for picture in self.pictures) else 3
        shape = (size, size, channels) if size else (*sizes[0], channels)
        read_as = ReadAs(shape, "crop" if fit == "crop" else "pad", background)
        splits = {
            split: _interleaved([p for p in self.pictures if p.split == split])
            for split in ("", *SPLITS)
        }
        if not self.is_split:
            everything = splits[""]
            cut = len(everything) - round(TEST_SHARE * len(everything))
            splits |= {"train": everything[:cut], "test": everything[cut:]}
        label_of = {name: label for label, name in enumerate(self.class_names)}
        digest = hashlib.sha256(repr((self.class_names, read_as)).encode("utf-8"))
        sources = {}
        for split in SPLITS:
            if splits[split]:
                labels = [label_of[picture.class_name] for picture in splits[split]]
                sources[split] = FileSource([p.path for p in splits[split]], labels, read_as)
                content = [(p.sha256, k) for p, k in zip(splits[split], labels, strict=True)]
                digest.update(repr((split, content)).encode())
        return sources, digest.hexdigest()


def _interleaved(pictures: list[Picture]) -> list[Picture]:
    """Pictures in an order in which every stretch has the classes in their proportions."""
    by_class: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda p: (p.sha256, str(p.path))):
        by_class.setdefault(picture.class_name, []).append(picture)
    placed = [
        ((k + 0.5) / len(of_class), picture.sha256, name, k, picture)
        for name, of_class in by_class.items()
        for k, picture in enumerate(of_class)
    ]
    return [picture for *_, picture in sorted(placed, key=lambda place: place[:-1])]


def usable_folder(
    root: Path,
    *,
    skip_bad: bool = False,
    background: int | None = None,
    workers: int | None = None,
) -> ImageFolder:
    """The folder as training uses it; says first what is wrong with it.

    Raises:
        ResNetJaxError: a file is broken or empty and ``skip_bad`` does not leave it out; a class
            has no image left; or as `look_through`.
    """
    folder = look_through(root, background=background, workers=workers)
    broken, duplicates = folder.broken(), folder.duplicates()
    lines = [f"{path}: {why}" for path, why in sorted((broken | duplicates).items())]
    for line in lines[:SHOWN]:
        log.warning("%s%s", "left out: " if skip_bad else "", line)
    if len(lines) > SHOWN:
        log.warning("and %d more: `resnet-jax verify %s` lists all", len(lines) - SHOWN, root)
    if broken and not skip_bad:
        first = min(broken)
        raise ResNetJaxError(
            f"{len(broken)} of {len(folder.pictures)} image files in {root} cannot be used, first "
            f"{first}: mend or remove them, or leave them and duplicates out by --data.skip-bad"
        )
    if skip_bad:
        folder = folder.without([*broken, *duplicates])
    trained = {p.class_name for p in folder.pictures if p.split in ("", "train")}
    for name in folder.class_names:
        if name not in trained:
            raise ResNetJaxError(
                f"class {name!r} of {root} has no usable training image: add some or remove its "
                "folder"
            )
    return folder


def look_through(
    root: Path,
    *,
    background: int | None = None,
    workers: int | None = None,
    anew: bool = False,
) -> ImageFolder:
    """Finds the classes and decodes every file once; remembers what it found.

    ``root`` holds a folder for each class, or folders ``train``, ``val`` and ``test`` that do. The
    image files (by their names' endings) at any depth of a class's folder are its examples. Names
    that begin with a dot are passed over.

    Args:
        root: the folder.
        background: see `read_image`.
        workers: how many files are decoded in parallel. Default: the number of cores.
        anew: decode also the files that are known from before.

    Raises:
        ResNetJaxError: there is no such folder, or there are no classes in it.
    """
    if not root.is_dir():
        raise ResNetJaxError(f"{root} is no folder: expected one with a folder for each class")
    places = _class_folders(root)
    class_names = tuple(sorted({name for split, name, _ in places if split in ("", "train")}))
    for _, name, folder in places:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise ResNetJaxError(
                f"class folder {str(folder)!r} has a name that is not UTF-8: rename it"
            ) from None
        if name not in class_names:
            raise ResNetJaxError(
                f"{folder} is no class of the training images: expected one of "
                f"{', '.join(class_names)}"
            )
    if len(class_names) < 2:
        raise ResNetJaxError(
            f"{root} holds {len(class_names)} class folders: expected two or more, each with the "
            "image files of a class (or folders train, val and test of such)"
        )
    suffixes = image_suffixes()
    found = []
    for split, name, folder in places:
        files = _image_files(folder, suffixes)
        if not files and split in ("", "train"):
            raise ResNetJaxError(
                f"class folder {folder} holds no image file: add some (.png, .jpg, ...) or remove "
                "it"
            )
        found += [(file, split, name) for file in files]
    facts = remembered(
        f"folder{'' if background is None else background}",
        root,
        [file for file, *_ in found],
        partial(_look, background=background),
        workers=workers or default_workers(),
        anew=anew,
    )
    pictures = tuple(
        Picture(*place, sha256, (height, width), grey, problem)
        for place, (sha256, height, width, grey, problem) in zip(found, facts, strict=True)
    )
    return ImageFolder(root, class_names, pictures)


def _class_folders(root: Path) -> list[tuple[str, str, Path]]:
    """Split, class and folder of each class, sorted."""
    inside = _subfolders(root)
    train = _of_split(root, "train")
    suffixes = image_suffixes()
    # A class may be called "train" as well; then there are images in it.
    if not train.is_dir() or not _subfolders(train) or _image_files(train, suffixes, deep=False):
        return [("", folder.name, folder) for folder in inside]
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    if other := [folder.name for folder in inside if folder.name.lower() not in split_of]:
        log.warning("left out, neither train, val nor test: %s in %s", ", ".join(other), root)
    return [
        (split, folder.name, folder)
        for split in SPLITS
        for place in inside
        if split_of.get(place.name.lower()) == split
        for folder in _subfolders(place)
    ]


def _of_split(root: Path, split: str) -> Path:
    """The folder of a split, whatever it is called; it may not be there."""
    there = [path for path in _subfolders(root) if path.name.lower() in SPLITS[split]]
    return there[0] if there else root / split


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise ResNetJaxError(f"folder {folder} cannot be read: {error.strerror}") from error


def _image_files(folder: Path, suffixes: set[str], *, deep: bool = True) -> list[Path]:
    found = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if deep and not name.startswith(".")]
        found += [
            Path(place, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def _look(path: Path, background: int | None) -> Sequence[object]:
    """SHA-256, height, width, whether grey, and what is wrong."""
    sha256, problem, height, width, grey = "", "", 0, 0, True
    try:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if not content:
            return [sha256, 0, 0, True, "the file is empty"]
        picture = open_picture(content, background=background, name="it")
        (width, height), grey = picture.size, picture.mode == "L"
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
    except ResNetJaxError as error:
        problem = str(error)
    return [sha256, height, width, grey, problem]
