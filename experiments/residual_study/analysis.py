"""Every number of the pages: means, spreads, and bootstrap intervals of differences.

The pages carry expressions in comments, ``<!-- gain("book", 18, 0.005) -->``; `report.py` puts
their values behind them, and a test fails where a value is another one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from .results import RESULTS, read
from .study import Network, Norm, keeps_shape, runs

HERE = Path(__file__).parent
Images = Literal["another draw", "the same"]
MISSING = "not yet measured"
# The squares that a norm adds up are below the smallest float32 before the norm is: not resolved.
SMALLEST_NORM = 1e-15


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean of values, by 10,000 resamplings.

    It covers what the seeds vary: parameters and order of the images, not the draw of the images.
    With five seeds such an interval is somewhat too narrow.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return float(np.mean(values)), float(np.mean(values))
    found = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True)
class Difference:
    """A mean difference in points, over seeds that both sides have."""

    values: np.ndarray

    def __str__(self) -> str:
        if not len(self.values):
            return MISSING
        count = len(self.values)
        if count == 1:
            return f"{self.values[0]:+.1f} points (1 seed)"
        low, high = interval(self.values)
        return f"{self.values.mean():+.1f} points ({low:+.1f} to {high:+.1f}, {count} seeds)"


class Study:
    """The finished runs, and what they say.

    Attributes:
        frame: a row for each run; ``accuracy`` is in %, of all test images.
    """

    def __init__(self, path: Path = RESULTS) -> None:
        rows = [{**row, "accuracy": 100 * row["test"]["accuracy"]} for row in read(path)]
        self.frame = pd.DataFrame(rows)

    def select(self, setting: str, layers: int, residual: bool, rate: float, norm: Norm = "batch"):
        """The runs of one network with one rate, by seed."""
        f = self.frame
        found = f[
            (f["setting"] == setting)
            & (f["layers"] == layers)
            & (f["residual"] == residual)
            & (f["rate"] == rate)
            & (f["norm"] == norm)
        ]
        return found.set_index("seed").sort_index()

    # What the expressions in the pages call: each returns text.

    def accuracy(self, setting: str, kind: str, layers: int, rate: float, norm: Norm = "batch"):
        """``92.5 ± 0.2 % (10 seeds)``: mean and standard deviation."""
        values = self.select(setting, layers, kind == "residual", rate, norm)["accuracy"]
        if not len(values):
            return MISSING
        spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
        return f"{values.mean():.1f}{spread} % ({_seeds(len(values))})"

    def gain(self, setting: str, layers: int, rate: float, norm: Norm = "batch") -> str:
        """Residual minus plain, at the same rate."""
        one, other = (self.select(setting, layers, r, rate, norm) for r in (True, False))
        return _difference(one, other)

    def rate_effect(self, kind: str, layers: int) -> str:
        """What 0.01 instead of 0.005 does to a network in the book's setting."""
        low, high = (
            self.select("book", layers, kind == "residual", rate) for rate in (0.005, 0.01)
        )
        return _difference(high, low)

    def books_comparison(self, layers: int) -> str:
        """The residual network at 0.01 minus the plain one at 0.005: two causes in one number."""
        return _difference(
            self.select("book", layers, True, 0.01), self.select("book", layers, False, 0.005)
        )

    def deepening(
        self, setting: str, kind: str, deep: int, shallow: int, rate: float, norm: Norm = "batch"
    ) -> str:
        """A deeper network minus a shallower one."""
        one, other = (
            self.select(setting, layers, kind == "residual", rate, norm)
            for layers in (deep, shallow)
        )
        return _difference(one, other)

    def against_pytorch(
        self, kind: str, layers: int, rate: float, images: Images = "another draw"
    ) -> str:
        """Our mean minus PyTorch's, with an interval of the difference of two means."""
        ours = self.select("book", layers, kind == "residual", rate)["accuracy"].to_numpy()
        theirs = pytorch(layers, kind == "residual", rate, images)
        if not len(ours) or not len(theirs):
            return MISSING
        difference = ours.mean() - theirs.mean()
        if min(len(ours), len(theirs)) < 2:
            return f"{difference:+.1f} points ({_seeds(len(ours))} here, {len(theirs)} in PyTorch)"
        found = bootstrap(
            (ours, theirs),
            lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
            n_resamples=10_000, method="percentile", vectorized=True, rng=0,
        ).confidence_interval  # fmt: skip
        return (
            f"{difference:+.1f} points ({found.low:+.1f} to {found.high:+.1f}, "
            f"{_seeds(len(ours))} here, {len(theirs)} in PyTorch)"
        )

    def gradient_ratio(
        self, setting: str, kind: str, layers: int, rate: float, norm: Norm = "batch", look: int = 0
    ) -> str:
        """Gradient norm of the first unit's first layer over the last unit's last, geometric mean.

        ``look`` 0 is at initialisation, -1 at the last step.
        """
        found = self.select(setting, layers, kind == "residual", rate, norm)
        if found.empty:
            return MISSING
        norms = np.array([g["norm"][look] for g in found["gradient"]], float)
        if (norms[:, [1, -2]] < SMALLEST_NORM).any():
            return f"not to be told (norms below {SMALLEST_NORM:g})"
        ratios = norms[:, 1] / norms[:, -2]
        logs = np.log(ratios)
        if len(logs) == 1:
            return f"{_plain(ratios[0])} (1 seed)"
        low, high = np.exp(interval(logs))
        return f"{_plain(np.exp(logs.mean()))} ({_plain(low)} to {_plain(high)})"

    def shortcut_share(
        self, setting: str, layers: int, rate: float, unit: str, look: int, norm: Norm = "batch"
    ) -> str:
        """Share of the shortcut in a unit's sum, mean over seeds; ``unit`` as named, or "identity".

        "identity" is the mean over all units whose shortcut is the identity.
        """
        found = self.select(setting, layers, True, rate, norm)
        network = Network(layers, True)
        chosen = [n == unit or (unit == "identity" and keeps_shape(n)) for n in network.units]
        shares = [np.mean(np.array(s["share"][look])[chosen]) for s in found.get("shortcut", ())]
        return f"{100 * np.mean(shares):.0f} %" if shares else MISSING

    def removal(self, setting: str, kind: str, layers: int, rate: float) -> str:
        """Accuracy lost by leaving out one unit that keeps the shape: median, least and most."""
        lost = self.lost_by_removal(setting, kind == "residual", layers, rate)
        if lost.empty:
            return MISSING
        by_unit = lost.groupby("unit", sort=False)["lost"].mean()
        return (
            f"{by_unit.median():.1f} points in the median unit ({by_unit.min():.1f} to "
            f"{by_unit.max():.1f}, {_seeds(lost['seed'].nunique())})"
        )

    def lost_by_removal(
        self, setting: str, residual: bool, layers: int, rate: float
    ) -> pd.DataFrame:
        """A row for each seed and each unit whose shortcut is (or could be) the identity."""
        found = self.select(setting, layers, residual, rate)
        names = Network(layers, residual).units
        return pd.DataFrame(
            [
                {"seed": seed, "unit": name, "lost": 100 * (result["whole"] - accuracy)}
                for seed, result in found.get("removal", pd.Series(dtype=object)).dropna().items()
                for name, accuracy in zip(names, result["without"], strict=True)
                if keeps_shape(name)
            ]
        )

    def sweep(self, kind: str, layers: int, norm: Norm = "batch") -> pd.DataFrame:
        """Accuracy by rate in the book's setting, the seeds that every rate has."""
        f = self.frame
        found = f[
            (f["setting"] == "book")
            & (f["layers"] == layers)
            & (f["residual"] == (kind == "residual"))
            & (f["norm"] == norm)
            & (f["seed"] < 3)
        ]
        return found.pivot_table(index="rate", columns="seed", values="accuracy")

    def usable_rates(self, kind: str, layers: int) -> str:
        """The rates whose mean accuracy is within five points of the network's best."""
        means = self.sweep(kind, layers).mean(axis=1)
        if len(means) < 3:
            return MISSING
        usable = means[means > means.max() - 5].index
        if len(usable) == 1:
            return f"{usable[0]:g} alone"
        return f"{usable.min():g} to {usable.max():g} (best {means.idxmax():g})"

    def done(self) -> str:
        """How much of the study the numbers come from."""
        wanted = [run.key for run in runs()]
        keys = [{name: row[name] for name in wanted[0]} for row in self.frame.to_dict("records")]
        count = sum(key in keys for key in wanted)
        partial = "" if count == len(wanted) else "partial: "
        return f"{partial}{count} of {len(wanted)} runs"

    def hours(self) -> str:
        """Time of the runs together, as measured."""
        return f"{self.frame['seconds'].sum() / 3600:.1f} hours"

    def longest(self) -> str:
        """The longest training."""
        return f"{self.frame['seconds'].max() / 60:.0f} minutes"

    # Tables.

    def table_of_accuracy(self, setting: str, norm: Norm = "batch") -> str:
        """Mean and spread of every network and rate of a setting, and the gains."""
        f = self.frame
        chosen = f[(f["setting"] == setting) & (f["norm"] == norm)]
        lines = ["| layers | rate | plain | residual | residual - plain |", "|---|---|---|---|---|"]
        for (layers, rate), _ in chosen.groupby(["layers", "rate"]):
            cells = [self.accuracy(setting, k, layers, rate, norm) for k in ("plain", "residual")]
            gain = self.gain(setting, layers, rate, norm)
            lines.append(f"| {layers} | {rate:g} | {' | '.join(cells)} | {gain} |")
        return "\n" + "\n".join(lines) + "\n"

    def table_of_pytorch(self) -> str:
        """Ours beside PyTorch's."""
        lines = [
            "| layers | rate | network | here | PyTorch's images | PyTorch | difference |",
            "|---|---|---|---|---|---|---|",
        ]
        groups = PYTORCH.groupby(["layers", "rate", "residual", "images"])
        for (layers, rate, residual, images), found in groups:
            kind = "residual" if residual else "plain"
            lines.append(
                f"| {layers} | {rate:g} | {kind} | {self.accuracy('book', kind, layers, rate)} "
                f"| {images} | {found['accuracy'].mean():.1f} % "
                f"| {self.against_pytorch(kind, layers, rate, images)} |"
            )
        return "\n" + "\n".join(lines) + "\n"

    def table_of_torchvision(self) -> str:
        """Logits of our ResNet-18 and torchvision's with the same weights."""
        from .torchvision import stored_table

        return "\n" + stored_table() + "\n"

    def torchvision_difference(self) -> str:
        """The largest difference of logits, relative to the largest logit of an image's size."""
        rows = json.loads((HERE / "torchvision.json").read_text())["rows"]
        return f"{max(r['largest_difference'] / r['largest_logit'] for r in rows):.1e}"

    @cached_property
    def names(self) -> dict[str, Callable[..., str]]:
        """What an expression in a page may call."""
        own = (name for name in vars(Study) if not name.startswith("_"))
        return {name: getattr(self, name) for name in own if name not in ("names", "select")}


