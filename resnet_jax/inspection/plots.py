"""Draw a run's figures, each a `matplotlib.figure.Figure`.

The figures are narrow, so that a phone shows them whole and legibly. Their colours can be told
apart by colour-blind readers and in greyscale: Okabe and Ito's for curves, Petroff's (arXiv
2107.02270) for classes, and the colour maps cividis, inferno and PuOr.

Matplotlib's default font has no Chinese, Japanese or Korean letters: see `shown_names`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any
from unicodedata import bidirectional

import numpy as np
import pandas as pd
from matplotlib import color_sequences, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.rcsetup import cycler
from matplotlib.style import context
from matplotlib.ticker import LogLocator

from resnet_jax.inspection.predictions import Calibration, Predictions
from resnet_jax.inspection.saliency import as_picture, overlay

BLUE, ORANGE = "#0072B2", "#D55E00"
OKABE_ITO = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PETROFF = color_sequences["petroff10"]
DPI = 150  # dots per inch of a saved figure
MAX_COUNTED = 12  # classes; a confusion of more shows no counts
MAX_NAMED_CLASSES = 30  # more names than this do not fit
WITHOUT_AXIS: Any = {"subplot_kw": {"frame_on": False, "xticks": [], "yticks": []}}
MAX_DRAWN_CLASSES = 2000  # the confusion of more classes takes gigabytes


def curves(metrics: pd.DataFrame) -> Figure:
    """Plot loss, error, learning rate and speed over the epochs, from `Run.metrics`."""
    figure, axes = _axes(7.2, 4, sharex=True, height_ratios=(1.4, 1.4, 1, 1))
    loss, error, rate, speed = axes
    train, validation = _train_and_validation(metrics)
    of_train: dict[str, Any] = {"label": "training", "color": ORANGE}
    of_validation = {"label": "validation", "color": BLUE, "marker": "o", "markersize": 4}
    for rows, style in ((train, of_train), (validation, of_validation)):
        loss.plot(rows["epoch"], rows["loss"], **style)
        error.plot(rows["epoch"], 100 - 100 * rows["accuracy"], **style)
    _loss_axis(loss, "cross-entropy, nats")
    loss.legend(frameon=False)
    _error_axis(error, "error, %")
    # The speed starts at the second row: the first row's time is that of the compilation.
    for ax, name, rows in ((rate, "learning_rate", train), (speed, "images_per_s", train[1:])):
        if name in rows:  # missing if the run has only begun or the optimiser is the user's own
            ax.plot(rows["epoch"], rows[name], "." if len(rows) == 1 else "", color=ORANGE)
    rate.set(ylabel="learning rate", ylim=(0, None))
    speed.set(ylabel="images/s", ylim=(0, None), xlabel="epoch")
    _grid(*axes)
    figure.align_ylabels()
    return figure


def compared_curves(groups: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """Plot error and loss of several runs: by the name to show, the `Run.metrics` of each seed."""
    figure, (error, loss) = _axes(6 + 0.2 * len(groups), 2, width=7, sharex=True)
    # When all colours are used, they repeat with the next line style.
    styles = cycle(cycler(linestyle=("-", "--", ":", "-.")) * cycler(color=OKABE_ITO))
    line = {"markersize": 3, "linewidth": 1.3, "alpha": 0.85}
    glyphs = _letters()
    for (name, tables), style in zip(groups.items(), styles, strict=False):
        # A question mark replaces a letter that the font lacks.
        name = f"{name[:49]}…{name[-50:]}" if len(name) > 100 else name
        shown = "".join(c if ord(c) in glyphs else "?" for c in _short(name, 100))
        for seed, metrics in enumerate(tables):
            train, validation = _train_and_validation(metrics)
            epochs, wrong = validation["epoch"], 100 - 100 * validation["accuracy"]
            # A marker shows even a single evaluation; legends hide labels that begin with "_".
            error.plot(epochs, wrong, marker="o", label=f" {shown}" * (not seed), **style, **line)
            loss.plot(train["epoch"], train["loss"], **style, **line)
    _loss_axis(loss, "training loss, nats")
    _error_axis(error, "validation error, %")
    loss.set_xlabel("epoch")
    _grid(error, loss)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return figure


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw a `confusion_matrix`, ``int[K, K]``; colour is the share of the label's examples."""
    # Each cell gets at least a pixel, because otherwise parts of the diagonal may be missing.
    classes, (figure, ax) = len(matrix), _axes(4.6, dpi=DPI * max(1, len(matrix) / 450))
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    norm = PowerNorm(0.4, 0, 100)  # stretched at its low end, where the mistakes are
    # With "nearest", a pixel shows one cell and not a mean of two.
    image = ax.imshow(shares, cmap="cividis", norm=norm, interpolation="nearest")
    ax.set(xlabel="prediction", ylabel="label")
    if classes <= MAX_NAMED_CLASSES:
        names = shown_names(class_names)
        ax.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
        ax.set_yticks(range(classes), names)
        ax.tick_params(length=0, labelsize=9 if classes <= MAX_COUNTED else 6)
    if classes <= MAX_COUNTED:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "black" if norm(shares[row, column]) > 0.55 else "white"
                size = 8 if count < 1000 else 6.5
                ax.text(column, row, str(count), ha="center", va="center", c=colour, size=size)
    bar = figure.colorbar(image, ax=ax, shrink=0.8, label="% of the label's examples")
    bar.set_ticks([0, 1, 10, 50, 100])
    return figure


