"""TensorBoard events of a run, beside ``metrics.jsonl`` and of the same numbers."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resnet_jax.errors import ResNetJaxError

WHERE = {"step", "epoch", "kind", "split", "checkpoint", "last"}


class Events:
    """Event files in a folder, by tensorboardX; TensorFlow has no part in it.

    A run that resumes drops metrics of steps after its checkpoint. Event files cannot be cut, so
    they are written anew from the metrics that are left; a TensorBoard that is open follows.
    """

    def __init__(self, folder: Path, rows: Iterable[dict[str, Any]]) -> None:
        """Replaces what is in ``folder`` by ``rows`` of ``metrics.jsonl``.

        Raises:
            ResNetJaxError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ResNetJaxError(
                "--tensorboard needs tensorboardX: pip install 'resnet_jax[tensorboard]', or give "
                "--no-tensorboard"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), purge_step=0)
        self.add(*rows)

    def add(self, *rows: dict[str, Any]) -> None:
        """Writes rows: a scalar for each number, ``train/loss`` or ``test_best/accuracy``."""
        for row in rows:
            kind = row["kind"]
            if kind == "test":
                kind = f"{row['split']}_{row['checkpoint']}"
            for name in row.keys() - WHERE:
                self._writer.add_scalar(f"{kind}/{name}", row[name], row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()
