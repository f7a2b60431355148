"""Callbacks: what a run calls while it trains. Code of the user's, and TensorBoard's events."""

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
    """Follows a run; override what is of interest. Of several processes only process 0 calls."""

    def on_start(self, step: int, total_steps: int) -> None:
        """Training begins at ``step``, or a run resumes from it: steps after it come again."""

    def on_step(self, step: int) -> None:
        """``step`` updates are done; called at every step."""

    def on_metrics(self, row: dict[str, Any]) -> None:
        """A line of ``metrics.jsonl`` was written; the keys are the columns of `Run.metrics`."""

    def on_evaluate(self, step: int, split: str, evaluation: "Evaluation") -> None:
        """A split was evaluated; at the end each test split with the latest and best parameters,
        once where these are the same."""

    def on_save(self, step: int, path: Path) -> None:
        """A checkpoint was written to the folder ``path``."""

    def log(self, text: str) -> None:
        """Take a sentence for the user."""


class Events(Callback):
    """Writes each row of metrics as event files, by tensorboardX; no TensorFlow is needed.

    A run that resumes drops metrics of steps after its checkpoint. Event files cannot be cut, so
    what is in ``folder`` is replaced by ``rows`` at the start; a TensorBoard that is open follows.
    """

    def __init__(self, folder: Path, rows: Iterable[dict[str, Any]] = ()) -> None:
        with importing("--tensorboard", "'resnet_jax[tensorboard]', or give --no-tensorboard"):
            from tensorboardX import SummaryWriter
        shutil.rmtree(folder, ignore_errors=True)
        self._folder = folder
        # Its own thread would flush, die of a full disk unheard, and nobody empty its queue. So the
        # last numbers of a row may show with the next one.
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=10**5)
        with writing(folder):
            for number, row in enumerate(rows, 1):
                self._add(row)
                if number % 10 == 0:  # a flush takes a disk's time, and its thread writes at 8 KiB
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
        with suppress(OSError):  # which `on_metrics` has said
            self._writer.close()
