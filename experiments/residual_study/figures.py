"""The figures of the pages, from the data.

Command:   python -m experiments.residual_study.figures [FOLDER]      (needs matplotlib)
Result:    depth, curves, gradient, shortcut, removal, rates, norm: a PNG each
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .analysis import HERE, SMALLEST_NORM, Study
from .study import Network, keeps_shape

# Okabe and Ito's colours, told apart by everyone; lines and markers differ as well.
STYLE = {
    True: {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "residual"},
    False: {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "plain"},
}
SMALL = {"markersize": 4, "linewidth": 1.5}
RATE = 0.005  # of the figures that show one rate


def _panels(rows: int, columns: int, **shared: Any) -> tuple[Figure, np.ndarray]:
    """A figure with at least one column, so that it says so where there is nothing to show."""
    figure = Figure((3.4 * max(columns, 1), 0.4 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, max(columns, 1), squeeze=False, **shared)
    for axes in grid.flat:
        axes.grid(alpha=0.3, linewidth=0.5)
    if not columns:
        grid[0, 0].set_title("not yet measured", fontsize=10)
    return figure, grid


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    fine = high / low < 1e4
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if fine else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, **settings: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, **settings)


def _layers(study: Study, setting: str, norm: str = "batch") -> list[int]:
    f = study.frame
    return sorted(f[(f["setting"] == setting) & (f["norm"] == norm)]["layers"].unique())


def _depth_axes(axes: Axes, study: Study, setting: str, rate: float, norm: str) -> None:
    """A mark for each run and a line through the means."""
    layers = _layers(study, setting, norm)
    for residual, style in STYLE.items():
        found = [study.select(setting, n, residual, rate, norm)["accuracy"] for n in layers]
        points = [(n, values) for n, values in zip(layers, found, strict=True) if len(values)]
        shift = 0.4 if residual else -0.4
        for n, values in points:
            axes.plot(
                np.full(len(values), n + shift), values, style["marker"],
                color=style["color"], alpha=0.35, markersize=4, markeredgewidth=0,
            )  # fmt: skip
        axes.plot([n for n, _ in points], [v.mean() for _, v in points], **style, **SMALL)
    axes.set_xticks(layers)
    axes.set_xlabel("layers")


def depth(study: Study) -> Figure:
    """Accuracy by depth: the book's setting at both rates, and the stronger one."""
    panels = [("book", 0.005, "book, rate 0.005"), ("book", 0.01, "book, rate 0.01")]
    stronger = study.frame.query("setting == 'stronger' and norm == 'batch'")
    if len(stronger):
        panels.append(("stronger", stronger["rate"].iloc[0], "10,000 images, momentum, cosine"))
    figure, row = _panels(1, len(panels))
    for axes, (setting, rate, title) in zip(row[0], panels, strict=False):
        _depth_axes(axes, study, setting, rate, "batch")
        axes.set_title(title, fontsize=10)
    row[0][0].set_ylabel("accuracy on 10,000 test images, %")
    _legend(row[0][0])
    return figure


def norm(study: Study) -> Figure:
    """Accuracy by depth without batch norm."""
    rows = study.frame.query("norm == 'none'")
    panels = sorted({(s, r) for s, r in zip(rows["setting"], rows["rate"], strict=True)})
    panels = [p for p in panels if p[0] == "stronger" or p[1] in (0.005, 0.01)]
    figure, row = _panels(1, len(panels))
    for axes, (setting, rate) in zip(row[0], panels, strict=False):
        _depth_axes(axes, study, setting, rate, "none")
        axes.set_title(f"without batch norm: {setting}, rate {rate:g}", fontsize=10)
        axes.set_ylim(0, 100)
    row[0][0].set_ylabel("accuracy on 10,000 test images, %")
    _legend(row[0][0])
    return figure


def curves(study: Study) -> Figure:
    """Training and validation loss by step: mean over seeds, and from the least to the most."""
    layers = _layers(study, "book")
    figure, grid = _panels(2, len(layers), sharex=True, sharey="row")
    for column, n in zip(grid.T, layers, strict=True):
        for axes, part in zip(column, ("train", "validation"), strict=True):
            for residual, style in STYLE.items():
                found = study.select("book", n, residual, RATE)
                if found.empty:
                    continue
                steps = found[part].iloc[0]["step"]
                loss = np.array([curve["loss"] for curve in found[part]])
                axes.fill_between(
                    steps, loss.min(0), loss.max(0), color=style["color"], alpha=0.2, lw=0
                )
                axes.plot(steps, loss.mean(0), **style, **SMALL)
            _logarithmic(axes)
        column[0].set_title(f"{n} layers, rate {RATE:g}", fontsize=10)
        column[1].set_xlabel("step")
    grid[0, 0].set_ylabel("training loss, nats")
    grid[1, 0].set_ylabel("validation loss, nats")
    _legend(grid[0, 0])
    return figure


