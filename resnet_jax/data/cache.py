"""What was read before: datasets as plain arrays, a tenth of the time to open, and facts of files.

All of it can be made again. So it is trusted only if it is whole, and any trouble with it means
reading the data themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs

from resnet_jax.data.prepared import Arrays, PreparedInfo, read_prepared


def cache_root() -> Path:
    """Returns the user's cache folder, or $RESNET_JAX_CACHE_DIR."""
    chosen = os.environ.get("RESNET_JAX_CACHE_DIR")
    return Path(chosen or platformdirs.user_cache_dir("resnet_jax")).expanduser()


def read_cached(info: PreparedInfo) -> Arrays:
    """Returns what ``read_prepared`` returns, from the cache if it can, and keeps it there.

    Raises:
        ResNetJaxError: as ``read_prepared``.
    """
    key = [
        [Path(file).name, *stamp] for file, stamp in sorted(_stamps(_prepared_files(info)).items())
    ]
    return cached(info.name, info.folder, key, lambda: read_prepared(info))


def cached(name: str, folder: Path, key: object, read: Callable[[], Arrays]) -> Arrays:
    """Returns what ``read`` returns, from the cache if it can, and keeps it there.

    The cache is one file for each folder of data, so that it is replaced in one step and two
    processes may do so at once. Its first line is JSON: the key, the splits, and the SHA-256 of
    those and the arrays. The arrays follow, each as ``numpy.save`` writes it.

    Args:
        name: what the file is called after.
        folder: where the data are.
        key: what must be equal for the cached arrays to be those of the data; plain values.
        read: reads the data.
    """
    path = _cache_file(name, folder, "arrays")
    arrays = _read(path, key)
    if arrays is None:
        arrays = read()
        with contextlib.suppress(OSError):  # an unwritable cache is only a missed speed-up
            _write(path, key, arrays)
    return arrays


def remembered(
    name: str,
    folder: Path,
    paths: Sequence[Path],
    look: Callable[[Path], Any],
    *,
    workers: int,
    anew: bool = False,
) -> list[Any]:
    """Returns ``look(path)`` for each file, from the cache where size and time are as they were.

    Args:
        name: what the cache's file is called after.
        folder: the folder that the files are in, at any depth.
        paths: the files.
        look: finds plain values, lists at most; must not fail.
        workers: how many files to look at in parallel.
        anew: look at every file.
    """
    path = _cache_file(name, folder, "facts")
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads(path.read_text())
        if _sha256(document["files"]) == document["sha256"]:
            known = document["files"]
    stamps = _stamps(paths)
    found: dict[str, Any] = {
        file: known[file][2]
        for file, stamp in stamps.items()
        if not anew and known.get(file, ())[:2] == stamp
    }
    new = [file for file in paths if str(file) not in found]
    with ThreadPoolExecutor(workers) as pool:
        found |= zip(map(str, new), pool.map(look, new), strict=True)
    if new or len(found) < len(known):
        files = {file: [*stamp, found[file]] for file, stamp in stamps.items()}
        text = json.dumps({"sha256": _sha256(files), "files": files})
        with contextlib.suppress(OSError):
            _replace(path, lambda file: file.write(text.encode()))
    return [found[str(file)] for file in paths]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_file(name: str, folder: Path, suffix: str) -> Path:
    where = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache_root() / f"{name}-{where}.{suffix}"


def _prepared_files(info: PreparedInfo) -> list[Path]:
    # A missing shard is absent here: the key differs, and reading the prepared files names it.
    return [file for file in info.folder.iterdir() if file.is_file()]


def _stamps(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change of each file; a link that leads nowhere has none."""
    stamps = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found = path.stat()
            stamps[str(path)] = [found.st_size, found.st_mtime_ns]
    return stamps


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _digest(key: object, arrays: Arrays) -> str:
    digest = hashlib.sha256(json.dumps([key, list(arrays)]).encode())
    for pair in arrays.values():
        for array in pair:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(path: Path, key: object) -> Arrays | None:
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
            if header["key"] != key:
                return None
            arrays = {
                split: (np.load(file, allow_pickle=False), np.load(file, allow_pickle=False))
                for split in header["splits"]
            }
            return arrays if _digest(key, arrays) == header["sha256"] else None
    except Exception:  # whatever damage makes NumPy raise, from EOFError to MemoryError
        return None


def _write(path: Path, key: object, arrays: Arrays) -> None:
    def write(file: BinaryIO) -> None:
        header = {"key": key, "splits": list(arrays), "sha256": _digest(key, arrays)}
        file.write(json.dumps(header).encode() + b"\n")
        for pair in arrays.values():
            for array in pair:
                np.save(file, array, allow_pickle=False)

    _replace(path, write)


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
