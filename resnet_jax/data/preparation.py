"""Where prepared datasets live, and making them: `resnet-jax data prepare`.

The folder is ``data_dir`` if given, else ``$TFDS_DATA_DIR``, else TFDS's ``~/tensorflow_datasets``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from resnet_jax.data import catalogue, idx
from resnet_jax.data.cache import cache_root
from resnet_jax.data.prepared import DamagedFileError, check_shard, find_prepared, read_info
from resnet_jax.data.report import VerifyReport
from resnet_jax.errors import ResNetJaxError

PROBE_SECONDS = 4.0


def tfds_root(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of TFDS's datasets: the argument, $TFDS_DATA_DIR, or TFDS's default."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def locate(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    from_idx: str | os.PathLike[str] | None = None,
) -> Path:
    """Returns the folder of the prepared dataset, and prepares it where that may be done unasked.

    Unasked are: ``mnist_5k``, whose images are installed (into the user's cache if the TFDS folder
    cannot be written); IDX files that were named; and a download of MNIST or Fashion-MNIST into
    the default folder. A ``data_dir`` that was named but lacks a dataset to be downloaded is an
    error; so is any other dataset of TFDS that is not prepared.

    Raises:
        ResNetJaxError: if the dataset is unknown, not there, or could not be prepared.
    """
    root = tfds_root(data_dir)
    if data_dir is not None and not root.is_dir():
        raise ResNetJaxError(
            f"{root} is no folder: expected one with prepared datasets (--data.dir)"
        )
    info = catalogue.DATASETS.get(name)
    if info is None:
        if from_idx is not None:
            raise ResNetJaxError(f"`{name}` does not come as IDX files: leave --data.from-idx out")
        found = find_prepared(name, root)
        if found is None:
            raise _not_prepared(name, root)
        return found
    if from_idx is None:
        found = find_prepared(name, root)
        if found is None and not info.needs_download:
            found = find_prepared(name, _private_root())
        if found is not None:
            return found
        if data_dir is not None and info.needs_download:
            raise ResNetJaxError(
                f"{root} holds no prepared `{name}`: give another folder (--data.dir), local IDX "
                f"files (--data.from-idx DIR), or run `resnet-jax data prepare {name}`"
            )
    return prepare(name, data_dir, from_idx)


def _not_prepared(name: str, root: Path) -> ResNetJaxError:
    """The error for a dataset that is not in the table and not prepared."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        return catalogue.unknown(name, known)
    where = "" if root == tfds_root() else f" --dir {root}"
    return ResNetJaxError(
        f"{root} holds no prepared `{name}`: give another folder (--data.dir), or run "
        f"`resnet-jax data prepare {name}{where}`"
    )


def _private_root() -> Path:
    return cache_root() / "tfds"


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    from_idx: str | os.PathLike[str] | None = None,
) -> Path:
    """Makes a dataset ready for reading; returns its folder.

    What is there already is read through and kept if it is whole, and replaced if not. The
    dataset appears in its place complete, in one step; two processes may prepare at once.

    Args:
        name: a name in ``DATASETS``, or of any dataset of TFDS that has images and class labels,
            such as ``cifar10`` or ``emnist/letters``; those need TensorFlow here.
        data_dir: the folder of TFDS's datasets; made if it does not exist.
        from_idx: a folder with the four IDX files as published, packed or not; no network is
            used then.

    Raises:
        ResNetJaxError: if the dataset is unknown, the folder cannot be written, TensorFlow is
            needed and not installed, there is no network, a download has another checksum than
            TFDS registered, or an IDX file is missing or faulty.
    """
    info = catalogue.DATASETS.get(name)
    root = tfds_root(data_dir)
    if from_idx is not None:
        if info is None or not info.idx_sha256:
            raise ResNetJaxError(f"`{name}` does not come as IDX files: leave --data.from-idx out")
        # Now, so that the files asked for are never silently passed over.
        idx.read_idx_folder(Path(from_idx).expanduser(), info)

    found = find_prepared(name, root)
    if found is not None and _is_whole(found):
        return found
    if info is None:
        _check_known(name)
    if not _writable(root):
        if info is None or info.needs_download:
            raise ResNetJaxError(
                f"{root} cannot be written, so `{name}` cannot be prepared there: give another "
                "folder (--data.dir or TFDS_DATA_DIR)"
            )
        root = _private_root()
        found = find_prepared(name, root)
        if found is not None and _is_whole(found):
            return found
    if info is not None and info.needs_download and from_idx is None:
        _check_reachable(info)
    try:
        return _build(name, root, replaces=found, from_idx=from_idx)
    except ResNetJaxError:
        raise
    except Exception as error:  # TFDS, its downloader and the file system have many
        lines = str(error).strip().splitlines() or [""]
        remedy = " or local IDX files (--data.from-idx DIR)" if info is not None else ""
        raise ResNetJaxError(
            f"`{name}` could not be prepared in {root} ({type(error).__name__}: {lines[0][:200]}):"
            f" mend that, or give another folder (--data.dir){remedy}"
        ) from error


