"""What do the finished runs look like? The figures of the pages and of the notebook.

Command:   python -m experiments.residual_study.figures     (the folder figures/)
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.plotting import BLUE, ORANGE, SKY, logarithmic, panels
from experiments.residual_study.analysis import SMALLEST_NORM, Study
from experiments.residual_study.study import BOOK_RATES, RESULTS, keeps_shape, units_of

STYLE = {
    "residual": {"color": BLUE, "marker": "o", "linestyle": "-", "label": "residual"},
    "plain": {"color": ORANGE, "marker": "s", "linestyle": "--", "label": "plain"},
}
SMALL = {"markersize": 4, "linewidth": 1.5}
RATE = 0.005  # of the figures that show one rate
ACCURACY = "accuracy on 10,000 test images, %"


def _panels(titles: list[str], rows: int = 1, **shared: Any) -> tuple[Figure, np.ndarray]:
    return panels((3.4 * len(titles), 0.4 + 2.8 * rows), titles, rows, **shared)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    logarithmic(axes.yaxis, subs=(1, 3) if high / low < 1e4 else (1,))


def _layers(study: Study, setting: str = "book", norm: str = "batch") -> list[int]:
    found = study.frame.query("setting == @setting and norm == @norm")
    return sorted(found["layers"].unique())


def _book(
    study: Study, row: Iterable[Axes], norm: str = "batch"
) -> Iterator[tuple[Axes, int, str, dict[str, Any], pd.DataFrame]]:
    """Yield the runs of the book's setting at `RATE`, each kind of network on its depth's axes."""
    for (axes, n), (kind, style) in product(zip(row, _layers(study), strict=False), STYLE.items()):
        found = study.select("book", kind, n, RATE, norm)
        if len(found):
            yield axes, n, kind, style, found


def _band(axes: Axes, at: Any, values: np.ndarray, style: dict[str, Any]) -> None:
    """Draw the mean over seeds, and a band from the least to the most."""
    axes.fill_between(
        at, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.2, lw=0
    )
    axes.plot(at, values.mean(axis=0), **style, **SMALL)


def _by_depth(study: Study, titles: dict[tuple[str, float], str], norm: str) -> Figure:
    figure, grid = _panels(list(titles.values()))
    for axes, (setting, rate) in zip(grid[0], titles, strict=True):
        layers = _layers(study, setting, norm)
        for kind, style in STYLE.items():
            found = {n: study.select(setting, kind, n, rate, norm)["accuracy"] for n in layers}
            for n, values in found.items():
                at = np.full(len(values), n + (0.4 if kind == "residual" else -0.4))
                faint = {"alpha": 0.35, "markersize": 4, "markeredgewidth": 0}
                axes.plot(at, values, style["marker"], color=style["color"], **faint)
            axes.plot(layers, [v.mean() for v in found.values()], **style, **SMALL)
        axes.set(xticks=layers, xlabel="layers")
    grid[0, 0].set_ylabel(ACCURACY)
    grid[0, 0].legend(frameon=False)
    return figure


def depth(study: Study) -> Figure:
    titles = {("book", rate): f"book, rate {rate:g}" for rate in BOOK_RATES}
    titles["stronger", 0.02] = "10,000 images, momentum, cosine"
    return _by_depth(study, titles, "batch")


def norm(study: Study) -> Figure:
    shown = (*(("book", rate) for rate in BOOK_RATES), ("stronger", 0.005))
    titles = {(s, rate): f"without batch norm: {s}, rate {rate:g}" for s, rate in shown}
    figure = _by_depth(study, titles, "none")
    for axes in figure.axes:
        axes.set_ylim(0, 100)
    return figure


def curves(study: Study) -> Figure:
    titles = [f"{n} layers, rate {RATE:g}" for n in _layers(study)]
    figure, grid = _panels(titles, 2, sharex=True, sharey="row")
    names = {"train": "training", "validation": "validation"}
    for (part, name), row in zip(names.items(), grid, strict=True):
        for axes, _, _, style, found in _book(study, row):
            loss = np.array([curve["loss"] for curve in found[part]])
            _band(axes, found[part].iloc[0]["step"], loss, style)
        for axes in row:
            _logarithmic(axes)
        row[0].set_ylabel(f"{name} loss, nats")
    for axes in grid[1]:
        axes.set_xlabel("step")
    grid[0, 0].legend(frameon=False)
    return figure


def _norms(found: pd.DataFrame) -> np.ndarray:
    """Return gradient norms by look and layer, geometric means over seeds; NaN if unresolved."""
    norms = np.array([gradient["norm"] for gradient in found["gradient"]], float)
    norms[norms < SMALLEST_NORM] = np.nan
    return np.exp(np.log(norms).mean(axis=0))


def gradient(study: Study) -> Figure:
    """Draw gradient norms: of every layer at initialisation, and of two layers while training."""
    layers = _layers(study)
    figure, grid = _panels([f"{n} layers, at initialisation" for n in layers], 2)
    for norm_kind, line in (("batch", "-"), ("none", ":")):
        for first, n, _, style, found in _book(study, grid[0], norm_kind):
            norms, label = _norms(found), style["label"]
            shown = {"color": style["color"], "marker": style["marker"], "linestyle": line}
            shown["label"] = label + ("" if norm_kind == "batch" else ", no batch norm")
            at = np.arange(1, norms.shape[1] + 1)
            first.plot(at, norms[0], markersize=2.5, linewidth=1.2, **shown)
            if norm_kind == "none":
                continue
            steps = found["gradient"].iloc[0]["step"]
            for layer, mark, what in ((1, "o", "first unit"), (-2, "^", "last unit")):
                shown = {"marker": mark, "markersize": 4, "linestyle": style["linestyle"]}
                shown |= {"color": style["color"], "label": f"{label}, {what}"}
                grid[1, layers.index(n)].plot(steps, norms[:, layer], **shown)
    for n, first, later in zip(layers, *grid, strict=False):
        later.set_title(f"{n} layers, while training", fontsize=10)
        later.set_xlabel("step")
        first.set_xlabel("layer, from the image to the logits")
    for axes in grid.flat:
        _logarithmic(axes)
    for row in grid:
        row[0].set_ylabel("gradient norm of the layer's kernel")
        row[0].legend(frameon=False, fontsize=8)
    return figure


def _by_unit(study: Study, label: str) -> tuple[Figure, np.ndarray]:
    figure, grid = _panels([f"{n} layers" for n in _layers(study)], sharey=True)
    for axes in grid[0]:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(label)
    return figure, grid[0]


def shortcut(study: Study) -> Figure:
    """Draw the shortcut's share of each unit's sum, at initialisation and after training."""
    figure, row = _by_unit(study, "unit (dashed: its shortcut is a projection)")
    for axes, n, kind, _, found in _book(study, row):
        if kind == "plain":
            continue
        shares = 100 * np.array([s["share"] for s in found["shortcut"]]).mean(axis=0)
        at, steps = np.arange(1, shares.shape[1] + 1), found["shortcut"].iloc[0]["step"]
        for look, color, mark, line in ((0, SKY, "o", ":"), (-1, BLUE, "D", "-")):
            label = f"at step {steps[look]}" if look else "at initialisation"
            axes.plot(at, shares[look], color=color, marker=mark, ls=line, label=label, **SMALL)
        for i, unit in zip(at, units_of(n), strict=True):
            if not keeps_shape(unit):
                axes.axvline(i, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    row[0].set_ylabel("share of the shortcut in the sum, %")
    row[0].legend(frameon=False)
    return figure


def removal(study: Study) -> Figure:
    figure, row = _by_unit(study, "unit left out")
    for axes, _, _, style, found in _book(study, row):
        results = found["removal"].dropna()
        without = 100 * np.array([result["without"] for result in results], float)
        at = np.arange(1, without.shape[1] + 1)
        axes.plot(at, without.mean(axis=0), **style, **SMALL)
        whole = 100 * np.mean([result["whole"] for result in results])
        axes.axhline(whole, color=style["color"], linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 100)
    row[0].set_ylabel("accuracy on 1,000 test images, %\n(dotted: the whole network)")
    row[0].legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.36))
    return figure


def rates(study: Study) -> Figure:
    layers = [n for n in _layers(study) if len(study.sweep("residual", n)) > 2]
    figure, grid = _panels([f"{n} layers" for n in layers], sharey=True)
    for axes, n in zip(grid[0], layers, strict=False):
        for kind, style in STYLE.items():
            found = study.sweep(kind, n)
            _band(axes, found.index, found.to_numpy().T, style)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylim(0, 100)
    grid[0, 0].set_ylabel(ACCURACY)
    grid[0, 0].legend(frameon=False, loc="lower left")
    return figure


FIGURES: dict[str, Callable[[Study], Figure]] = {
    f.__name__: f for f in (depth, curves, gradient, shortcut, removal, rates, norm)
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        draw(Study()).savefig(RESULTS.with_name("figures") / f"{name}.png", dpi=110)
