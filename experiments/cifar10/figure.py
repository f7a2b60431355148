"""Training and test error by update, side by side, as in figure 6 of arXiv 1512.03385.

Command:   python -m experiments.cifar10.figure     (the picture, from the rows)
           python -m experiments.tables             (the tables of README.md)
Result:    docs/images/cifar10.png
"""

import statistics

import numpy as np
from matplotlib.figure import Figure

from experiments.cifar10.__main__ import RESULTS
from experiments.measuring import Row, interval, read_rows
from experiments.plotting import BLUE, GREEN, ORANGE, PINK, panels
from experiments.tables import ROOT, table

COLOURS = dict(zip((20, 32, 44, 56), (BLUE, GREEN, PINK, ORANGE), strict=True))
Key = tuple[int, bool, str]  # layers, residual, shortcut


def networks(recipe: str = "short") -> dict[Key, list[Row]]:
    """Return the rows of each network, here in the paper's schedule."""
    groups: dict[Key, list[Row]] = {}
    for row in read_rows(RESULTS, recipe=recipe):
        groups.setdefault((row["depth"], row["residual"], row["shortcut"]), []).append(row)
    return dict(sorted(groups.items()))


def name_of(key: Key) -> str:
    depth, residual, shortcut = key
    option = " with option B" * (shortcut == "projection")
    return f"{'residual' if residual else 'plain'} {depth}{option}"


def draw() -> Figure:
    figure, (axes,) = panels((9, 3.6), ("train error, %", "test error, %"), sharey=True)
    for axis, part in zip(axes, ("train", "test"), strict=True):
        for key, seeds in networks().items():
            depth, residual, shortcut = key
            if shortcut == "pad":
                steps, errors = np.mean([row[part] for row in seeds], 0).T
                style = "-" if residual else "--"
                axis.plot(steps, 100 * errors, style, color=COLOURS[depth], label=name_of(key))
        axis.set(xlabel="update", ylim=(0, 80))
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def percent(errors: list[float]) -> str:
    low, high = interval(errors)
    between = f" ({low:.2%} to {high:.2%})" if len(errors) > 1 else ""
    return f"{statistics.fmean(errors):.2%}{between}"


def errors() -> str:
    """Tabulate each network's training error at the end, and its test error."""
    lines = []
    for key, seeds in networks().items():
        trained = percent([row["train"][-1][1] for row in seeds])
        tested = percent([row["test_error"] for row in seeds])
        lines.append([name_of(key), len(seeds), trained, tested])
    head = ("network", "seeds", "training error, last 100 updates", "test error")
    return table(head, lines)


def test_error(depth: int, residual: bool) -> str:
    seeds = networks()[depth, residual, "pad"]
    return f"{statistics.fmean(row['test_error'] for row in seeds):.0%}"


def passes(error: float) -> str:
    """Extrapolate to a test error, by a power law through ResNet-20's trainings of two lengths."""
    found = [networks(recipe)[20, True, "pad"] for recipe in ("short", "cifar10_fast")]
    errors = [statistics.fmean(row["test_error"] for row in seeds) for seeds in found]
    slope, start = np.polyfit(np.log(errors), np.log([s[0]["test"][-1][0] for s in found]), 1)
    return f"{np.exp(start) * error**slope * 128 / 50_000:.0f}"


def recipes() -> str:
    lines, names = [], dict.fromkeys(row["recipe"] for row in read_rows(RESULTS))
    for recipe in (name for name in names if name != "short"):
        found = read_rows(RESULTS, recipe=recipe)
        accuracies, where = [1 - row["test_error"] for row in found], found[0]["machine"]
        mean, each = f"**{statistics.fmean(accuracies):.2%}**", (f"{a:.2%}" for a in accuracies)
        times = " ".join(f"{row['seconds']:.0f} s" for row in found)
        device = where.get("device", where["processor"])
        what = "`{}`{}{}".format(*recipe.partition(" "))
        lines.append([what, mean, " ".join(each), times, device])
    return table(("preset", "test accuracy, mean", "each seed", "time of each", "on"), lines)


if __name__ == "__main__":
    draw().savefig(ROOT / "docs/images/cifar10.png", dpi=110)
