"""Finding image files in folders, by the endings of their names."""

import glob
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from resnet_jax.data.image import FORMATS
from resnet_jax.errors import ResNetJaxError

log = logging.getLogger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the files among ``paths``, and the image files that training finds in folders.

    A path that is not there is a pattern where it has ``*``, ``?`` or ``[``: for shells that leave
    patterns alone, and for more files than a command line holds.
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
            inside = walk(match)
            if inside.endings:
                log.warning("left out by ending: %s in %s", by_ending(inside.endings), match)
            if not inside.images and match == path:
                raise ResNetJaxError(
                    f"folder {path} holds no image file{inside.others}: expected .png, .jpg, ..."
                )
            found += inside.images
    return list(dict.fromkeys(found))  # a pattern's folders and the files in them


class Contents(NamedTuple):
    """What is in a folder, at any depth."""

    images: list[Path]
    endings: Counter[str]  # of the other files
    runs: int  # folders that runs were trained into

    @property
    def others(self) -> str:
        return f" but {by_ending(self.endings)}" if self.endings else ""


def walk(folder: Path) -> Contents:
    """Find the image files at any depth of a folder; links are followed, hidden names are not.

    A folder that cannot be listed is among them: whoever reads it is told why.
    """
    images: list[Path] = []
    endings: Counter[str] = Counter()
    runs = 0
    # A link to a folder above would make all classes one.
    seen = {str(place) for place in (folder.resolve(), *folder.resolve().parents)}

    def note(error: OSError) -> None:
        images.append(Path(error.filename))

    for place, below, names in os.walk(folder, followlinks=True, onerror=note):
        visible = [Path(place, name) for name in sorted(below) if not name.startswith(".")]
        below.clear()
        for path in visible:
            if _is_run(path):
                runs += 1
            elif (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                below.append(path.name)
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if _is_image(path):
                images.append(path)
            else:
                endings[path.suffix.lower()] += 1
    return Contents(sorted(images), endings, runs)


def _is_run(folder: Path) -> bool:
    """Whether a run was trained into a folder; its pictures are reports."""
    signs = ({"config.yaml", "checkpoints"}, {".lock", "run.log"})  # the latter from the start on
    return any(all(os.path.exists(folder / name) for name in names) for names in signs)


def _is_image(path: Path) -> bool:
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def by_ending(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {ending or 'without'}" for ending, count in endings.most_common())


def find_classes(
    root: Path,
) -> tuple[list[tuple[Path, str, str]], tuple[str, ...], tuple[str, ...]]:
    """Return path, split and class of each image file, the classes, and lines on what is left out.

    The split is "" where the root holds the classes themselves.
    """
    folders, left_out = _class_folders(root)
    # One name may be spelled in two ways: "é" is one character, or two.
    spelling: dict[str, str] = {}
    rows: list[tuple[Path, str, str]] = []
    endings: Counter[str] = Counter()
    for split, folder in folders:
        found = walk(folder)
        if not found.images and found.runs:
            continue
        if any(unicodedata.category(character) == "Cs" for character in folder.name):
            raise ResNetJaxError(f"class folder {str(folder)!r} is not UTF-8: rename it")
        name = unicodedata.normalize("NFC", folder.name)
        if split in ("", "train"):
            spelling.setdefault(name, folder.name)
            if not found.images:
                raise ResNetJaxError(
                    f"class folder {folder} holds no image file{found.others}: add some (.png, "
                    ".jpg, ...) or remove it"
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
            "image files of a class, or folders train, val and test that hold them"
        )
    if endings:
        left_out.append(f"left out by ending: {by_ending(endings)}")
    return rows, class_names, tuple(left_out)


def _class_folders(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return split and folder of each class, sorted, and lines on what is in none of them."""
    inside, loose = _entries(root)
    left_out = []
    folders = [("", folder) for folder in inside]
    splits = [(s, p) for s, names in SPLITS.items() for p in inside if p.name.lower() in names]
    classes, images = _entries(splits[0][1]) if splits else ([], [])
    # A class may be called "train" as well; then there are images in it.
    if splits and splits[0][0] == "train" and classes and not images:
        if other := [path.name for path in inside if path not in {p for _, p in splits}]:
            left_out.append(f"left out, neither train, val nor test: {', '.join(other)}")
        folders = [(split, folder) for split, path in splits for folder in _entries(path)[0]]
        loose += [image for _, path in splits for image in _entries(path)[1]]
    if loose:
        endings = Counter(path.suffix.lower() for path in loose)
        left_out.append(f"left out, in no class folder: {by_ending(endings)}")
    return folders, left_out


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the image files that are directly in a folder, but for runs."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ResNetJaxError(f"folder {folder} cannot be read: {error.strerror}") from error
    folders = [path for path in entries if os.path.isdir(path)]
    images = [path for path in entries if _is_image(path) and not os.path.isdir(path)]
    return [path for path in folders if not _is_run(path)], images
