"""Callbacks: code of the user's that a run calls while it trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.training.metrics import Evaluation


class Callback:
    """Follows a run; override what is of interest. Of several processes only process 0 calls.

    A run that resumes calls ``on_start`` with the step that it resumes from: steps after it come
    again.
    """

    def on_start(self, step: int, total_steps: int) -> None:
        """Training begins at ``step``, or goes on from it."""

    def on_step(self, step: int) -> None:
        """``step`` updates are done; called at every step."""

    def on_metrics(self, row: dict[str, Any]) -> None:
        """A line of ``metrics.jsonl`` was written."""

    def on_evaluate(self, step: int, split: str, evaluation: "Evaluation") -> None:
        """A split was evaluated: ``validation``, or at the end ``test`` and ``test_all``."""

    def on_save(self, step: int, path: Path) -> None:
        """A checkpoint was written to the folder ``path``."""

    def log(self, text: str) -> None:
        """Take a sentence for the user."""
