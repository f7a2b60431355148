"""Cache of decoded datasets and of facts about files.

All of it can be made again: what is damaged, stale or unreadable is a miss, never an error.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import platformdirs

from resnet_jax.errors import ResNetJaxError
from resnet_jax.memory import cores
from resnet_jax.storage import temporary_folder

PathT = TypeVar("PathT", str, Path)

# Raise the number whenever a picture may be decoded to other pixels, or judged differently.
DECODING_VERSION = f"4, Pillow {PIL.__version__}"
ROUND = 20_000  # files, after which what is known of them is kept


def user_folder(variable: str, default: Callable[[], str]) -> Path:
    """Return the folder that an environment variable names, or the default one."""
    try:
        return Path(os.environ.get(variable) or default()).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry in the list of users
        raise ResNetJaxError(f"your home cannot be located: set {variable} to a folder") from error


def cache_root() -> Path:
    """Return the user's cache folder, or ``$RESNET_JAX_CACHE_DIR``."""
    return user_folder("RESNET_JAX_CACHE_DIR", lambda: platformdirs.user_cache_dir("resnet_jax"))


def cached_arrays(
    name: str, folder: Path, key: str, read: Callable[[], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """Return ``read()`` for the data in ``folder``, or what it returned before for an equal key."""
    path, key = _cache_file(name, folder, "arrays"), f"{DECODING_VERSION}, {key}"
    arrays = _load(path, key)
    if arrays is None:
        arrays = read()
        _store(path, key, arrays)
    return arrays


def cached_facts(
    name: str,
    folder: Path,
    paths: Sequence[PathT],
    look: Callable[[PathT], Any],
    *,
    workers: int | None = None,
    refresh: bool = False,
) -> list[Any]:
    """Return ``look(path)`` of each path, from before where files and decoders are unchanged.

    The paths are of files in ``folder``, at any depth, or of folders of files; facts are JSON
    values. Where ``look`` raises OSError, the exception stands in the list and is not remembered.
    ``refresh`` looks at all again.
    """
    place, key = _cache_file(name, folder, "facts"), f"{DECODING_VERSION}, stamps and facts"
    loaded = _load(place, key)
    known: dict[str, list[Any]] = json.loads(loaded[0].tobytes()) if loaded else {}
    prefix = os.path.join(folder, "")
    names = [os.fspath(path).removeprefix(prefix) for path in paths]
    # Before any file is read: a change while it is read is noticed the next time.
    stamps = [_stamp(path) for path in paths]
    before = [None if refresh else known.get(name, [None])[0] for name in names]
    new = [i for i, stamp in enumerate(stamps) if not stamp or stamp != before[i]]
    errors: dict[str, OSError] = {}

    def find(i: int) -> None:
        try:
            known[names[i]] = [stamps[i], look(paths[i])]
        except OSError as error:
            errors[names[i]] = error

    workers = min(workers or cores(), len(new))
    for start in range(0, max(1, len(new)), ROUND):  # what ends in between loses one round
        batch = new[start : start + ROUND]
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(find, batch))
        else:  # here, where a signal is heard: to read a large dataset takes minutes
            list(map(find, batch))
        if any(names[i] in known for i in batch) or len(known) > len(names):
            known = {name: known[name] for name in names if name in known}
            content = json.dumps(known).encode()
            _store(place, key, (np.frombuffer(content, np.uint8),))
    return [errors[name] if name in errors else known[name][1] for name in names]


def _stamp(path: str | Path) -> str:
    """Return what changes whenever content may have: size, times and inode, or those of its files.

    The modification time can be set by any program. The time of change cannot, and a file that
    was moved in the place of another brings its own inode.
    """
    try:
        found = os.stat(path)
    except OSError:  # whoever reads the file is told why
        return ""
    if stat.S_ISDIR(found.st_mode):
        return str([(file.name, _stamp(file)) for file in sorted(Path(path).glob("*"))])
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _cache_file(name: str, folder: Path, suffix: str) -> Path:
    where = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache_root() / f"{name.replace('/', '-')}-{where}.{suffix}"


def _load(path: Path, key: str) -> tuple[np.ndarray, ...] | None:
    # Each entry of the file has a checksum. Damage makes NumPy raise all kinds, even MemoryError.
    # And NumPy leaves a damaged file open, so it is opened here.
    with contextlib.suppress(Exception), path.open("rb") as opened, np.load(opened) as file:
        *names, last = found = file.files
        whole = found == [f"arr_{i}" for i in range(len(found))]  # none is hidden, or another's
        if whole and str(file[last]) == key:
            return tuple(file[name] for name in names)
    return None


def _store(path: Path, key: str, arrays: Sequence[np.ndarray]) -> None:
    """Write a file in one step, if the folder can be written at all."""
    # Without a cache the data are only read again.
    with contextlib.suppress(OSError), temporary_folder(path.parent, path.name) as work:
        temporary = Path(work, path.name)
        with temporary.open("wb") as file:
            np.savez(file, *arrays, np.array(key))
        temporary.replace(path)
