"""Cache of decoded datasets and of facts about files.

All of it can be made again, so a damaged, stale or unreadable entry is a miss, never an error.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs
from PIL import ImageFile

from resnet_jax.errors import ResNetJaxError
from resnet_jax.memory import cores
from resnet_jax.storage import PathLike, temporary_folder

# Raise the number whenever a change may alter a picture's pixels or the verdict on its file.
DECODING_VERSION = f"5, Pillow {PIL.__version__}"
ROUND = 20_000  # files between two writes of their facts to the cache


def user_folder(variable: str, default: Callable[[], str]) -> Path:
    """Return the folder that an environment variable names, or the default one."""
    try:
        return Path(os.environ.get(variable) or default()).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry in the user database
        raise ResNetJaxError(f"your home cannot be located: set {variable} to a folder") from error


def cache_root() -> Path:
    """Return the user's cache folder, or ``$RESNET_JAX_CACHE_DIR``."""
    return user_folder("RESNET_JAX_CACHE_DIR", lambda: platformdirs.user_cache_dir("resnet_jax"))


def cached_arrays(
    name: str, folder: Path, key: str, read: Callable[[], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """Return the arrays that ``read()`` makes of ``folder``, from the cache if ``key`` is equal."""
    path, key = _cache_file(name, folder, "arrays"), f"{DECODING_VERSION}, {key}"
    arrays = _load(path, key)
    if arrays is None:
        arrays = read()
        _store(path, key, arrays)
    return arrays


def cached_facts(
    name: str,
    folder: Path,
    paths: Sequence[PathLike],
    look: Callable[[Any], Any],
    *,
    workers: int | None = None,
    refresh: bool = False,
) -> list[Any]:
    """Return ``look(path)`` for each path, from the cache if files and decoders are unchanged.

    The paths name files in ``folder``, at any depth, or folders of files; facts are JSON values.
    Where ``look`` raises OSError, the list holds the exception, which is not cached. ``refresh``
    calls ``look`` for every path.
    """
    place, key = _cache_file(name, folder, "facts"), f"{DECODING_VERSION}, stamps and facts"
    loaded = _load(place, key)
    known: dict[str, list[Any]] = json.loads(loaded[0].tobytes()) if loaded else {}
    prefix = os.path.join(folder, "")
    names = [os.fspath(path).removeprefix(prefix) for path in paths]
    # Taken before any file is read, so that the next call notices a change during the reading.
    stamps = [_stamp(path) for path in paths]
    entries = [known.get(name, ["", None]) for name in names]
    new = [i for i, stamp in enumerate(stamps) if refresh or not stamp or stamp != entries[i][0]]

    def find(i: int) -> None:
        try:
            entries[i] = [stamps[i], look(paths[i])]
        except OSError as error:
            entries[i] = ["", error]

    workers = min(workers or cores(), len(new))
    for start in range(0, max(1, len(new)), ROUND):  # an interruption loses one round
        batch = new[start : start + ROUND]
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(find, batch))
        else:  # in this thread, which a signal interrupts: a large dataset takes minutes
            list(map(find, batch))
        if any(entries[i][0] for i in batch) or len(known) > len(names):
            known = {name: entry for name, entry in zip(names, entries, strict=True) if entry[0]}
            content = json.dumps(known).encode()
            _store(place, key, (np.frombuffer(content, np.uint8),))
    return [fact for _, fact in entries]


def _stamp(path: PathLike) -> str:
    """Return text that changes if content may have: size, times, inode; of a folder's files too.

    Any program can set the modification time. No program can set the time of change (ctime), and a
    file that is moved into the place of another brings its own inode.
    """
    try:
        found = os.stat(path)
    except OSError:  # reading the file will raise the reason
        return ""
    if stat.S_ISDIR(found.st_mode):
        files = [file for file in sorted(Path(path).glob("*")) if not os.path.isdir(file)]
        return str([(file.name, _stamp(file)) for file in files])
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _cache_file(name: str, folder: Path, suffix: str) -> Path:
    where = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    # Notebooks have Pillow read truncated files, for their process; other verdicts, another file.
    suffix = f"lenient.{suffix}" if ImageFile.LOAD_TRUNCATED_IMAGES else suffix
    return cache_root() / f"{name.replace('/', '-')}-{where}.{suffix}"


def _load(path: Path, key: str) -> tuple[np.ndarray, ...] | None:
    # Each entry of the file has a checksum. Damage makes NumPy raise exceptions of all
    # kinds, even MemoryError, and leave the file open, so the file is opened here.
    with contextlib.suppress(Exception), path.open("rb") as opened, np.load(opened) as file:
        *names, last = found = file.files
        whole = found == [f"arr_{i}" for i in range(len(found))]  # no entry hidden or foreign
        if whole and str(file[last]) == key:
            return tuple(file[name] for name in names)
    return None


def _store(path: Path, key: str, arrays: Sequence[np.ndarray]) -> None:
    """Write a cache file in one step, or do nothing if its folder cannot be written."""
    # Without a cache file the data are merely read again.
    with contextlib.suppress(OSError), temporary_folder(path.parent, path.name) as work:
        temporary = Path(work, path.name)
        with temporary.open("wb") as file:
            np.savez(file, *arrays, np.array(key))
        temporary.replace(path)
