"""Checkpoints of a run: Orbax writes them, and they count only with a manifest of checksums.

    checkpoints/<step>/state/         Orbax's files
    checkpoints/<step>/manifest.json  SHA-256 of those files, and the validation result

A step is written beside its place, synced to disk with its manifest, and renamed into place as a
whole, so that a process killed at any moment leaves either a whole step or none. The manifest is
checked before a step is used. This is the only module that knows Orbax.
"""

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import storage
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.distributed import broadcast_from_main, wait_for_heartbeat
from resnet_jax.training.state import TrainState

log = logging.getLogger(__name__)

SAVED = ("step", "params", "batch_stats", "opt_state", "ema")
# Inodes that a step needs; some file systems can run out of them.
FILES_PER_STEP = 40
# Zeros take next to no room on the disk, but weights that were trained hardly shrink.
MOST_COMPRESSED = 1000
HARMLESS = 2**30  # bytes
# Errors on a file that a run still in training has removed, or that the disk or server has lost.
LOST = {errno.ENOENT, errno.EIO, errno.ESTALE}
# Names that macOS, Windows, notebooks and network drives leave in folders that they show or sync.
LEFT_BY_OTHERS = {".DS_Store", ".ipynb_checkpoints", "@eaDir", "desktop.ini", "Thumbs.db"}


class DamagedCheckpointError(ResNetJaxError):
    """A saved step that does not match its manifest."""


@dataclass(frozen=True)
class Manifest:
    """The description of a saved step."""

    step: int
    validation: dict[str, float] | None  # accuracy and loss, if the step was validated
    files: dict[str, str]  # SHA-256 of every file, by its path below the step's folder
    metrics: str | None = None  # SHA-256 of the rows of metrics.jsonl up to this step, if known

    def to_json(self) -> str:
        return json.dumps({**vars(self), "sha256": storage.json_sha256(vars(self))}, indent=1)