def _check_known(name: str) -> None:
    """Refuses a name that TFDS does not know, and one that it cannot prepare here."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        raise catalogue.unknown(name, known)
    if importlib.util.find_spec("tensorflow") is None:
        raise ResNetJaxError(
            f"`{name}` needs TensorFlow to be prepared, though not to be read: run `pip install "
            "'resnet_jax[prepare]'`, or give a folder where it is prepared as array_record "
            "(--data.dir)"
        )


def _is_whole(folder: Path) -> bool:
    # Any other error passes: a dataset of another kind or format is not ours to replace.
    try:
        info = read_info(folder)
        for split, shards in info.splits.items():
            for number in range(len(shards)):
                check_shard(info, split, number)
    except DamagedFileError:
        return False
    return True


def _writable(root: Path) -> bool:
    """Returns whether ``root``, or the nearest folder above that exists, may be written."""
    while not root.exists() and root != root.parent:
        root = root.parent
    # The mode bits count for the super-user too: a folder marked read-only is meant to be.
    return (
        root.is_dir() and bool(root.stat().st_mode & 0o222) and os.access(root, os.W_OK | os.X_OK)
    )


def _build(
    name: str,
    root: Path,
    *,
    replaces: Path | None,
    from_idx: str | os.PathLike[str] | None,
) -> Path:
    from resnet_jax.data import builders

    root.mkdir(parents=True, exist_ok=True)
    prefix = f".{name.replace('/', '-')}-"
    for abandoned in root.glob(f"{prefix}*"):  # by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - abandoned.stat().st_mtime > 86_400:
                shutil.rmtree(abandoned, ignore_errors=True)
    # Everything TFDS leaves, finished or not, is in this folder and goes with it.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root, ignore_cleanup_errors=True) as work:
        folder = Path(from_idx).expanduser() if from_idx is not None else None
        built = builders.build(name, Path(work), folder, root / "downloads" / "manual")
        target = root / built.relative_to(work)
        if replaces is None and target.exists() and find_prepared(name, root) is None:
            replaces = target  # what is left of a dataset whose description is gone
        if replaces is not None and replaces.exists():
            replaces.rename(Path(work, "replaced"))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            built.rename(target)
        except OSError:
            if find_prepared(name, root) is None:
                raise
            # Another process was faster.
    return target


def _check_reachable(info: catalogue.DatasetInfo) -> None:
    """Asks the host for one small file's header: TFDS would try for 200 s without a network."""
    import urllib.error  # here: slow to import and seldom needed
    import urllib.request

    name = idx.FILES["test"][1]
    request = urllib.request.Request(f"{info.source}{name}.gz", method="HEAD")
    failure: list[str] = [f"no answer in {PROBE_SECONDS:g} s"]

    def probe() -> None:
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                failure.clear()
        except urllib.error.HTTPError as error:
            failure[:] = [str(error)]
        except urllib.error.URLError as error:
            failure[:] = [str(error.reason)]
        except Exception as error:
            failure[:] = [f"{type(error).__name__}: {error}"]

    # In a thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    reason = list(failure)
    if reason:
        raise ResNetJaxError(
            f"`{info.name}` is not prepared and cannot be downloaded from {info.source} "
            f"({reason[0]}): give a folder where it is prepared (--data.dir DIR or "
            "TFDS_DATA_DIR) or local IDX files (--data.from-idx DIR)"
        )


def verify_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> VerifyReport:
    """Reads every prepared file of a dataset, past any cache, and reports which are whole.

    Raises:
        ResNetJaxError: if the dataset is unknown, or not prepared.
    """
    info = catalogue.DATASETS.get(name)
    roots = [tfds_root(data_dir)]
    if info is not None and not info.needs_download:
        roots.append(_private_root())
    folder = next((found for root in roots if (found := find_prepared(name, root))), None)
    if folder is None:
        raise _not_prepared(name, roots[0])
    good: list[str] = []
    bad: list[str] = []
    try:
        prepared = read_info(folder)
    except ResNetJaxError as error:
        return VerifyReport(name, folder, (), (str(error),), "nothing")
    good += ["dataset_info.json", "features.json"]
    for split, shards in prepared.splits.items():
        for number, shard in enumerate(shards):
            try:
                check_shard(prepared, split, number)
                good.append(shard.path.name)
            except ResNetJaxError as error:
                bad.append(str(error))
    return VerifyReport(name, folder, tuple(good), tuple(bad), "nothing" if bad else "all of it")
