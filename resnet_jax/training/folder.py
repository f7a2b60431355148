"""A run's folder: its configuration, its metrics, its log, and who may write to it."""

import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import yaml

from resnet_jax.config import TrainConfig, differences, from_dict, to_dict
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.checkpoint import Checkpoints, sync

# Settings that do not change what is learnt: a run may be continued with others.
MAY_CHANGE = {
    "log-every",
    "eval-every",
    "patience",
    "target",
    "compilation-cache",
    "tensorboard",
    "model.remat",
    "data.dir",
    "data.from-idx",
    "data.workers",
    "data.streaming",
    "data.memory-limit",
}
# What every line of metrics.jsonl has.
COMMON = {"step", "epoch", "kind", "loss", "accuracy", "seconds"}
PACKAGES = ("resnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """What a run remembers of its data, so that it predicts without them and notices others."""

    fingerprint: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (H, W, C), before `--data.image-size`


class RunFolder:
    """``runs/<preset>-seed<N>/`` and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")

    @property
    def exists(self) -> bool:
        """Whether there is a run here, begun or finished."""
        return (self.path / "config.yaml").is_file()

    @contextmanager
    def opened_for_writing(self) -> Iterator[None]:
        """Creates the folder, keeps other writers out, and writes warnings to ``run.log``.

        The lock is the kernel's: it is gone with the process that held it, however that ended.

        Raises:
            ResNetJaxError: the folder cannot be written, or another process writes to it.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self.path / ".lock").open("a+"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.truncate(0)
                print(os.getpid(), "on", os.uname().nodename, file=lock, flush=True)
                stack.enter_context(_log_to(self.path / "run.log"))
            except BlockingIOError:
                lock.seek(0)
                raise ResNetJaxError(
                    f"run folder {self.path} is being written by process {lock.read().strip()}: "
                    f"wait for it or give another --run-dir"
                ) from None
            except OSError as error:
                raise ResNetJaxError(
                    f"run folder {self.path} cannot be written ({error.strerror}): "
                    f"free space or permissions there, or give another --run-dir"
                ) from error
            yield

    def write_config(self, config: TrainConfig, facts: DataFacts) -> None:
        """Writes ``config.yaml``: settings, facts of the data, package versions, commit.

        Versions and commit are those that the run began with.
        """
        began = yaml.safe_load((self.path / "config.yaml").read_text()) if self.exists else {}
        document = {
            "config": to_dict(config),
            "data": {
                "fingerprint": facts.fingerprint,
                "class_names": list(facts.class_names),
                "image_shape": list(facts.image_shape),
            },
            "versions": began.get("versions") or {name: _version(name) for name in PACKAGES},
            "commit": began["commit"] if "commit" in began else _commit(),
        }
        _replace(self.path / "config.yaml", yaml.safe_dump(document, sort_keys=False))

    def read_config(self) -> tuple[TrainConfig, DataFacts]:
        """The inverse of `write_config`.

        Raises:
            ResNetJaxError: there is no run here, or its configuration is damaged.
        """
        path = self.path / "config.yaml"
        if not path.is_file():
            raise ResNetJaxError(
                f"{self.path} is not a run: {path.name} is missing; "
                f"`resnet-jax train --run-dir {self.path}` makes one"
            )
        try:
            document = yaml.safe_load(path.read_text())
            data = document["data"]
            facts = DataFacts(
                str(data["fingerprint"]),
                tuple(map(str, data["class_names"])),
                cast(tuple[int, int, int], tuple(map(int, data["image_shape"]))),
            )
            return from_dict(document["config"]), facts
        except (
            OSError,
            yaml.YAMLError,
            LookupError,
            TypeError,
            ValueError,
            RecursionError,
        ) as error:
            reason = " ".join(str(error).split())
            raise ResNetJaxError(f"{path} is damaged: {reason}") from error

    def check_same(self, config: TrainConfig, facts: DataFacts) -> None:
        """Refuses to continue this run with another configuration or other data.

        Raises:
            ResNetJaxError: names every difference.
        """
        before, facts_before = self.read_config()
        changed = {
            option: values
            for option, values in differences(before, config).items()
            if option not in MAY_CHANGE
        }
        # A schedule that does not depend on the length of the run may be followed further.
        lengthened = config.epochs > before.epochs and config.optim.schedule == "constant"
        if lengthened and not config.optim.warmup:
            changed.pop("epochs", None)
        listing = [f"--{option} {old} -> {new}" for option, (old, new) in changed.items()]
        for fact in dataclasses.fields(facts):
            old, new = getattr(facts_before, fact.name), getattr(facts, fact.name)
            if old != new and fact.name == "fingerprint":
                listing.append(f"data with fingerprint {old[:12]} -> {new[:12]}")
            elif old != new:
                listing.append(f"{fact.name.replace('_', ' ')} {old} -> {new}")
        if listing:
            raise ResNetJaxError(
                f"{self.path} is a run of another configuration ({', '.join(listing)}): "
                f"give those settings and that data, or another --run-dir"
            )

    def append_metrics(self, *rows: dict[str, Any]) -> None:
        """Adds lines to ``metrics.jsonl`` and syncs them to the disk."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(path, error) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last one that was cut short by a kill is left out."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        rows = []
        lines = path.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not row.keys() >= COMMON:
                    raise ValueError("not a row")
                rows.append(row)
            except ValueError as error:
                if number < len(lines):
                    raise ResNetJaxError(
                        f"{path} is damaged: line {number} is no JSON object with "
                        f"{', '.join(sorted(COMMON))}: remove that line"
                    ) from error
        return rows

    def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drops lines of later steps than the one a run resumes from, and returns the others."""
        path, rows = self.path / "metrics.jsonl", self.read_metrics()
        # A test of the best parameters carries their step, and the run's last step beside it.
        kept = [row for row in rows if row.get("last", row["step"]) <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if path.is_file() and path.read_text(errors="replace") != text:
            _replace(path, text)
        return kept


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Writes the package's log, warnings and the rest, to a file as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # On a full disk the run fails by what it cannot save, not by traceback after traceback here.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    logger = logging.getLogger("resnet_jax")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()
        logger.setLevel(level)


def _replace(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ResNetJaxError:
    return ResNetJaxError(
        f"{path} cannot be written ({error.strerror}): free space or permissions there, then run "
        f"the same command again"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the package's own checkout; None where it was installed from a wheel."""
    import subprocess

    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        return (
            subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
            or None
        )
    except (OSError, subprocess.SubprocessError):
        return None
