"""Checkpoints of a run: Orbax writes them, a manifest of checksums decides that they exist.

    checkpoints/<step>/state/         Orbax's files
    checkpoints/<step>/manifest.json  sizes and SHA-256 of those files, and the validation result

A step is written beside its place, synced to disk with its manifest, and renamed into place as a
whole, so that a process killed at any moment leaves either a whole step or none. The manifest is
checked before a step is used. This is the only module that knows Orbax.
"""

import contextlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from resnet_jax.errors import ResNetJaxError
from resnet_jax.storage import file_sha256, json_sha256, sync
from resnet_jax.training.distributed import broadcast_from_main, wait_for_heartbeat
from resnet_jax.training.state import TrainState

log = logging.getLogger(__name__)

SAVED = ("step", "params", "batch_stats", "opt_state", "ema")
# A step on its way in or out of its place; whatever is left of one is removed by the next writer.
UNFINISHED = ".unfinished-"


class DamagedCheckpointError(ResNetJaxError):
    """A saved step that does not match its manifest."""


@dataclass(frozen=True)
class Manifest:
    """What a saved step says of itself.

    Attributes:
        step: updates done.
        validation: ``{"accuracy": ..., "loss": ...}`` of the weights that evaluation uses, or None
            where no images are held out.
        files: SHA-256 of every file, by its path below the step's folder.
        metrics: SHA-256 of the rows of ``metrics.jsonl`` up to this step; None if not known.
    """

    step: int
    validation: dict[str, float] | None
    files: dict[str, str]
    metrics: str | None = None

    def to_json(self) -> str:
        """The manifest as text, with a checksum of its own."""
        body: dict[str, Any] = {
            "step": self.step,
            "validation": self.validation,
            "files": self.files,
        }
        if self.metrics is not None:
            body["metrics"] = self.metrics
        return json.dumps({**body, "sha256": json_sha256(body)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The inverse of `to_json`; raises ValueError where the checksum disagrees."""
        try:
            body = json.loads(text)
            if body.pop("sha256") != json_sha256(body):
                raise ValueError("its own checksum disagrees")
            return cls(
                int(body["step"]), body["validation"], dict(body["files"]), body.get("metrics")
            )
        except (AttributeError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"it is no manifest ({error!r})") from error


class Checkpoints:
    """The saved steps of one run.

    Reading never changes the folder; `save` does, so only one process may save.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(
        self,
        state: TrainState,
        validation: dict[str, float] | None,
        metrics: str | None = None,
    ) -> None:
        """Writes the state as the newest step, then removes steps that are no longer needed.

        Blocks until the step is on the disk: half a second for ResNet-18 with momentum (94 MB),
        which costs less than what a background writer could lose. Kept are the two newest steps,
        the older one in case the newest gets damaged, and the best one. Later steps go: they are
        damaged ones that the run did not resume from.

        Called by every process of a run: Orbax writes the arrays from all of them, and process 0
        does the rest, so that a step exists when every process has written.

        Raises:
            ResNetJaxError: nothing could be written; older steps are untouched.
        """
        import orbax.checkpoint as ocp

        step = int(state.step)
        tree = {name: getattr(state, name) for name in SAVED}
        unfinished = self.directory / f"{UNFINISHED}{step}"
        # Before anything is written; the files beside the arrays take a little more.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        broadcast_from_main(lambda: self._begin(unfinished, needed))
        with self._explained(unfinished):
            handler = ocp.PyTreeCheckpointHandler()
            with _without_tracebacks(), ocp.Checkpointer(handler) as checkpointer:
                path = unfinished.absolute() / "state"
                checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
        # Orbax returns when every process has written its part.
        broadcast_from_main(lambda: self._finish(unfinished, step, validation, metrics))

    def _begin(self, unfinished: Path, needed: int) -> None:
        with self._explained(unfinished):
            unfinished.mkdir(parents=True)
            sync(self.directory.parent)
            if (free := shutil.disk_usage(unfinished).free) < needed:
                raise OSError(f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free")

    def _finish(
        self,
        unfinished: Path,
        step: int,
        validation: dict[str, float] | None,
        metrics: str | None,
    ) -> None:
        """Adds the manifest, moves the step into place and removes those that it replaces."""
        with self._explained(unfinished):
            files = {
                name: file_sha256(unfinished / name, synced=True) for name in _files(unfinished)
            }
            manifest = unfinished / "manifest.json"
            manifest.write_text(Manifest(step, validation, files, metrics).to_json())
            sync(manifest)
            for folder in (unfinished, *(p for p in unfinished.rglob("*") if p.is_dir())):
                sync(folder)
            self._discard(step)
            unfinished.rename(self.directory / str(step))
            sync(self.directory)
            for later in [at for at in self.steps() if at > step]:
                self._discard(later)
            for old in set(self.steps()) - set(self.steps()[-2:]) - {self.best_of(self.steps())}:
                self._discard(old)

    @contextlib.contextmanager
    def _explained(self, unfinished: Path) -> Iterator[None]:
        """Turns a failure to write a step into one line, and removes what there is of the step."""
        try:
            yield
        except (OSError, ValueError) as error:
            wait_for_heartbeat(error)
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            step = unfinished.name.removeprefix(UNFINISHED)
            raise ResNetJaxError(
                f"checkpoint of step {step} could not be written to {self.directory} ({reason}): "
                f"free space or permissions there, then run the same command again"
            ) from error

    def steps(self) -> list[int]:
        """Steps in place, oldest first. Whether they are whole is for `verify` to say."""
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def manifest(self, step: int) -> Manifest:
        """The manifest of a step.

        Raises:
            DamagedCheckpointError: it is missing, unreadable or another step's.
        """
        path = self.directory / str(step) / "manifest.json"
        try:
            manifest = Manifest.from_json(path.read_text())
        except (OSError, ValueError) as error:
            raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
        if manifest.step != step:
            raise DamagedCheckpointError(f"{path} is damaged: it is that of step {manifest.step}")
        return manifest

    def verify(self, step: int) -> Manifest:
        """Reads every file of a step and compares it with the manifest.

        Raises:
            DamagedCheckpointError: names the first file that is missing, surplus or changed.
        """
        manifest, folder = self.manifest(step), self.directory / str(step)
        present = set(_files(folder)) - {"manifest.json"}
        if surplus := sorted(present - set(manifest.files)):
            raise DamagedCheckpointError(f"{folder / surplus[0]} does not belong to the checkpoint")
        for name, digest in manifest.files.items():
            path = folder / name
            if name not in present:
                raise DamagedCheckpointError(f"{path} is missing")
            if file_sha256(path) != digest:
                raise DamagedCheckpointError(f"{path} is damaged: its checksum disagrees")
        return manifest

    def good_steps(self) -> Iterator[int]:
        """Steps that verify, newest first; the others are named in a warning."""
        for step in reversed(self.steps()):
            try:
                self.verify(step)
            except DamagedCheckpointError as error:
                log.warning("%s; step %d is not used", error, step)
            else:
                yield step

    def best_of(self, steps: Iterable[int]) -> int | None:
        """The step of the best validation accuracy, of equals that of the smallest loss.

        The newest step where nothing was validated; None where there is no step. Steps whose
        manifest is damaged do not count; for whole ones alone give it `good_steps`.
        """
        ranks = {}
        for step in steps:
            try:
                validation = self.manifest(step).validation
            except DamagedCheckpointError:
                continue
            ranks[step] = (
                (validation["accuracy"], -validation["loss"], -step)
                if validation
                else (-1, 0, step)
            )
        return max(ranks, key=lambda step: ranks[step], default=None)

    def find(self, checkpoint: Literal["best", "latest"]) -> int | None:
        """Return the step of the best or the latest checkpoint that verifies; None without one."""
        match checkpoint:
            case "best":
                return self.best_of(self.good_steps())
            case "latest":
                return next(self.good_steps(), None)
        raise ResNetJaxError(f"checkpoint {checkpoint} is not known: give best or latest")

    def restore(self, state: TrainState, step: int) -> TrainState:
        """The state of a verified step, on the devices and with the shardings of ``state``."""
        import orbax.checkpoint as ocp

        target = {name: getattr(state, name) for name in SAVED}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(
                (self.directory / str(step) / "state").absolute(),
                args=ocp.args.PyTreeRestore(
                    target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
                ),
            )
        return state.replace(**tree)

    def restore_variables(self, step: int) -> dict[str, Any]:
        """Read the parameters and running statistics of a verified step, as numpy arrays.

        They are the averaged ones where the run averages its weights; the optimiser's state is
        not read, and no setting of JAX matters.
        """
        import orbax.checkpoint as ocp

        path = (self.directory / str(step) / "state").absolute()
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            saved = checkpointer.metadata(path).item_metadata.tree
            names = ("params", "batch_stats")
            target = {name: saved[name] for name in names}
            if saved["ema"] is not None:
                target = {"ema": {name: saved["ema"][name] for name in names}}
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            tree = checkpointer.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    target,
                    restore_args=jax.tree.map(lambda _: as_numpy, target),
                    partial_restore=True,
                ),
            )
        variables: dict[str, Any] = tree.get("ema", tree)
        return variables

    def _discard(self, step: int) -> None:
        """Removes a step; renamed first, so that a kill never leaves half of it in place."""
        place = self.directory / str(step)
        if place.exists():
            gone = self.directory / f"{UNFINISHED}discarded-{step}"
            place.rename(gone)
            shutil.rmtree(gone)

    def remove_unfinished(self) -> None:
        """Remove what killed processes left of steps."""
        for path in self.directory.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path)


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Orbax's threads log the traceback of an error and then raise it; once is enough.

    Its other tasks fail of the same, which asyncio would log whenever they are collected, and
    threads of tensorstore go on to speak to an event loop that has ended.
    """
    logging.getLogger("asyncio").addFilter(_not_of_orbax)
    logger = logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others
    try:
        yield
        sys.unraisablehook = show  # after an error, such threads may still be at work
    finally:
        logger.disabled = disabled


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in logging.Formatter().format(record)  # its traceback names Orbax's files


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
