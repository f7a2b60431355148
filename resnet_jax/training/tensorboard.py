"""TensorBoard events of a run, beside ``metrics.jsonl`` and of the same numbers."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.callbacks import Callback

NOT_SCALARS = {"step", "epoch", "kind", "split", "checkpoint", "last"}


class Events(Callback):
    """Writes each row of metrics as event files, by tensorboardX; no TensorFlow is needed.

    A run that resumes drops metrics of steps after its checkpoint. Event files cannot be cut, so
    what is in ``folder`` is replaced by ``rows`` at the start; a TensorBoard that is open follows.
    """

    def __init__(self, folder: Path, rows: Iterable[dict[str, Any]] = ()) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ResNetJaxError(
                "--tensorboard needs tensorboardX: pip install 'resnet_jax[tensorboard]', or give "
                "--no-tensorboard"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), purge_step=0)
        for row in rows:
            self.on_metrics(row)

    def on_metrics(self, row: dict[str, Any]) -> None:
        """Write a scalar for each number: ``train/loss``, ``test_best/accuracy``."""
        kind = row["kind"]
        if kind == "test":
            kind = f"{row['split']}_{row['checkpoint']}"
        for name in row.keys() - NOT_SCALARS:
            self._writer.add_scalar(f"{kind}/{name}", row[name], row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
