"""Callbacks that a run calls while it trains: a base class for users, and TensorBoard's events."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_jax.errors import importing
from resnet_jax.storage import writing

if TYPE_CHECKING:
    from resnet_jax.training.metrics import Evaluation


class Callback:
    """Base class that follows a run; override the methods you need. Only process 0 calls them."""

    def on_start(self, step: int, total_steps: int) -> None:
        """Called when a run begins or resumes at ``step``; a resumed run repeats later steps."""

    def on_step(self, step: int) -> None:
        """Called after every step; ``step`` is the number of updates done."""

    def on_metrics(self, row: dict[str, Any]) -> None:
        """Called with each row of ``metrics.jsonl``; the keys are the columns of `Run.metrics`."""

    def on_evaluate(self, step: int, split: str, evaluation: "Evaluation") -> None:
        """Called after each evaluation of a split. At the end, each test split (without one, the
        validation split) is evaluated with the latest and best parameters, once if equal."""

    def on_save(self, step: int, path: Path) -> None:
        """Called when a checkpoint was written to the folder ``path``."""

    def log(self, text: str) -> None:
        """Called with a message for the user."""


class Events(Callback):
    """Writes each row of metrics to event files with tensorboardX; no TensorFlow is needed.

    A resumed run drops the metrics of steps after its checkpoint. Event files cannot be truncated,
    so ``rows`` replace the content of ``folder`` at the start; an open TensorBoard follows.
    """

    def __init__(self, folder: Path, rows: Iterable[dict[str, Any]] = ()) -> None:
        with importing("--tensorboard", "'resnet_jax[tensorboard]', or give --no-tensorboard"):
            from tensorboardX import SummaryWriter
        shutil.rmtree(folder, ignore_errors=True)
        self._folder = folder
        # If tensorboardX's own thread flushed, a full disk would kill it silently and nothing would
        # empty its queue. So only `Events` flushes; a row's last numbers may show with the next.
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=10**5)
        with writing(folder):
            for number, row in enumerate(rows, 1):
                self._add(row)
                if number % 10 == 0:  # a flush is slow, but the thread must not reach 8 KiB
                    self._writer.flush()
            self._writer.flush()

    def on_metrics(self, row: dict[str, Any]) -> None:
        """Write a scalar for each number: ``train/loss``, ``test_best/accuracy``."""
        with writing(self._folder):
            self._add(row)
            self._writer.flush()

    def _add(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        if kind == "test":
            kind = f"{row['split']}_{row['checkpoint']}"
        for name in row.keys() - {"step", "epoch", "kind", "split", "checkpoint", "last"}:
            self._writer.add_scalar(f"{kind}/{name}", row[name], row["step"])

    def close(self) -> None:
        with suppress(OSError):  # `on_metrics` has reported it
            self._writer.close()
