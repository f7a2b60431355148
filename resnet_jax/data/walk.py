"""Finding image files in folders, by the endings of their names."""

import contextlib
import glob
import logging
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

from PIL import Image

from resnet_jax.data.image import FORMATS
from resnet_jax.errors import ResNetJaxError
from resnet_jax.storage import expanded, is_run

log = logging.getLogger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

# Folders in which network drives, archives and file systems keep their own data (thumbnails).
SYSTEM = {"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}

FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,4}")


def find_images(path: Path) -> list[Path]:
    """Return the file itself, the image files that training finds in a folder, or a glob's matches.

    A path that does not exist is a pattern if it has ``*``, ``?`` or ``[``, because a shell may
    leave patterns alone, or find more files than a command line holds.
    """
    if not os.path.lexists(path):
        with contextlib.suppress(ResNetJaxError):  # no such user: a file's name may begin with ~
            path = expanded(path)
    matches = [path]
    if not os.path.lexists(path) and glob.has_magic(str(path)):
        matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise ResNetJaxError(f"no file fits {path}: give another pattern")
    found: list[Path] = []
    endings: Counter[str] = Counter()
    for match in matches:
        if not os.path.isdir(match):
            found.append(match)
            continue
        images, others, _ = walk(match)
        if others:
            log.warning("left out by ending: %s in %s", by_ending(others), match)
        endings += others
        found += map(Path, images)
    if not found:
        raise no_images(f"folder {path}", endings)
    return list(dict.fromkeys(found))  # a pattern may match a folder and files in it


def no_images(folder: str, others: Counter[str]) -> ResNetJaxError:
    but = f" but {by_ending(others)}" if others else ""
    return ResNetJaxError(f"{folder} holds no image file{but}: expected .png, .jpg, ...")


def by_ending(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {ending or 'without'}" for ending, count in endings.most_common())


def walk(folder: Path) -> tuple[list[str], Counter[str], bool]:
    """Return the image files at any depth, the endings of other files, and whether a run is inside.

    Links are followed; hidden names are skipped. A folder that cannot be listed is returned among
    the images, so that reading it raises the reason.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    has_run = False
    # Following a link to a folder above would put all classes into one.
    root = Path(os.path.realpath(folder))
    seen = {str(place) for place in (root, *root.parents)}
    walked = os.walk(folder, followlinks=True, onerror=lambda error: images.append(error.filename))
    for place, below, names in walked:
        visible = [Path(place, name) for name in sorted(below) if _is_visible(name)]
        below.clear()
        for path in visible:
            if is_run(path):
                has_run = True
            elif (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                below.append(path.name)
        prefix = os.path.join(place, "")
        for name in names:
            if _is_image(name):
                images.append(prefix + name)
            elif _is_visible(name):
                others[Path(name).suffix.lower()] += 1
    # Sorted as `Path` sorts, "cat/1.png" before "cat-2/0.png".
    return sorted(images, key=lambda path: path.replace(os.sep, "\0")), others, has_run


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in SYSTEM


def _is_image(name: str) -> bool:
    ending = name[name.rfind(".") :].lower()
    return _is_visible(name) and Image.registered_extensions().get(ending) in FORMATS


def find_classes(root: Path) -> tuple[list[tuple[str, str, str]], tuple[str, ...], tuple[str, ...]]:
    """Return path, split and class of each image file, the classes, and lines on what is left out.

    The split is "" if the root holds the classes themselves.
    """
    folders, left_out = _class_folders(root)
    # One name may be spelled in two ways: "é" is one character, or two.
    spelling: dict[str, str] = {}
    rows: list[tuple[str, str, str]] = []
    endings: Counter[str] = Counter()
    for split, folder in folders:
        images, others, has_run = walk(folder)
        if not images and has_run:
            continue
        if any(unicodedata.category(character) == "Cs" for character in folder.name):
            raise ResNetJaxError(f"class folder {str(folder)!r} is not UTF-8: rename it")
        name = unicodedata.normalize("NFC", folder.name)
        if split in ("", "train"):
            spelling.setdefault(name, folder.name)
            if not images:
                raise no_images(f"class folder {folder}", others)
        if name not in spelling:
            raise ResNetJaxError(
                f"{folder} is no class of the training images: expected one of "
                f"{', '.join(sorted(spelling.values())[:20])}{', ...' * (len(spelling) > 20)}"
            )
        rows += [(path, split, spelling[name]) for path in images]
        endings += others
    class_names = tuple(sorted(spelling.values()))
    if len(class_names) < 2:
        raise ResNetJaxError(
            f"{root} holds {len(class_names)} class folders: expected two or more, each with image "
            "files, or folders train, val and test that hold them"
        )
    if endings:
        left_out.append(f"left out by ending: {by_ending(endings)}")
    return rows, class_names, tuple(left_out)


def _class_folders(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return split and folder of each class, sorted, and lines on what lies outside them."""
    inside, loose = _entries(root)
    left_out = []
    folders = [("", folder) for folder in inside]
    names = {path: path.name.lower().removesuffix("_set") for path in inside}
    splits = {path: split for split in SPLITS for path in inside if names[path] in SPLITS[split]}
    held = {path: _entries(path) for path in splits} if "train" in splits.values() else {}
    classes, images = next((held[path] for path in splits if splits[path] == "train"), ([], []))
    # A class may be called "train" too; then images lie in it, and other classes beside it.
    if classes and (not images or len(splits) > 1 or len(inside) == 1):
        if other := [path.name for path in inside if path not in splits]:
            left_out.append(f"left out, neither train, val nor test: {', '.join(other)}")
        folders = [(splits[path], folder) for path in splits for folder in held[path][0]]
        loose += [image for _, images in held.values() for image in images]
    elif len(splits) == len(inside):  # or a network would learn to tell splits apart
        folders = []
    if loose:
        endings = Counter(path.suffix.lower() for path in loose)
        left_out.append(f"left out, in no class folder: {by_ending(endings)}")
    return folders, left_out


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders, other than runs, and the image files that are directly in a folder."""
    try:
        entries = sorted(path for path in folder.iterdir() if _is_visible(path.name))
    except OSError as error:
        raise ResNetJaxError(f"folder {folder} cannot be read: {error.strerror}") from error
    images = [path for path in entries if _is_image(path.name) and not os.path.isdir(path)]
    # A dangling link may have led to a class: "001.Black_footed_Albatross", but not "cat.jpeg".
    gone = {p for p in entries if not (os.path.exists(p) or FILE_SUFFIX.fullmatch(p.suffix))}
    folders = [path for path in entries if os.path.isdir(path) or path in gone]
    return [path for path in folders if not is_run(path)], images