class Checkpoints:
    """The saved steps of one run, in a folder of their own."""

    def __init__(self, directory: storage.PathLike) -> None:
        self.directory = storage.expanded(directory)
        self._damaged: set[int] = set()  # steps that `good_steps` found damaged

    def save(
        self, state: TrainState, validation: dict[str, float] | None, metrics: str | None = None
    ) -> None:
        """Write the state as the newest step, then remove steps that are no longer needed.

        Return when the step is on the disk. The two newest steps are kept (two, in case the newest
        gets damaged), and so is the best by the ``accuracy`` and ``loss`` of ``validation``.
        Steps that `good_steps` found damaged, and any later than this one, from which the run did
        not resume, are deleted. If the step cannot be written, or a loss or gradient was not finite
        (``first_bad_step``), raise `ResNetJaxError`; older steps stay.

        Every process of a run calls this: Orbax writes the arrays from all of them, and process 0
        does the rest, so that a step exists only when every process has written.
        """
        import orbax.checkpoint as ocp

        step, bad = int(state.step), int(state.first_bad_step)
        if bad >= 0:
            raise ResNetJaxError(
                f"step {bad} was not finite, and step {step} is not saved: restore an older one"
            )
        names = ("accuracy", "loss", *(validation or ()))
        validation = validation and {name: float(validation[name]) for name in names}
        tree = {name: getattr(state, name) for name in SAVED}
        # Includes some metadata for each array, and a reserve for disk blocks and temporary files.
        needed = int(1.25 * sum(leaf.nbytes + 1024 for leaf in jax.tree.leaves(tree))) + 2**15
        unfinished = self.directory / f"{storage.UNFINISHED}-{step}"
        what = f"checkpoint of step {step} could not be written to {self.directory}"

        @_explained(what, storage.MAKE_ROOM)
        def begin() -> None:
            storage.remove_unfinished(self.directory)
            unfinished.mkdir(parents=True)
            storage.sync(self.directory.parent)
            _check_room(unfinished, needed)

        @_explained(what, storage.MAKE_ROOM)
        def finish() -> None:
            files = {name: storage.file_sha256(unfinished / name) for name in _files(unfinished)}
            manifest = Manifest(step, validation, files, metrics).to_json()
            (unfinished / "manifest.json").write_text(manifest)
            for path in (unfinished, *_entries(unfinished)):
                storage.sync(path)
            self._discard(step)
            unfinished.rename(self.directory / str(step))
            storage.sync(self.directory)
            self._damaged.discard(step)
            steps = [at for at in self.steps() if at <= step and at not in self._damaged]
            for surplus in set(self.steps()) - {*steps[-2:], self.best_of(steps)}:
                self._discard(surplus)

        try:
            broadcast_from_main(begin)
            with _explained(what, storage.MAKE_ROOM), ocp.PyTreeCheckpointer() as orbax:
                # Returns when every process has written its part.
                orbax.save(unfinished.absolute() / "state", args=ocp.args.PyTreeSave(tree))
            broadcast_from_main(finish)
        except ResNetJaxError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def steps(self) -> list[int]:
        """Return the steps in place, oldest first, verified or not."""
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def manifest(self, step: int) -> Manifest:
        path = self.directory / str(step) / "manifest.json"
        try:
            if not path.is_file() or path.stat().st_size > 2**26:  # reading a device has no end
                raise ValueError("no file of a manifest's size")
            body = json.loads(path.read_text())
            if body.pop("sha256") != storage.json_sha256(body):
                raise ValueError("its own checksum disagrees")
            manifest = Manifest(**body)
            measured = manifest.validation or {"accuracy": 0.0, "loss": 0.0}
            numbers = measured["accuracy"], measured["loss"]
            if not isinstance(manifest.files, dict) or {*map(type, numbers)} != {float}:
                raise ValueError("its files or its validation are of another kind")
        except (OSError, ValueError) as error:
            raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
        except (AttributeError, LookupError, TypeError, RecursionError) as error:
            raise DamagedCheckpointError(f"{path} is no manifest ({error!r})") from error
        if manifest.step != step:
            raise DamagedCheckpointError(f"{path} is damaged: it is that of step {manifest.step}")
        return manifest

    def verify(self, step: int) -> Manifest:
        """Check every file of a step by its manifest; `DamagedCheckpointError` names a bad one."""
        manifest, folder = self.manifest(step), self.directory / str(step)
        path = folder
        try:
            present = set(_files(folder)) - {"manifest.json"}
            if surplus := sorted(present - set(manifest.files)):
                path = folder / surplus[0]
                raise DamagedCheckpointError(f"{path} does not belong to the checkpoint: remove it")
            for name, digest in manifest.files.items():
                path = folder / name
                if name not in present or not path.is_file():
                    raise DamagedCheckpointError(f"{path} is missing")
                if storage.file_sha256(path) != digest:
                    raise DamagedCheckpointError(f"{path} is damaged: its checksum disagrees")
        except OSError as error:
            if error.errno not in LOST:
                raise
            raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from error
        return manifest

    def good_steps(self) -> Iterator[int]:
        """Yield the steps that verify, newest first; warn about each that does not."""
        for step in reversed(self.steps()):
            try:
                self.verify(step)
            except DamagedCheckpointError as error:
                if step in self.steps():  # otherwise a run still in training removed it
                    self._damaged.add(step)
                    log.warning("%s; step %d is not used", error, step)
            else:
                yield step

    def best_of(self, steps: Iterable[int]) -> int | None:
        """Return the step of the best validation accuracy; the smallest loss breaks a tie.

        If no step was validated, return the newest one; if there is no step, return None. Steps
        whose manifest is damaged do not count.
        """
        ranks: dict[int, tuple[float, ...]] = {}
        for step in steps:
            with contextlib.suppress(DamagedCheckpointError):
                found = self.manifest(step).validation
                ranks[step] = (found["accuracy"], -found["loss"], -step) if found else (-1, 0, step)
        return max(ranks, key=lambda step: ranks[step], default=None)

    def restore(self, state: TrainState, step: int) -> TrainState:
        """Read a verified step onto the devices of ``state``, with the shardings of its arrays."""
        import orbax.checkpoint as ocp

        target = {name: getattr(state, name) for name in SAVED}
        args = ocp.args.PyTreeRestore(target, ocp.checkpoint_utils.construct_restore_args(target))
        with self._explaining_read(step), ocp.PyTreeCheckpointer() as orbax:
            saved = orbax.restore(self._state_path(step), args=args)
        # Always -1, as only finite states are saved; that of ``state`` may be stale or deleted.
        return state.replace(**saved, first_bad_step=jnp.full_like(saved["step"], -1))

    def restore_variables(self, step: int) -> dict[str, Any]:
        """Read a verified step's parameters and running statistics, or their averages if saved.

        They are NumPy arrays, so that no setting of JAX matters; the optimiser's state is not read.
        """
        import orbax.checkpoint as ocp

        with self._explaining_read(step), ocp.PyTreeCheckpointer() as orbax:
            metadata = orbax.metadata(self._state_path(step)).item_metadata
            if metadata is None:  # Orbax's sign of a missing step
                raise FileNotFoundError("it is gone")
            saved = metadata.tree
            if not isinstance(saved, dict) or not saved.keys() >= set(SAVED):
                raise ValueError("it is no training state")
            names = ("params", "batch_stats") if saved["ema"] is None else ("ema",)
            target = {name: saved[name] for name in names}
            stored = sum(path.stat().st_size for path in self._state_path(step).rglob("*"))
            size = sum(
                np.dtype(a.dtype).itemsize * math.prod(a.shape) for a in jax.tree.leaves(target)
            )
            if size > max(HARMLESS, MOST_COMPRESSED * stored):
                raise ValueError(f"{stored:,} bytes would become {size:,}")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
            args = ocp.args.PyTreeRestore(target, restore_args=as_numpy, partial_restore=True)
            tree: dict[str, Any] = orbax.restore(self._state_path(step), args=args)
        return tree.get("ema", tree)

    def _explaining_read(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Explain an error in reading a step whose files match the manifest."""
        what = f"step {step} in {self.directory} cannot be read"
        return _explained(what, "mend that, or give the network and optimiser that it is of")

    def _state_path(self, step: int) -> Path:
        return (self.directory / str(step) / "state").absolute()

    def _discard(self, step: int) -> None:
        """Rename a step, then remove it, so that a kill never leaves half of it as a step."""
        gone = self.directory / f"{storage.UNFINISHED}-discarded-{step}-{time.time_ns()}"
        with contextlib.suppress(FileNotFoundError):
            try:
                (self.directory / str(step)).rename(gone)
            except OSError as error:
                if error.errno != errno.EXDEV:  # in a container, a folder of its image
                    raise
                gone = self.directory / str(step)
                (gone / "manifest.json").unlink(missing_ok=True)  # half of it is no step
            # On NFS a file that a reader has open stays; a later save removes it.
            shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Turn a failure of the disk or of Orbax into a `ResNetJaxError` of one line."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:  # the last: a disk without locks
        wait_for_heartbeat(error)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, NotImplementedError):
            remedy = "give a --run-dir on a disk with locks"
        raise ResNetJaxError(f"{what} ({reason}): {remedy}") from error


def _check_room(folder: Path, needed: int) -> None:
    """Raise OSError if a checkpoint of ``needed`` bytes cannot be written to ``folder``.

    Orbax would fail too, but each of its threads would print a traceback.
    """
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < needed:  # 0 if a FUSE disk does not report it
        raise OSError(f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free")
    if disk.f_files > FILES_PER_STEP > disk.f_favail:  # macOS reports 1 on an exFAT disk
        raise OSError(f"{FILES_PER_STEP} files are needed and there is room for {disk.f_favail}")
    largest = folder / "largest"
    with largest.open("wb") as file:
        file.truncate(needed)  # takes no space, but fails above a limit (ulimit -f)
    largest.unlink()


def _entries(folder: Path) -> list[Path]:
    """List all files and folders at any depth; `Path.rglob` may silently skip unreadable ones."""

    def fail(error: OSError) -> None:
        raise error

    walked = os.walk(folder, onerror=fail)
    return [Path(place, name) for place, *names in walked for name in itertools.chain(*names)]


def _files(folder: Path) -> list[str]:
    # A link to a folder counts as a file, because Orbax would follow it.
    entries = (path for path in _entries(folder) if path.is_symlink() or not path.is_dir())
    found = (path.relative_to(folder) for path in entries)
    own = (p for p in found if LEFT_BY_OTHERS.isdisjoint(p.parts) and not p.name.startswith("._"))
    return sorted(map(str, own))
