"""The metrics of a run, and what follows from them: whether it is over."""

import math
import time
from collections.abc import Iterable
from typing import Any

from resnet_jax.config import TrainConfig
from resnet_jax.training.callbacks import Callback
from resnet_jax.training.distributed import broadcast_from_main
from resnet_jax.training.run_folder import RunFolder


class History:
    """Records rows of metrics in the run's folder and tells them to the callbacks.

    It begins with the rows of earlier starts, up to the step that the run resumes from. It is
    ``satisfied`` when ``--target`` is reached or ``--patience`` is over.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        rows: list[dict[str, Any]],
        callbacks: Iterable[Callback],
        num_examples: int,
    ) -> None:
        self._config, self._folder, self._callbacks = config, folder, callbacks
        self._num_examples = num_examples
        self._seconds_before = max((row["seconds"] for row in rows), default=0.0)
        self._began = time.perf_counter()
        self._best, self._since_best = -math.inf, 0
        self._tests: list[dict[str, Any]] = []
        self.satisfied = False
        for row in rows:
            self._follow(row)

    def record(self, *rows: dict[str, Any]) -> None:
        """Add rows, all or none of them, with the epoch of their step and the time of training."""
        seconds = round(self._seconds_before + time.perf_counter() - self._began, 3)
        complete = [
            {
                "step": row["step"],
                "epoch": row["step"] * self._config.batch_size / self._num_examples,
                **row,
                "seconds": seconds,
            }
            for row in rows
        ]
        broadcast_from_main(lambda: self._folder.append_metrics(*complete))
        for row in complete:
            self._follow(row)
            for callback in self._callbacks:
                callback.on_metrics(row)

    def tested(self, last: int) -> set[tuple[str, str]]:
        """Return the splits and checkpoints that were tested when the run had ended at a step."""
        return {(row["split"], row["checkpoint"]) for row in self._tests if row["last"] == last}

    def _follow(self, row: dict[str, Any]) -> None:
        if row["kind"] == "test":
            self._tests.append(row)
        if row["kind"] != "validation":
            return
        if row["accuracy"] > self._best:
            self._best, self._since_best = row["accuracy"], 0
        else:
            self._since_best += 1
        target, patience = self._config.target, self._config.patience
        reached = target is not None and row["accuracy"] >= target
        self.satisfied = reached or (patience is not None and self._since_best >= patience)