def reliability(calibration: Calibration) -> Figure:
    """Plot accuracy by confidence, with the expected calibration error (arXiv 1706.04599)."""
    bins = len(calibration.counts)
    centres, width = 100 * (np.arange(bins) + 0.5) / bins, 92 / bins
    confidence = 100 * calibration.confidence
    figure, (ax, counts) = _axes(4.8, 2, sharex=True, height_ratios=(3, 1))
    ax.bar(centres, 100 * calibration.accuracy, width, color=BLUE, label="accuracy")
    ax.plot(confidence, confidence, "o", color=ORANGE, ms=5, label="mean confidence")
    ax.plot([0, 100], [0, 100], "--", color="0.5", linewidth=1, label="calibrated")
    ax.set(xlim=(0, 100), ylim=(0, 102), ylabel="right, %")
    ax.set_title(f"expected calibration error {calibration.ece:.2%} in {bins} bins", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    counts.bar(centres, calibration.counts, width, color=BLUE)
    counts.set(yscale="log", xlabel="confidence, %", ylabel="examples")
    counts.set_ylim(0.7, max(10, 2 * calibration.counts.max()))
    _plain_numbers(counts)
    _grid(ax, counts)
    return figure


def mistakes(predictions: Predictions, count: int = 12) -> Figure:
    """Show the most confident mistakes, each above its evidence for the predicted class."""
    chosen = predictions.mistakes()[:count]
    if not len(chosen):
        figure, ax = _axes(1, **WITHOUT_AXIS)
        ax.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        return figure
    rows = -(-len(chosen) // 4)
    figure, axes = _axes(2.9 * rows, 2 * rows, 4, **WITHOUT_AXIS)
    maps = predictions.saliency[chosen]
    overlaid = overlay(predictions.images[chosen], maps)
    names = shown_names(predictions.class_names)
    places = zip(axes[::2].flat, axes[1::2].flat, chosen, maps, overlaid, strict=False)
    for above, below, index, evidence, picture in places:
        _show(above, predictions.images[index])
        _show(below, picture)
        predicted = names[predictions.predictions[index]]
        true = names[predictions.labels[index]]
        probability = predictions.probabilities[index].max()
        above.set_title(f"{predicted} ({probability:.0%}),\ntrue: {true}", fontsize=8)
        if predictions.maps and not evidence.any():  # without maps there is no Grad-CAM
            below.set_title("no positive evidence", fontsize=7)
    return figure


def filters(kernel: np.ndarray) -> Figure:
    """Show the first convolution's filters, ``float[h, w, C, features]``.

    Filters of three channels are shown in colour, others are summed over their channels.
    """
    shown = np.moveaxis(np.asarray(kernel, np.float32), 3, 0)
    shown = shown if shown.shape[3] == 3 else shown.sum(3)
    largest = float(np.abs(shown).max()) or 1.0
    figure, ax = _axes(4.4, **WITHOUT_AXIS)
    if shown.ndim == 4:
        ax.imshow(_mosaic(0.5 + shown / (2 * largest), gap=1.0))
        ax.set_title("grey: zero", fontsize=10)
    else:
        image = ax.imshow(_mosaic(shown), cmap="PuOr", vmin=-largest, vmax=largest)
        figure.colorbar(image, ax=ax, shrink=0.7, label="weight")
    return figure


def feature_maps(maps: Mapping[str, np.ndarray], image: np.ndarray, channels: int = 8) -> Figure:
    """Show ``uint8[H, W, C]`` and the channels of highest mean in each of its `Predictions.maps`.

    In each row, yellow is the largest value shown and dark blue the smallest.
    """
    count = len(maps) + 1
    figure, axes = _axes(0.72 * count + 0.3, count, **WITHOUT_AXIS)
    top, *rows = np.ravel(axes)
    _show(top, image)
    top.set_anchor("W")
    top.set_title("image", fontsize=8, loc="left")
    for ax, (name, values) in zip(rows, maps.items(), strict=True):
        strongest = np.argsort(-values.mean((0, 1)))[:channels]
        chosen = np.moveaxis(values[..., strongest], 2, 0)
        enlarged = np.kron(chosen, np.ones((1, *[max(1, 32 // chosen.shape[1])] * 2)))
        ax.imshow(_mosaic(enlarged, columns=channels, margin=2), cmap="cividis")
        height, width, features = values.shape
        ax.set_title(f"{name}: {height}x{width}, {features} channels", fontsize=8, loc="left")
    return figure


def embedding(points: np.ndarray, predictions: Predictions) -> Figure:
    """Plot the first M examples at the points of `embedding`, ``float[M, 2]``, mistakes crossed."""
    figure, ax = _axes(4.6)
    labels = predictions.labels[: len(points)]
    wrong = predictions.predictions[: len(points)] != labels
    names = shown_names(predictions.class_names)
    paper, ink = rcParams["axes.facecolor"], rcParams["text.color"]
    box = {"boxstyle": "round,pad=0.15", "facecolor": paper, "edgecolor": "0.6", "alpha": 0.9}
    for k in np.unique(labels):
        members = points[labels == k]
        again, number = divmod(k, len(PETROFF))
        marker = "os^DvP*X"[again % 8]
        ax.scatter(members[:, 0], members[:, 1], s=9, color=PETROFF[number], marker=marker)
        if len(predictions.class_names) <= MAX_NAMED_CLASSES:
            x, y = np.median(members, axis=0)
            ax.text(x, y, names[k], size=9, ha="center", va="center", bbox=box)
    if wrong.any():
        x, y = points[wrong].T
        ax.scatter(x, y, s=40, marker="x", color=ink, lw=1, label="mistake")
        ax.legend(frameon=False, loc="best")
    ax.set(xticks=[], yticks=[])
    return figure


def own_style() -> AbstractContextManager[None]:
    """Return a context that draws figures as on paper, in the user's fonts, whatever the style."""
    fonts: dict[str, Any] = {k: v for k, v in rcParams.items() if k.startswith("font.")}
    del fonts["font.size"]
    return context(["default", fonts])


def shown_names(class_names: Sequence[str]) -> list[str]:
    """Return the class names as a figure can show them: short, on one line, without mathtext.

    A name becomes the class's number, ``#3``, which the report explains, if the font lacks one of
    its letters, if it runs from right to left, or if another class's name is shortened to the same.
    """
    glyphs = _letters()
    shown = [_short(name, 12) for name in class_names]
    counts = Counter(shown)
    for k, name in enumerate(class_names):
        letters = "".join(name.split())
        drawn = all(ord(c) in glyphs and bidirectional(c) not in ("R", "AL") for c in letters)
        if not drawn or counts[shown[k]] > 1:
            shown[k] = f"#{k}"
    return shown


def _letters() -> Mapping[int, int]:
    return get_font(findfont(FontProperties())).get_charmap()


def _short(name: str, longest: int) -> str:
    name = " ".join(name.split())
    short = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return short.replace("$", r"\$")


def _axes(
    height: float, *grid: int, width: float = 5, dpi: float = DPI, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure, width by height in inches, and its axes in a grid of rows and columns."""
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)
    figure = Figure((width, height), dpi, layout=layout)
    return figure, figure.subplots(*grid, **options)


def _show(ax: Axes, image: np.ndarray) -> None:
    ax.imshow(as_picture(image), cmap="gray", vmin=0, vmax=255)


def _mosaic(
    pictures: np.ndarray, columns: int | None = None, margin: int = 1, gap: float = np.nan
) -> np.ndarray:
    """Lay pictures, float[N, h, w(, C)], side by side in rows, with a margin between them."""
    count = len(pictures)
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    padding = [(0, rows * columns - count), (0, margin), (0, margin), (0, 0)][: pictures.ndim]
    tiles = np.pad(pictures, padding, constant_values=gap)
    return np.vstack([np.hstack(list(row)) for row in np.split(tiles, rows)])[:-margin, :-margin]


def _error_axis(ax: Axes, label: str) -> None:
    """Set the y axis to percent: linear from 0 to 0.1, logarithmic above."""
    ax.set_yscale("symlog", linthresh=0.1, linscale=0.3)
    ax.set(ylim=(0, 100), yticks=[0, 0.1, 0.3, 1, 3, 10, 30, 100], ylabel=label)
    _plain_numbers(ax)


def _loss_axis(ax: Axes, label: str) -> None:
    ax.set_ylabel(label)
    if all(np.min(line.get_ydata(), initial=1) > 0 for line in ax.lines):  # not true of every loss
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        _plain_numbers(ax)


def _plain_numbers(ax: Axes) -> None:
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def _train_and_validation(metrics: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return metrics[metrics["kind"] == "train"], metrics[metrics["kind"] == "validation"]


def _grid(*axes: Axes) -> None:
    for ax in axes:
        ax.grid(alpha=0.3, linewidth=0.5)
        ax.spines[["top", "right"]].set_visible(False)