def _pytorch() -> pd.DataFrame:
    """PyTorch's accuracies in the book's setting, in %, a row for each training.

    On the first 1,000 digits, from pytorch.json, and on those of the preset `book`, by
    experiments/presets/book_pytorch.py.
    """
    first = json.loads((HERE / "pytorch.json").read_text())["accuracy"]
    rows = [
        {**row, "images": "another draw", "accuracy": accuracy}
        for row in first
        for accuracy in row["seeds"]
    ]
    rows += [
        {**row, "images": "the same", "rate": 0.005, "accuracy": 100 * row["accuracy"]}
        for row in read(HERE.parent / "presets/book_pytorch.jsonl")
    ]
    return pd.DataFrame(rows)[["layers", "residual", "rate", "images", "accuracy"]]


PYTORCH = _pytorch()


def pytorch(
    layers: int, residual: bool, rate: float, images: Images = "another draw"
) -> np.ndarray:
    """Accuracies of PyTorch in the book's setting, in %, one a seed."""
    wanted = {"layers": layers, "residual": residual, "rate": rate, "images": images}
    found = PYTORCH[(PYTORCH[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return found["accuracy"].to_numpy()


def _difference(one: pd.DataFrame, other: pd.DataFrame) -> str:
    if one.empty or other.empty:
        return MISSING
    return str(Difference((one["accuracy"] - other["accuracy"]).dropna().to_numpy()))


def _plain(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}" if value < 1000 else f"{value:.1e}"


def _seeds(count: int) -> str:
    return f"{count} seed" + "s" * (count != 1)
