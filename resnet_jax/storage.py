"""Files that are written whole or not at all, and checksums that tell whether they still are."""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from resnet_jax.errors import ResNetJaxError

# The end of the name of a file on its way into its place.
UNFINISHED = ".unfinished"


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, text: str) -> None:
    """Replace a file in one step; a kill leaves the old content or the new one.

    Raises:
        ResNetJaxError: the file cannot be written.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of files in a folder."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all, in the place of a regular file or of none.

    Raises:
        ResNetJaxError: it cannot be written.
    """
    check_replaceable(path)
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)  # of a process that was killed
        try:
            with unfinished.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ResNetJaxError(
            f"{path} cannot be written ({error.strerror}): give another --output"
        ) from error


def check_replaceable(path: Path) -> None:
    """Refuse a place that holds anything but a regular file: a folder, link, FIFO or device."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing there, or `write_whole` says what is wrong
        return
    if not stat.S_ISREG(mode):
        raise ResNetJaxError(f"{path} is no regular file and stays as it is: give another --output")


def unwritable(path: Path, error: OSError) -> ResNetJaxError:
    """Return the error that names a file and what mends it."""
    return ResNetJaxError(
        f"{path} cannot be written ({error.strerror}): free space or permissions there, then run "
        f"the same command again"
    )


def file_sha256(path: Path, *, synced: bool = False) -> str:
    """Return the SHA-256 of a file's content, once it is on the disk if ``synced``."""
    with path.open("rb") as file:
        if synced:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def refuse_links(folder: Path) -> None:
    """Refuse a folder in which writing could change something outside it.

    Raises:
        ResNetJaxError: there is a link, a FIFO, a socket or a device in the folder, at any depth.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                kind = f"a link to {os.readlink(path)}" if path.is_symlink() else "no plain file"
                raise ResNetJaxError(
                    f"{path} is {kind}: nothing is written to a folder that holds one; remove it"
                )
