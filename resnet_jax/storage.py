"""Files that are written whole or not at all, and checksums that tell whether they are intact."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_jax.errors import ResNetJaxError

log = logging.getLogger(__name__)

# Part of the name of a file or folder that is not in its final place yet.
UNFINISHED = ".unfinished"

MAKE_ROOM = "free space or permissions there, then run the same command again"

# Errors of file systems without locks, as Lustre or NFS may be.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

# The parts of a run's folder; elsewhere in it, as in export/, anything may be written.
RUN_FILES = {"config.yaml", "metrics.jsonl", "checkpoints", "report", "tensorboard"}
RUN_FILES |= {".lock", "run.log"}

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class VerifyReport:
    """What is intact and what is damaged in a dataset, a run, or a folder of images.

    Attributes:
        folder: the folder of what was checked.
        good: files; for a folder of images, a line for each class.
        damaged: a line for each bad file: its name and what is wrong.
        usable: what can be done with it as it is.
        left_out: for a folder of images, a line for each reason to leave entries out.
    """

    folder: Path
    good: tuple[str, ...]
    damaged: tuple[str, ...]
    usable: str
    left_out: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path | str, remedy: str = MAKE_ROOM) -> Iterator[None]:
    """Turn a failure to write into the error that names the file and what mends it."""
    try:
        yield
    except OSError as error:
        raise ResNetJaxError(f"{path} cannot be written ({error.strerror}): {remedy}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a run's lock file, which names its holder; raise if another process has it.

    The kernel releases the lock when the process that holds it ends, in whatever way.
    """
    owner = os.getpid()
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ResNetJaxError(
                f"run folder {path.parent} is being written by process {lock.read(99).strip()}: "
                "wait for it or give another --run-dir"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s cannot be locked: let no other process write there", path.parent)
        lock.truncate(0)
        print(owner, "on", os.uname().nodename, file=lock, flush=True)
        try:
            yield
        finally:
            if os.getpid() == owner:  # a forked child shares the lock and may end earlier
                with suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_UN)


def atomic_write(path: Path, content: str | bytes, remedy: str = MAKE_ROOM) -> None:
    """Make a file's folder, then write it atomically: a kill leaves the old content or the new."""
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)  # left by a kill, or a link to elsewhere
        try:
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
            sync(unfinished)
            unfinished.replace(path)
            sync(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files and folders that killed processes have left in a folder."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)  # macOS may remove the `._` file beside it too
    for path in folder.glob(f"{UNFINISHED}-*"):
        shutil.rmtree(path, ignore_errors=True)


def temporary_folder(folder: Path, name: str) -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder in another; remove those of killed processes, unchanged for a day."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f".{name}-"
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):
            newest = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
            if time.time() - newest > 86_400:
                shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True)


def expanded(path: PathLike) -> Path:
    """Return a path with ``~`` or ``~user`` replaced by that user's home folder."""
    try:
        return Path(os.fsdecode(path)).expanduser()
    except RuntimeError as error:
        raise ResNetJaxError(f"{path} has no home folder: give the whole path") from error


def write_whole(path: PathLike, content: bytes) -> None:
    """Write the file of ``--output`` atomically; nothing but a regular file is replaced."""
    path = expanded(path)
    check_replaceable(path)
    atomic_write(path, content, "give another --output")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run, or one that has just begun."""
    signs = ({"config.yaml", "checkpoints"}, {".lock", "run.log"})
    return any(all(os.path.exists(folder / name) for name in names) for names in signs)


def refuse_part_of_run(path: Path, option: str) -> None:
    """Raise for a path, given by an option, of or below a file or folder that makes up a run."""
    place = Path(os.path.realpath(path.parent), path.name)
    for folder in place.parents:
        if place.relative_to(folder).parts[0].lower() in RUN_FILES and is_run(folder):
            raise ResNetJaxError(f"{path} is part of the run in {folder}: give another {option}")


def check_replaceable(path: Path) -> None:
    """Raise for a path with anything but a regular file, and for the files that make up a run."""
    refuse_part_of_run(path, "--output")
    # If the path cannot be examined, `atomic_write` says what is wrong.
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise ResNetJaxError(f"{path} is no regular file and stays as it is: give another --output")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def refuse_links(folder: Path) -> None:
    """Raise if a folder has a link, FIFO, socket or device: writing could change files outside."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            plain = path.is_file() or path.is_dir()
            if path.is_symlink() or (not plain and os.path.lexists(path)):  # otherwise it is gone
                kind = f"a link to {os.readlink(path)}" if path.is_symlink() else "no plain file"
                raise ResNetJaxError(
                    f"{path} is {kind}: nothing is written to a folder that holds one; remove it"
                )
