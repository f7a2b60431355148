"""The folder of a run: its configuration, its metrics, its log and its lock."""

import dataclasses
import json
import logging
import math
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from resnet_jax import storage
from resnet_jax.config import MAY_CHANGE, TrainConfig, differences, from_dict, to_dict
from resnet_jax.data.image import MAX_PIXELS
from resnet_jax.errors import MALFORMED, ResNetJaxError, message_and_code
from resnet_jax.ops.heuristics import INSTRUCTION_SETS
from resnet_jax.training.checkpoint import Checkpoints, Manifest
from resnet_jax.training.metrics import measured_at, parse_row

log = logging.getLogger(__name__)

# Takes a run's starts, stops and ends, which only its own log records.
events_log = logging.getLogger("resnet_jax.events")
events_log.setLevel(logging.INFO)
events_log.propagate = False

MAX_CONFIG_BYTES = 1_000_000
PACKAGES = ("resnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Record:
    """The content of ``config.yaml``: a run's settings, its dataset, and the user's own parts."""

    config: TrainConfig
    fingerprint: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (H, W, C), before `--data.image-size`
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # see `Custom`
    # The instruction set whose algorithms "auto" uses on a CPU; None for a run of version 0.1.0.
    instructions: str | None = None
    # The commit and the package versions that the run began with.
    made_by: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)


