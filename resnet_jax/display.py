"""What a person sees while a run trains: a bar in a terminal, plain lines anywhere else."""

import os
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from resnet_jax.training.callbacks import Callback

# Without a bar, a line at least this often shows that something happens.
SECONDS_BETWEEN_LINES = 10.0


class PatientConsole(Console):
    """A console that goes on, silently, when the reader of its output has gone (``| head``)."""

    def on_broken_pipe(self) -> None:
        """Send what is still printed nowhere; a plain `Console` ends the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display(Callback):
    """Shows a run on a console: a moving bar in a terminal, and a line for each evaluation."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PatientConsole(highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, metrics="opening the data")
        self._last_train: dict[str, Any] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def on_start(self, step: int, total_steps: int) -> None:
        self._bar.reset(self._task, total=total_steps, completed=step, metrics="compiling")

    def on_step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def on_metrics(self, row: dict[str, Any]) -> None:
        """Shows training metrics in the bar, and a line for each evaluation."""
        if row["kind"] == "train":
            self._last_train = row
            metrics = (
                f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.1%}  "
                f"{row['images_per_s']:,.0f} images/s"
            )
            self._bar.update(self._task, metrics=metrics)
            silent = time.monotonic() - self._last_line
            if not self.console.is_terminal and silent > SECONDS_BETWEEN_LINES:
                self.log(f"epoch {row['epoch']:6.2f}  step {row['step']:5d}  {metrics}")
        elif row["kind"] == "validation":
            train = self._last_train
            self.log(
                f"epoch {row['epoch']:6.2f}  step {row['step']:5d}  "
                f"loss {train['loss']:.4f}  accuracy {train['accuracy']:7.2%}  "
                f"validation loss {row['loss']:.4f}  accuracy {row['accuracy']:7.2%}  {_top5(row)}"
                f"{train['images_per_s']:,.0f} images/s"
            )
        else:
            self.log(
                f"{row['split']}, {row['checkpoint']} parameters (step {row['step']}): "
                f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.2%}  {_top5(row)}".rstrip()
            )

    def log(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        self._last_line = time.monotonic()
        self.console.print(text, soft_wrap=True, markup=False)


def _top5(row: dict[str, Any]) -> str:
    return f"top-5 {row['top5']:.2%}  " if "top5" in row else ""
