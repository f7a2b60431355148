"""The result of an evaluation, and the rows of metrics.jsonl."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from resnet_jax.errors import ResNetJaxError

# The keys of every row, and all keys.
COMMON = {"step", "epoch", "kind", "loss", "accuracy", "seconds"}
KEYS = {*COMMON, "top5", "learning_rate", "grad_norm", "images_per_s"}
KEYS |= {"split", "checkpoint", "last"}


def told_apart(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return class names, numbered if two are equal, as those of a streamed dataset may be."""
    unique = len(set(names)) == len(names)
    return names if unique else tuple(f"#{k} {name}" for k, name in enumerate(names))


def class_numbers(name: str, given: ArrayLike, count: int, num_classes: int) -> np.ndarray:
    """Return classes as ``int64[count]``; raise unless they are whole numbers, 0 to K - 1."""
    found = np.asarray(given, None if np.size(given) else int)
    whole = found.dtype.kind in "biu" and found.shape == (count,)
    if not (whole and 0 <= found.min(initial=0) <= found.max(initial=0) < num_classes):
        numbers = found.size and found.dtype.kind in "biuf"
        span = f" from {found.min()} to {found.max()}" if numbers else ""
        raise ResNetJaxError(
            f"{name} are {found.dtype}{list(found.shape)}{span}: give one for each example, "
            f"int[{count}], 0 to {num_classes - 1}"
        )
    return found.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of a classifier on a split; every example counts once.

    Attributes:
        loss: mean cross-entropy in nats, without label smoothing.
        confusion: ``int64[K, K]``, examples by label (row) and prediction (column).
        class_names: K names.
        correct5: examples whose label is one of the five most probable classes, or None if that was
            not counted.
    """

    loss: float
    confusion: np.ndarray
    class_names: tuple[str, ...]
    correct5: int | None = None

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
    def top5(self) -> float | None:
        """``correct5 / count``; None if unknown, or if five are half of the classes or more."""
        if self.correct5 is None or not self.count or len(self.class_names) <= 10:
            return None
        return self.correct5 / self.count

    @property
    def metrics(self) -> dict[str, float]:
        """``loss``, ``accuracy``, and ``top5`` unless it is None."""
        top5 = {} if self.top5 is None else {"top5": self.top5}
        return {"loss": self.loss, "accuracy": self.accuracy, **top5}

    @property
    def per_class(self) -> dict[str, dict[str, float | int | None]]:
        """For each class: ``count``, ``recall`` and ``precision``; None where undefined."""
        hits, names = np.diag(self.confusion), told_apart(self.class_names)
        of_label, of_prediction = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        return {
            name: {
                "count": int(of_label[k]),
                "recall": float(hits[k] / of_label[k]) if of_label[k] else None,
                "precision": float(hits[k] / of_prediction[k]) if of_prediction[k] else None,
            }
            for k, name in enumerate(names)
        }

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f"top-5 accuracy {self.top5:.2%}, "
        right = f"{self.correct} of {self.count}"
        return f"accuracy {self.accuracy:.2%} ({right}), {top5}loss {self.loss:.4f}"

    def _repr_html_(self) -> str:
        import pandas as pd

        table = pd.DataFrame.from_dict(self.per_class, orient="index")
        rates = dict.fromkeys(("recall", "precision"), "{:.2%}".format)
        return f"<p>{self}</p>{table.to_html(formatters=rates, na_rep='-', max_rows=60)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `resnet-jax evaluate --json` prints them."""
        return {
            **self.metrics,
            "correct": self.correct,
            "count": self.count,
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }


def parse_row(line: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    """Parse a line of ``metrics.jsonl``; raise ValueError if it is no row or its step goes back."""
    row = json.loads(line)
    if not isinstance(row, dict) or not row.keys() >= COMMON:
        raise ValueError(f"no JSON object with {', '.join(sorted(COMMON))}")
    if other := row.keys() - KEYS:
        raise ValueError(f"no row: it has {min(other)!r:.40}")
    for name in row.keys() - {"kind", "split", "checkpoint"}:
        number = row[name]
        most = 2**63 if name in ("step", "last") else 1e300
        if type(number) not in (int, float) or not abs(number) < most:  # a bool is no number
            raise ValueError(f"no row: its {name} is {number!r:.40}")
    if row["kind"] not in ("train", "validation", "test"):
        raise ValueError(f"no row: its kind is {row['kind']!r:.40}")
    names = [row.get(name) for name in ("split", "checkpoint")]
    is_test = row["kind"] == "test" or "last" in row
    if is_test and not all(isinstance(name, str) for name in names):
        raise ValueError("no row: a test has a split and a checkpoint")
    if before and measured_at(row) < measured_at(before[-1]):
        raise ValueError(f"of step {row['step']:g}, after one of {measured_at(before[-1]):g}")
    return row


def measured_at(row: dict[str, Any]) -> int:
    """Return the step at which a row was written; a test's ``step`` is that of its parameters."""
    return int(row.get("last", row["step"]))