class RunFolder:
    """A run's folder and the files in it."""

    def __init__(self, path: Path) -> None:
        # TensorStore, which writes checkpoints there, takes paths as UTF-8 in any locale.
        place = str(path.absolute())
        if os.fsencode(place) != place.encode(errors="replace"):
            raise ResNetJaxError(
                f"run folder {path} has a name that is no UTF-8: rename it, or give another "
                "--run-dir, or a locale of UTF-8 (LANG=C.UTF-8)"
            )
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")

    @property
    def exists(self) -> bool:
        return (self.path / "config.yaml").is_file()

    @contextmanager
    def opened_for_writing(self) -> Iterator[None]:
        """Create the folder, keep other writers out, and write warnings to ``run.log``."""
        remedy = "free space or permissions there, or give another --run-dir"
        with ExitStack() as stack:
            with storage.writing(f"run folder {self.path}", remedy):
                self.path.mkdir(parents=True, exist_ok=True)
                storage.refuse_links(self.path)
                stack.enter_context(storage.locked(self.path / ".lock"))
                # Removed here, not by the next save, because a run may have nothing left to save.
                for folder in (self.path, self.checkpoints.directory):
                    storage.remove_unfinished(folder)
                stack.enter_context(_log_to(self.path / "run.log"))
            yield

    def write_record(self, record: Record) -> None:
        """Write ``config.yaml``; package versions and commit stay those that the run began with."""
        begun = self.read_record().made_by if self.exists else {}
        versions = dict(begun) or {"commit": _commit(), **{n: _version(n) for n in PACKAGES}}
        commit = versions.pop("commit")
        document = {
            "config": to_dict(record.config),
            "data": {
                "fingerprint": record.fingerprint,
                "class_names": list(record.class_names),
                "image_shape": list(record.image_shape),
            },
            **({"parts": dict(record.parts)} if record.parts else {}),
            **({"instructions": record.instructions} if record.instructions else {}),
            "versions": versions,
            "commit": commit,
        }
        text = yaml.safe_dump(document, sort_keys=False)
        if len(text) > MAX_CONFIG_BYTES:  # more than `read_record` accepts
            names = f"{len(record.class_names)} class names make config.yaml"
            raise ResNetJaxError(f"{names} more than {MAX_CONFIG_BYTES:,} bytes: give shorter ones")
        storage.atomic_write(self.path / "config.yaml", text)

    def read_record(self) -> Record:
        path = self.path / "config.yaml"
        if not path.is_file():
            inside = (p.parent for p in sorted(self.path.glob("*/config.yaml")))
            near = (*self.path.parents, *inside, Path("runs", self.path.name))
            remedy = "give a run's folder, which `resnet-jax train` makes"
            if self.checkpoints.steps():
                remedy = "it has checkpoints; put that file back, or give another folder"
            elif run := next(filter(storage.is_run, near), None):
                remedy = f"did you mean {run}?"
            raise ResNetJaxError(f"{self.path} is not a run: {path.name} is missing; {remedy}")
        try:
            if path.stat().st_size > MAX_CONFIG_BYTES:  # before reading it into memory
                raise ValueError(f"it has more than {MAX_CONFIG_BYTES:,} bytes")
            document = _Loader(path.read_text()).get_single_data()
            data = document["data"]
            height, width, channels = shape = tuple(map(int, data["image_shape"]))
            if not 0 < min(shape) <= math.prod(shape) <= 3 * MAX_PIXELS:
                raise ValueError(f"there are no images of {shape}")
            if (instructions := document.get("instructions")) not in (None, *INSTRUCTION_SETS):
                raise ValueError(f"instructions {instructions!r} are none of {INSTRUCTION_SETS}")
            return Record(
                from_dict(document["config"]),
                str(data["fingerprint"]),
                tuple(map(str, data["class_names"])),
                (height, width, channels),
                {name: str(part) for name, part in dict(document.get("parts", {})).items()},
                instructions,
                {"commit": document.get("commit"), **(document.get("versions") or {})},
            )
        except (ResNetJaxError, yaml.YAMLError, OSError, *MALFORMED) as error:
            reason = " ".join(str(error).split())[:300]
            raise ResNetJaxError(f"{path} is damaged or of another version: {reason}") from error

    def read_variables(self, checkpoint: Literal["best", "latest"] = "best") -> dict[str, Any]:
        if checkpoint not in ("best", "latest"):
            raise ResNetJaxError(f"checkpoint {checkpoint} is not known: give best or latest")
        while True:
            listed, good = self.checkpoints.steps(), self.checkpoints.good_steps()
            step = self.checkpoints.best_of(good) if checkpoint == "best" else next(good, None)
            try:
                if step is None:
                    raise ResNetJaxError(f"{self.path} has no usable checkpoint: train it again")
                return self.checkpoints.restore_variables(step)
            except ResNetJaxError:
                if listed == self.checkpoints.steps():  # else a run still in training changed them
                    raise

    def check_same(self, new: Record) -> None:
        """Refuse to continue a run with another configuration, other data or other parts."""
        if not self.exists and not self.checkpoints.steps():
            storage.refuse_part_of_run(self.path, "--run-dir")
        elif listing := changes(self.read_record(), new):
            raise ResNetJaxError(
                f"{self.path} is a run of another configuration ({listing}): "
                f"give those settings and that data, or another --run-dir"
            )

    def holding(self, opened: Record) -> Self:
        """Return this folder; raise if it is gone, or holds another run than the opened one."""
        if listing := changes(opened, self.read_record()):
            raise ResNetJaxError(f"{self.path} is another run by now ({listing}): open it again")
        return self

    def step_to_go_on_from(self) -> int:
        """Return the newest step that verifies, or 0 if none was saved; raise if none verifies."""
        step = next(self.checkpoints.good_steps(), None)
        tested = any(row["kind"] == "test" for row in self.read_metrics())
        if step is None and (tested or self.checkpoints.steps()):  # a new run would remove them
            raise ResNetJaxError(
                f"{self.path} has no checkpoint that verifies: put them back, or remove the folder "
                "to begin anew"
            )
        return step or 0

    def append_metrics(self, *rows: dict[str, Any]) -> None:
        """Add lines to ``metrics.jsonl`` and sync them to the disk."""
        path = self.path / "metrics.jsonl"
        with storage.writing(path):
            with path.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
            storage.sync(path)

    def read_metrics(self, *, whole: bool = False) -> list[dict[str, Any]]:
        """Read the rows of ``metrics.jsonl``; raise if a line is no row or out of order.

        A last line that a kill has cut short is left out, or, with ``whole``, raises too.
        """
        path = self.path / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(parse_row(line, rows))
            except (ValueError, RecursionError) as error:
                if number < len(lines) or whole:
                    raise ResNetJaxError(
                        f"{path} is damaged: line {number} is {error}: remove that line"
                    ) from error
        return rows

    def metrics_digest(self, step: int) -> str:
        """Return the SHA-256 of the rows up to a step, except tests, which follow the last save."""
        rows = [row for row in self.read_metrics() if row["kind"] != "test"]
        return storage.json_sha256([row for row in rows if row["step"] <= step])

    def check_metrics(self, saved: Manifest) -> None:
        """Refuse rows that were changed, added or removed since a step was saved."""
        if saved.metrics not in (None, self.metrics_digest(saved.step)):
            raise ResNetJaxError(
                f"{self.path / 'metrics.jsonl'} was changed: its lines up to step {saved.step} are "
                "not those that were saved with that step"
            )

    def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows of later steps and return the rest; warn if those were changed."""
        path, rows = self.path / "metrics.jsonl", self.read_metrics()
        kept = [row for row in rows if measured_at(row) <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if path.is_file() and path.read_text(errors="replace") != text:
            storage.atomic_write(path, text)
        if step:
            try:
                self.check_metrics(self.checkpoints.manifest(step))
            except ResNetJaxError as error:
                log.warning("%s; the run goes on with them", error)
        return kept

    def verify(self) -> storage.VerifyReport:
        good, damaged, whole = ["config.yaml"], [], {}
        listed = self.checkpoints.steps()
        for step in listed:
            try:
                whole[step] = self.checkpoints.verify(step)
                good.append(f"checkpoints/{step}")
            except ResNetJaxError as error:
                if step in self.checkpoints.steps():  # else a run still in training removed it
                    damaged.append(str(error))
        try:
            rows = self.read_metrics(whole=True)
            # A finished run is not whole without the steps that it was tested with.
            final = list(takewhile(lambda row: row["kind"] == "test", reversed(rows)))
            tested = {step for row in final for step in (row["step"], measured_at(row))}
            for step in sorted(tested - {*listed, *self.checkpoints.steps()}):
                place = self.checkpoints.directory / str(step)
                damaged.append(f"{place} is missing, with which the run was tested: copy it again")
            for saved in whole.values():
                self.check_metrics(saved)
            good.append("metrics.jsonl")
        except ResNetJaxError as error:
            damaged.append(str(error))
        best = self.checkpoints.best_of(whole)
        usable = f"latest: step {max(whole)}, best: step {best}" if whole else "nothing"
        return storage.VerifyReport(self.path, tuple(good), tuple(damaged), usable)


def changes(before: Record, new: Record) -> str:
    """List in what a record differs from an earlier one of its run, except what may change."""
    # A schedule that does not depend on the length of the run may go on for longer.
    optim, lengthened = new.config.optim, new.config.epochs > before.config.epochs
    longer = {"epochs"} if optim.schedule == "constant" and not optim.warmup else set()
    allowed = MAY_CHANGE | longer if lengthened else MAY_CHANGE
    settings = differences(before.config, new.config)
    changed = {f"--{name}": settings[name] for name in settings if name not in allowed}
    old, now = (
        {"data with fingerprint": r.fingerprint[:12], "class names": r.class_names}
        | {"image shape": r.image_shape, **r.parts}
        for r in (before, new)
    )
    changed |= {n: (old.get(n), now.get(n)) for n in old | now if old.get(n) != now.get(n)}
    # Values are cut, because the names of a thousand classes may be among them.
    return ", ".join(f"{name} {a!s:.200} -> {b!s:.200}" for name, (a, b) in changed.items())


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases, which could multiply a small document."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has aliases")
        return super().compose_node(parent, index)


# Without YAML 1.1's numbers to base 60, whose digits take quadratic time.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Log the run's events and the package's warnings to a file; leave the user's logging alone."""
    handler = logging.FileHandler(path, errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # On a full disk the run fails when it cannot save; each record need not print a traceback too.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    thread = threading.get_ident()  # another thread may train another run
    handler.addFilter(lambda record: record.thread in (None, thread))
    loggers = (logging.getLogger("resnet_jax"), events_log)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        events_log.info("ends: %s", message_and_code(error)[0])
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _commit() -> str | None:
    """Return the commit of the package's checkout; None where it was installed from a wheel."""
    root = Path(__file__).parents[2]
    # Told both, git does not mind another owner; a hook's variables name another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe", "--always"]
    command += ["--dirty", "--abbrev=40", "--exclude=*"]  # a hash, never a tag's name
    with suppress(OSError, subprocess.SubprocessError):
        if (root / ".git").exists():
            options: Any = {"capture_output": True, "text": True, "timeout": 5}
            done = subprocess.run(command, env=environment, **options)
            return done.stdout.strip() or None
    return None
