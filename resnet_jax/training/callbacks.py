"""What a run tells while it trains."""

from collections.abc import Sequence
from typing import Any


class Callback:
    """Told of a run's progress; override what is of interest. Only process 0 of several tells."""

    def on_start(self, step: int, total_steps: int) -> None:
        """Training goes on from ``step`` of ``total_steps``."""

    def on_step(self, step: int) -> None:
        """``step`` updates are done; called at every step."""

    def on_metrics(self, row: dict[str, Any]) -> None:
        """A line of ``metrics.jsonl`` was written."""

    def log(self, text: str) -> None:
        """A sentence for the user."""


class Callbacks(Callback):
    """Several of them as one."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def on_start(self, step: int, total_steps: int) -> None:
        for callback in self.callbacks:
            callback.on_start(step, total_steps)

    def on_step(self, step: int) -> None:
        for callback in self.callbacks:
            callback.on_step(step)

    def on_metrics(self, row: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_metrics(row)

    def log(self, text: str) -> None:
        for callback in self.callbacks:
            callback.log(text)
