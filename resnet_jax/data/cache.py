"""Cache of decoded datasets and of facts about files.

All of it can be made again: what is damaged, stale or unreadable is a miss, never an error.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import platformdirs

from resnet_jax.errors import ResNetJaxError

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> uint8[N, H, W, C], int32[N]

# Raise the number whenever a picture may be decoded to other pixels, or judged differently.
DECODING_VERSION = f"2, Pillow {PIL.__version__}"


def cache_root() -> Path:
    """Return the user's cache folder, or ``$RESNET_JAX_CACHE_DIR``."""
    chosen = os.environ.get("RESNET_JAX_CACHE_DIR") or platformdirs.user_cache_dir("resnet_jax")
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry in the list of users
        raise ResNetJaxError(
            f"the cache folder {chosen} cannot be located: set RESNET_JAX_CACHE_DIR to a folder"
        ) from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content; anything but a file raises OSError."""
    if not path.is_file():  # to read a pipe or a device may never end
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path) -> list[int]:
    """Return what changes whenever a file's content may have: size, times and inode.

    The modification time can be set by any program. The time of change cannot, and a file that
    was moved in the place of another brings its own inode.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def cached_arrays(name: str, folder: Path, key: object, read: Callable[[], Arrays]) -> Arrays:
    """Return ``read()`` for the data in ``folder``, or what it returned before for an equal key.

    The key is JSON values that differ whenever the data do.
    """
    path = _cache_file(name, folder, "arrays")
    digest = _sha256([DECODING_VERSION, key])
    # Each entry of the file has a checksum. Damage makes NumPy raise all kinds, even MemoryError.
    # And NumPy leaves a damaged file open, so it is opened here.
    with contextlib.suppress(Exception), path.open("rb") as opened, np.load(opened) as file:
        header = json.loads(str(file["header"]))
        if header["key"] == digest:
            return {
                split: (file[f"{i} images"], file[f"{i} labels"])
                for i, split in enumerate(header["splits"])
            }
    arrays = read()
    header = json.dumps({"key": digest, "splits": list(arrays)})
    entries: dict[str, Any] = {"header": np.array(header)}
    for i, (images, labels) in enumerate(arrays.values()):
        entries |= {f"{i} images": images, f"{i} labels": labels}
    _replace(path, lambda file: np.savez(file, **entries))
    return arrays


def cached_facts(
    name: str,
    folder: Path,
    paths: Sequence[Path],
    look: Callable[[Path], Any],
    *,
    workers: int,
    refresh: bool = False,
) -> list[Any]:
    """Return ``look(path)`` of each file, from before where file and decoders are unchanged.

    The files are in ``folder``, at any depth, and facts are JSON values. Where ``look`` raises
    OSError, the exception stands in the list and is not remembered. ``refresh`` looks at all again.
    """
    path = _cache_file(name, folder, "facts")
    known = _load(path) or {}
    names = [os.fsdecode(file.relative_to(folder)) for file in paths]
    stamps: list[list[int] | None] = []
    for file in paths:  # before it is read: a change in between is noticed the next time
        try:
            stamps.append(file_stamp(file))
        except OSError:
            stamps.append(None)
    facts = [
        known[key][1] if stamp and not refresh and known.get(key, [None])[0] == stamp else None
        for key, stamp in zip(names, stamps, strict=True)
    ]
    new = [i for i, fact in enumerate(facts) if fact is None]

    def find(i: int) -> Any:
        try:
            return look(paths[i])
        except OSError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        for i, fact in zip(new, pool.map(find, new), strict=True):
            facts[i] = fact
    files = {
        key: [stamp, fact]
        for key, stamp, fact in zip(names, stamps, facts, strict=True)
        if stamp and not isinstance(fact, OSError)
    }
    if files != known:
        _store(path, files)
    return facts


def cached_value(name: str, folder: Path, key: object, make: Callable[[], Any]) -> Any:
    """Return ``make()``, JSON values, or what it returned before for an equal key."""
    path = _cache_file(name, folder, "value")
    known = _load(path)
    if known is None or known[0] != key:
        known = [key, make()]
        _store(path, known)
    return known[1]


def _cache_file(name: str, folder: Path, suffix: str) -> Path:
    where = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache_root() / f"{name.replace('/', '-')}-{where}.{suffix}"


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _load(path: Path) -> Any:
    with contextlib.suppress(Exception):  # whatever is wrong with it
        document = json.loads(path.read_bytes())
        if document["sha256"] == _sha256([DECODING_VERSION, document["value"]]):
            return document["value"]
    return None


def _store(path: Path, value: Any) -> None:
    document = {"sha256": _sha256([DECODING_VERSION, value]), "value": value}
    _replace(path, lambda file: file.write(json.dumps(document).encode()))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file in one step, if the folder can be written at all."""
    with contextlib.suppress(OSError):  # without a cache the data are only read again
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