def gradient(study: Study) -> Figure:
    """Norm of the gradient of every layer: at initialisation, and while training."""
    layers = _layers(study, "book")
    figure, grid = _panels(2, len(layers))
    for axes, n in zip(grid[0], layers, strict=True):
        for norm_kind in ("batch", "none"):
            for residual, style in STYLE.items():
                found = study.select("book", n, residual, RATE, norm_kind)
                if found.empty:
                    continue
                norms = np.array([g["norm"][0] for g in found["gradient"]], float)
                norms[norms < SMALLEST_NORM] = np.nan  # leaves a gap
                usual = norm_kind == "batch"
                axes.plot(
                    np.arange(1, norms.shape[1] + 1), np.exp(np.log(norms).mean(0)),
                    color=style["color"], linestyle="-" if usual else ":",
                    marker=style["marker"], markersize=2.5, linewidth=1.2,
                    label=style["label"] + ("" if usual else ", no batch norm"),
                )  # fmt: skip
        axes.set_title(f"{n} layers, at initialisation", fontsize=10)
    for axes, n in zip(grid[1], layers, strict=True):
        for residual, style in STYLE.items():
            found = study.select("book", n, residual, RATE)
            if found.empty:
                continue
            steps = found["gradient"].iloc[0]["step"]
            norms = np.array([g["norm"] for g in found["gradient"]], float)
            for layer, mark, what in ((1, "o", "first unit"), (-2, "^", "last unit")):
                axes.plot(
                    steps, np.exp(np.log(norms[:, :, layer]).mean(0)),
                    color=style["color"], marker=mark, markersize=4,
                    linestyle=style["linestyle"], label=f"{style['label']}, {what}",
                )  # fmt: skip
        axes.set_title(f"{n} layers, while training", fontsize=10)
        axes.set_xlabel("step")
    for axes in grid.flat:
        _logarithmic(axes)
    for axes in grid[0]:
        axes.set_xlabel("layer, from the image to the logits")
    for row in grid:
        row[0].set_ylabel("gradient norm of the layer's kernel")
        _legend(row[0], fontsize=8)
    return figure


def shortcut(study: Study) -> Figure:
    """What the shortcut contributes to each unit's sum: at initialisation and after training."""
    layers = _layers(study, "book")
    figure, row = _panels(1, len(layers), sharey=True)
    for axes, n in zip(row[0], layers, strict=True):
        found = study.select("book", n, True, RATE)
        if found.empty:
            continue
        shares = 100 * np.array([s["share"] for s in found["shortcut"]])
        at = np.arange(1, shares.shape[2] + 1)
        for look, color, mark, line in (
            (0, "#56B4E9", "o", ":"), (-1, "#0072B2", "D", "-"),
        ):  # fmt: skip
            step = found["shortcut"].iloc[0]["step"][look]
            mean = shares[:, look].mean(0)
            axes.plot(
                at, mean, color=color, marker=mark, linestyle=line, **SMALL,
                label="at initialisation" if look == 0 else f"at step {step}",
            )  # fmt: skip
        for i, unit in zip(at, Network(n, True).units, strict=True):
            if not keeps_shape(unit):
                axes.axvline(i, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
        axes.set_title(f"{n} layers", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("unit (dashed: its shortcut is a projection)")
    row[0][0].set_ylabel("share of the shortcut in the sum, %")
    _legend(row[0][0])
    return figure


def removal(study: Study) -> Figure:
    """Accuracy of trained networks without one of their units."""
    layers = _layers(study, "book")
    figure, row = _panels(1, len(layers), sharey=True)
    for axes, n in zip(row[0], layers, strict=True):
        for residual, style in STYLE.items():
            found = study.select("book", n, residual, RATE).get("removal")
            if found is None or found.dropna().empty:
                continue
            found = found.dropna()
            without = 100 * np.array([r["without"] for r in found], float)
            at = np.arange(1, without.shape[1] + 1)
            axes.plot(at, without.mean(0), **style, **SMALL)
            whole = 100 * np.mean([r["whole"] for r in found])
            axes.axhline(whole, color=style["color"], linewidth=0.8, linestyle=":")
        axes.set_title(f"{n} layers", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("unit left out")
        axes.set_ylim(0, 100)
    row[0][0].set_ylabel("accuracy on 1,000 test images, %\n(dotted: the whole network)")
    _legend(row[0][0], loc="center right", bbox_to_anchor=(1, 0.36))
    return figure


def rates(study: Study) -> Figure:
    """Accuracy by learning rate in the book's setting."""
    layers = [n for n in _layers(study, "book") if len(study.sweep("residual", n)) > 2]
    figure, row = _panels(1, len(layers), sharey=True)
    for axes, n in zip(row[0], layers, strict=False):
        for style in STYLE.values():
            table = study.sweep(style["label"], n)
            if table.empty:
                continue
            axes.fill_between(
                table.index, table.min(axis=1), table.max(axis=1),
                color=style["color"], alpha=0.2, lw=0,
            )  # fmt: skip
            axes.plot(table.index, table.mean(axis=1), **style, **SMALL)
        axes.set_xscale("log")
        axes.set_title(f"{n} layers", fontsize=10)
        axes.set_xlabel("learning rate")
        axes.set_ylim(0, 100)
    row[0][0].set_ylabel("accuracy on 10,000 test images, %")
    _legend(row[0][0], loc="lower left")
    return figure


FIGURES: dict[str, Callable[[Study], Figure]] = {
    f.__name__: f for f in (depth, curves, gradient, shortcut, removal, rates, norm)
}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    study = Study()
    for name, draw in FIGURES.items():
        draw(study).savefig(folder / f"{name}.png", dpi=110)
