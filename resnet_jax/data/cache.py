"""Cache of decoded datasets and of facts about files.

All of it can be made again: what is damaged, stale or unreadable is a miss, never an error.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs

from resnet_jax.errors import ResNetJaxError

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> uint8[N, H, W, C], int32[N]

# Raise the number whenever a picture may be decoded to other pixels, or judged differently.
DECODING_VERSION = f"3, Pillow {PIL.__version__}"


def user_folder(
    variable: str, default: Callable[[], str], given: str | os.PathLike[str] | None = None
) -> Path:
    """Return the folder that is given, that an environment variable names, or the default one."""
    try:
        return Path(given or os.environ.get(variable) or default()).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry in the list of users
        raise ResNetJaxError(
            f"your home folder cannot be located: set {variable} to a folder"
        ) from error


def cache_root() -> Path:
    """Return the user's cache folder, or ``$RESNET_JAX_CACHE_DIR``."""
    return user_folder("RESNET_JAX_CACHE_DIR", lambda: platformdirs.user_cache_dir("resnet_jax"))


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
    entries = _load(path, key)
    if entries is None:
        arrays = read()
        _store(path, key, {f"{s} {i}": pair[i] for s, pair in arrays.items() for i in (0, 1)})
        return arrays
    splits = [entry[:-2] for entry in entries if entry.endswith(" 0")]
    return {split: (entries[f"{split} 0"], entries[f"{split} 1"]) for split in splits}


def cached_value(name: str, folder: Path, key: object, make: Callable[[], Any]) -> Any:
    """Return ``make()``, JSON values, or what it returned before for an equal key."""
    path = _cache_file(name, folder, "value")
    value = _load_json(path, key)
    if value is None:
        value = make()
        _store_json(path, key, value)
    return value


def cached_facts(
    name: str,
    folder: Path,
    paths: Sequence[Path],
    look: Callable[[Path], Any],
    *,
    workers: int | None = None,
    refresh: bool = False,
) -> list[Any]:
    """Return ``look(path)`` of each file, from before where file and decoders are unchanged.

    The files are in ``folder``, at any depth, and facts are JSON values. Where ``look`` raises
    OSError, the exception stands in the list and is not remembered. ``refresh`` looks at all again.
    """
    place = _cache_file(name, folder, "facts")
    stored = _load_json(place, "facts") or {}
    names = {path: str(path.relative_to(folder)) for path in paths}
    known: dict[Path, list[Any]] = {}  # of each file its stamp and fact; no stamp beside an error
    for path in [] if refresh else paths:
        with contextlib.suppress(OSError, KeyError):
            if stored[names[path]][0] == file_stamp(path):
                known[path] = stored[names[path]]

    def find(path: Path) -> list[Any]:
        try:  # The stamp is taken first: a change while the file is read is noticed the next time.
            return [file_stamp(path), look(path)]
        except OSError as error:
            return [None, error]

    new = [path for path in paths if path not in known]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        known.update(zip(new, pool.map(find, new), strict=True))
    found = {names[path]: known[path] for path in paths if known[path][0]}
    if found != stored:
        _store_json(place, "facts", found)
    return [known[path][1] for path in paths]


def _cache_file(name: str, folder: Path, suffix: str) -> Path:
    where = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache_root() / f"{name.replace('/', '-')}-{where}.{suffix}"


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps([DECODING_VERSION, key]).encode()).hexdigest()


def _load(path: Path, key: object) -> dict[str, np.ndarray] | None:
    # Each entry of the file has a checksum. Damage makes NumPy raise all kinds, even MemoryError.
    # And NumPy leaves a damaged file open, so it is opened here.
    with contextlib.suppress(Exception), path.open("rb") as opened, np.load(opened) as file:
        if str(file["key"]) == _digest(key):
            return dict(file)
    return None


def _store(path: Path, key: object, entries: dict[str, np.ndarray]) -> None:
    """Write a file in one step, if the folder can be written at all."""
    with contextlib.suppress(OSError):  # without a cache the data are only read again
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as work:
            temporary = Path(work, path.name)
            with temporary.open("wb") as file:
                np.savez(file, **entries, key=np.array(_digest(key)))  # type: ignore[arg-type]
            temporary.replace(path)


def _load_json(path: Path, key: object) -> Any:
    entries = _load(path, key)
    return entries and json.loads(entries["json"].tobytes())


def _store_json(path: Path, key: object, value: Any) -> None:
    _store(path, key, {"json": np.frombuffer(json.dumps(value).encode(), np.uint8)})
