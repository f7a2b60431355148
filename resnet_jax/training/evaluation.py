"""What an evaluation found."""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """A classifier's result on a split; every example counted once.

    Attributes:
        loss: mean cross-entropy in nats, without label smoothing.
        confusion: ``int64[K, K]``, examples by label (row) and prediction (column).
        class_names: K names.
    """

    loss: float
    confusion: np.ndarray
    class_names: tuple[str, ...]

    @property
    def count(self) -> int:
        """Examples evaluated."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Examples whose most probable class is their label."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """``correct / count``, a fraction; NaN for no examples."""
        return self.correct / self.count if self.count else float("nan")

    @property
    def per_class(self) -> dict[str, dict[str, float | int | None]]:
        """For each class: ``count``, ``recall`` and ``precision``; None where undefined."""
        hits = np.diag(self.confusion)
        of_label, of_prediction = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        return {
            name: {
                "count": int(of_label[k]),
                "recall": float(hits[k] / of_label[k]) if of_label[k] else None,
                "precision": float(hits[k] / of_prediction[k]) if of_prediction[k] else None,
            }
            for k, name in enumerate(self.class_names)
        }

    def _repr_html_(self) -> str:
        """What a notebook shows: the result, and a row for each class."""
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{row['count']}</td>"
            + "".join(
                f"<td>{'-' if row[key] is None else format(row[key], '.2%')}</td>"
                for key in ("recall", "precision")
            )
            + "</tr>"
            for name, row in self.per_class.items()
        )
        return (
            f"<p>accuracy <b>{self.accuracy:.2%}</b> ({self.correct} of {self.count}), "
            f"loss {self.loss:.4f}</p><table><tr><th>class</th><th>examples</th><th>recall</th>"
            f"<th>precision</th></tr>{cells}</table>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `resnet-jax evaluate --json` prints them."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "correct": self.correct,
            "count": self.count,
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }
