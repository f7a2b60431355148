"""What do the finished runs say? Means, spreads and intervals: every number of the pages.

Command:   python -m experiments.tables     (writes them; figures.py and results.ipynb draw them)
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.measuring import count_seeds, interval, mean_and_sd, read_json, read_rows
from experiments.presets.measure import accuracies_of
from experiments.residual_study.study import RESULTS, keeps_shape, runs, units_of
from experiments.tables import MISSING, table

# Smaller norms are not resolved, because the squares that they sum underflow float32 first.
SMALLEST_NORM = 1e-15


class Study:
    def __init__(self, path: Path = RESULTS) -> None:
        rows = [{**row, "accuracy": 100 * row["test"]["accuracy"]} for row in read_rows(path)]
        self.frame = pd.DataFrame(rows)
        self.frame["kind"] = np.where(self.frame["residual"], "residual", "plain")

    def select(self, setting: str, kind: str, layers: int, rate: float, norm: str = "batch"):
        found = self.frame.query(
            "setting == @setting and kind == @kind and layers == @layers and rate == @rate "
            "and norm == @norm"
        )
        return found.set_index("seed").sort_index()

    def accuracy(self, *which: Any) -> str:
        """``92.5 ± 0.2 % (10 seeds)``: mean and standard deviation."""
        values = self.select(*which)["accuracy"]
        return f"{mean_and_sd(values, 1)} % ({count_seeds(values)})" if len(values) else MISSING

    def difference(self, one: tuple, other: tuple) -> str:
        """Return one network's accuracy less another's over common seeds; `select` takes each."""
        found = (self.select(*one)["accuracy"] - self.select(*other)["accuracy"]).dropna()
        if found.empty:
            return MISSING
        spread = "{:+.1f} to {:+.1f}, ".format(*interval(found)) if len(found) > 1 else ""
        return f"{found.mean():+.1f} points ({spread}{count_seeds(found)})"

    def gain(self, setting: str, *which: Any) -> str:
        return self.difference((setting, "residual", *which), (setting, "plain", *which))

    def against_pytorch(self, kind: str, layers: int, rate: float, images: str = "the first 1,000"):
        ours = self.select("book", kind, layers, rate)["accuracy"]
        theirs = pytorch().query(
            "kind == @kind and layers == @layers and rate == @rate and images == @images"
        )["accuracy"]
        if not len(ours) or not len(theirs):
            return MISSING
        seeds = f"{count_seeds(ours)} here, {len(theirs)} in PyTorch"
        if min(len(ours), len(theirs)) > 1:
            seeds = "{:+.1f} to {:+.1f}, ".format(*interval(ours, theirs)) + seeds
        return f"{ours.mean() - theirs.mean():+.1f} points ({seeds})"

    def gradient_ratio(self, *which: Any) -> str:
        """Return initial gradient norm, first unit's first layer over last unit's last layer."""
        found = self.select(*which)
        if found.empty:
            return MISSING
        norms = np.array([gradient["norm"][0] for gradient in found["gradient"]], float)
        if (norms[:, [1, -2]] < SMALLEST_NORM).any():
            return f"not to be told (norms below {SMALLEST_NORM:g})"
        logs = np.log(norms[:, 1] / norms[:, -2])
        mean, low, high = map(_short, np.exp([logs.mean(), *interval(logs)]))
        return f"{mean} ({low} to {high})"

    def shortcut_share(self, setting: str, layers: int, rate: float, unit: str, look: int) -> str:
        """Return the shortcut's share of a unit's sum, or its mean over "identity" shortcuts."""
        found = self.select(setting, "residual", layers, rate)
        chosen = [n == unit or (unit == "identity" and keeps_shape(n)) for n in units_of(layers)]
        shares = [np.mean(np.array(s["share"][look])[chosen]) for s in found.get("shortcut", ())]
        return f"{100 * np.mean(shares):.0f} %" if shares else MISSING

    def removal(self, setting: str, kind: str, layers: int, rate: float) -> str:
        """Return accuracy lost without one unit that keeps the shape: median, least and most."""
        found = self.select(setting, kind, layers, rate).get("removal", pd.Series()).dropna()
        if found.empty:
            return MISSING
        kept = list(map(keeps_shape, units_of(layers)))
        left = np.array([result["without"] for result in found])[:, kept].astype(float)
        lost = 100 * (np.array([[result["whole"]] for result in found]) - left).mean(axis=0)
        between = f"{lost.min():.1f} to {lost.max():.1f}, {count_seeds(found)}"
        return f"{np.median(lost):.1f} points in the median unit ({between})"

    def sweep(self, kind: str, layers: int) -> pd.DataFrame:
        """Return accuracy by rate in the book's setting, for the seeds that every rate has."""
        found = self.frame.query(
            "setting == 'book' and layers == @layers and kind == @kind and norm == 'batch' "
            "and seed < 3"
        )
        return found.pivot_table(index="rate", columns="seed", values="accuracy")

    def usable_rates(self, kind: str, layers: int) -> str:
        """Return the rates whose mean accuracy is within five points of the network's best."""
        means = self.sweep(kind, layers).mean(axis=1)
        if len(means) < 3:
            return MISSING
        usable = means[means > means.max() - 5].index
        if len(usable) == 1:
            return f"{usable[0]:g} alone"
        return f"{usable.min():g} to {usable.max():g}"

    def done(self) -> str:
        return f"{len(self.frame)} of {len(runs())} runs"

    def hours(self) -> str:
        return f"{self.frame['seconds'].sum() / 3600:.1f} hours"

    def longest(self) -> str:
        return f"{self.frame['seconds'].max() / 60:.0f} minutes"

    def table_of_accuracy(self, setting: str, norm: str = "batch") -> str:
        lines, chosen = [], self.frame.query("setting == @setting and norm == @norm")
        for (layers, rate), _ in chosen.groupby(["layers", "rate"]):
            cells = [self.accuracy(setting, k, layers, rate, norm) for k in ("plain", "residual")]
            lines.append([layers, f"{rate:g}", *cells, self.gain(setting, layers, rate, norm)])
        return table(["layers", "rate", "plain", "residual", "residual - plain"], lines)

    def table_of_pytorch(self) -> str:
        lines = []
        groups = pytorch().groupby(["layers", "rate", "kind", "images"])["accuracy"]
        for (layers, rate, kind, images), theirs in groups:
            ours = self.accuracy("book", kind, layers, rate)
            difference = self.against_pytorch(kind, layers, rate, images)
            mean = f"{theirs.mean():.1f} %"
            lines.append([layers, f"{rate:g}", kind, ours, images, mean, difference])
        head = ["layers", "rate", "network", "here", "PyTorch's images", "PyTorch", "difference"]
        return table(head, lines)


@cache
def pytorch() -> pd.DataFrame:
    """Return PyTorch's accuracies (%) in the book's setting, on the first 1,000 digits and ours."""
    rows = [
        {**row, "images": "the first 1,000", "accuracy": accuracy}
        for row in read_json(RESULTS.with_name("pytorch.json"))["accuracy"]
        for accuracy in row["seeds"]
    ]
    networks = {"": (18, True), "_plain": (18, False), "34": (34, True), "34_plain": (34, False)}
    rows += [
        {"layers": layers, "residual": residual, "images": "the same", "rate": 0.005, "accuracy": a}
        for name, (layers, residual) in networks.items()
        for a in accuracies_of(f"book{name}_pytorch")
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(kind=np.where(frame["residual"], "residual", "plain"))


def values() -> dict:
    study = Study()
    return {name: getattr(study, name) for name in vars(Study) if not name.startswith("_")}


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}" if value < 1000 else f"{value:.1e}"
