"""Pictures of a run, each a `matplotlib.figure.Figure`.

They are narrow, so that a telephone shows them whole with letters that can be read. Ink is
matplotlib's black, which the report turns light on a dark page. Colours are told apart by
colour-blind readers and in grey: Okabe and Ito's for two curves, Petroff's (arXiv 2107.02270) for
classes, and the colour maps cividis, inferno and PuOr.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from resnet_jax.inspection.evaluation import Calibration, Findings
from resnet_jax.inspection.saliency import overlay

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 5.0  # inches
BLUE, ORANGE = "#0072B2", "#D55E00"
OKABE_ITO = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PETROFF = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
DARK = "#101010"  # on light fields, where it stays dark on a dark page


def curves(metrics: "pd.DataFrame") -> Figure:
    """Loss, error, learning rate and speed over the epochs.

    Args:
        metrics: as `Run.metrics` gives them.
    """
    figure = Figure((WIDTH, 7.2), layout=_layout())
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(1.4, 1.4, 1, 1))
    loss, error, rate, speed = axes
    train, validation = (metrics[metrics["kind"] == kind] for kind in ("train", "validation"))
    for rows, name, colour, marker in (
        (train, "training", ORANGE, ""),
        (validation, "validation", BLUE, "o"),
    ):
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.5}
        if len(rows):
            loss.plot(rows["epoch"], rows["loss"], label=name, **style)
            error.plot(rows["epoch"], 100 - 100 * rows["accuracy"], **style)
    loss.set(yscale="log", ylabel="cross-entropy, nats")
    _plain_logarithm(loss)
    loss.legend(frameon=False)
    _error_axis(error)
    if "learning_rate" in train:  # only the user knows that of an optimiser of their own
        rate.plot(train["epoch"], train["learning_rate"], color=ORANGE, linewidth=1.5)
    rate.set(ylabel="learning rate", ylim=(0, None))
    # The first line's time is that of the compilation.
    speed.plot(train["epoch"][1:], train["images_per_s"][1:], color=ORANGE, linewidth=1.5)
    speed.set(ylabel="images/s", ylim=(0, None), xlabel="epoch")
    for ax in axes:
        ax.grid(alpha=0.3, linewidth=0.5)
        ax.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return figure


def compared_curves(groups: Mapping[str, Sequence["pd.DataFrame"]]) -> Figure:
    """Validation error and training loss of several runs; those of one name share a colour.

    Args:
        groups: metrics by the name to show, one table for each seed.
    """
    figure = Figure((7, 6), layout=_layout())
    error, loss = figure.subplots(2, 1, sharex=True)
    for number, (name, tables) in enumerate(groups.items()):
        colour = OKABE_ITO[number % len(OKABE_ITO)]
        # After the colours have all been used, the lines differ.
        style = ("-", "--", ":", "-.")[number // len(OKABE_ITO) % 4]
        for first, metrics in enumerate(tables):
            label = _shown(name, 60) if first == 0 else None
            kinds = ((error, "validation", "accuracy"), (loss, "train", "loss"))
            for ax, kind, column in kinds:
                rows = metrics[metrics["kind"] == kind]
                values = 100 - 100 * rows[column] if column == "accuracy" else rows[column]
                marker = "o" if kind == "validation" else ""  # one evaluation is no line
                line = {"color": colour, "marker": marker, "ms": 3, "lw": 1.3, "alpha": 0.85}
                ax.plot(rows["epoch"], values, linestyle=style, label=label, **line)
    _error_axis(error)
    error.set_ylabel("validation error, %")
    loss.set(yscale="log", ylabel="training loss, nats", xlabel="epoch")
    _plain_logarithm(loss)
    for ax in (error, loss):
        ax.grid(alpha=0.3, linewidth=0.5)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*error.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Examples by label and prediction; colour is the share of the label's examples.

    Args:
        matrix: ``int[K, K]``, by label (row) and prediction (column).
        class_names: K names.
    """
    matrix = np.asarray(matrix)
    classes = len(matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure((WIDTH, 4.6), layout=_layout())
    ax = figure.subplots()
    # The few mistakes are what is looked for: the scale is stretched at its low end.
    norm = PowerNorm(0.4, 0, 1)
    image = ax.imshow(100 * shares, cmap="cividis", norm=PowerNorm(0.4, 0, 100))
    ax.set(xlabel="prediction", ylabel="label")
    if classes <= 30:
        names = [_shown(name) for name in class_names]
        upright = max(map(len, names)) > 2
        ax.set_xticks(range(classes), names, rotation=90 if upright else 0)
        ax.set_yticks(range(classes), names)
        ax.tick_params(length=0, labelsize=9 if classes <= 12 else 6)
    if classes <= 12:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                light = norm(shares[row, column]) > 0.55
                colour = DARK if light else "white"
                size = 8 if count < 1000 else 6.5
                ax.text(column, row, str(count), ha="center", va="center", c=colour, size=size)
    bar = figure.colorbar(image, ax=ax, shrink=0.8, label="% of the label's examples")
    bar.set_ticks([0, 1, 10, 50, 100])
    return figure


def reliability(found: Calibration) -> Figure:
    """Accuracy by confidence, with the expected calibration error (arXiv 1706.04599).

    Args:
        found: as `calibration` gives it.
    """
    bins = len(found.counts)
    edges = np.linspace(0, 100, bins + 1)
    centres, width = (edges[:-1] + edges[1:]) / 2, 100 / bins
    figure = Figure((WIDTH, 4.8), layout=_layout())
    ax, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ax.bar(centres, 100 * found.accuracy, width * 0.92, color=BLUE, label="accuracy")
    ax.plot(
        100 * found.confidence, 100 * found.confidence, "o", color=ORANGE, ms=5,
        label="mean confidence",
    )  # fmt: skip
    ax.plot([0, 100], [0, 100], "--", color="0.5", linewidth=1, label="calibrated")
    ax.set(xlim=(0, 100), ylim=(0, 102), ylabel="right, %")
    ax.set_title(f"expected calibration error {100 * found.ece:.2f} % in {bins} bins", fontsize=10)
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False,
        fontsize=9,
    )  # fmt: skip
    counts.bar(centres, found.counts, width * 0.92, color=BLUE)
    counts.set(yscale="log", xlabel="confidence, %", ylabel="examples")
    counts.set_ylim(0.7, max(10, 2 * found.counts.max()))
    _plain_logarithm(counts, subs=(1,))
    for axes in (ax, counts):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def mistakes(found: Findings, count: int = 12) -> Figure:
    """The most confident mistakes, each as it is and with Grad-CAM for what it was taken for.

    Args:
        found: as `examine` gives it.
        count: how many at most.
    """
    chosen = found.mistakes()[:count]
    columns = 4
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure((WIDTH, 2.9 * rows), layout=_layout())
    if not len(chosen):
        figure.set_size_inches(WIDTH, 1)
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center")
        return figure
    overlaid = overlay(found.images[chosen], found.saliency[chosen])
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    predictions, probabilities = found.predictions, found.probabilities
    for number, index in enumerate(chosen):
        row, column = divmod(number, columns)
        said, label = predictions[index], found.labels[index]
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        _show(above, found.images[index])
        _show(below, overlaid[number])
        names = [_shown(found.class_names[k], 14) for k in (said, label)]
        above.set_title(
            f"said {names[0]}, {probabilities[index, said]:.0%}\nis {names[1]}", fontsize=8
        )
    return figure


def filters(kernel: np.ndarray) -> Figure:
    """The first convolution's filters.

    Args:
        kernel: ``float[h, w, C, features]``, ``variables["params"]["stem"]["conv"]["kernel"]``.
            Filters of three channels are shown in their colours, others summed over the channels.
    """
    kernel = np.moveaxis(np.asarray(kernel, np.float32), 3, 0)
    largest = float(np.abs(kernel).max()) or 1.0
    figure = Figure((WIDTH, 4.4), layout=_layout())
    ax = figure.subplots()
    ax.set_axis_off()
    if kernel.shape[3] == 3:
        ax.imshow(_mosaic(0.5 + kernel / (2 * largest), gap=1.0))
        ax.set_title("grey: zero", fontsize=10)
        return figure
    summed = kernel.sum(3)
    largest = float(np.abs(summed).max()) or 1.0
    image = ax.imshow(_mosaic(summed), cmap="PuOr", vmin=-largest, vmax=largest)
    figure.colorbar(image, ax=ax, shrink=0.7, label="weight")
    return figure


def feature_maps(maps: Mapping[str, np.ndarray], image: np.ndarray, channels: int = 8) -> Figure:
    """What the stem and the stages make of one image: their strongest channels.

    Args:
        maps: one image's ``float[h, w, features]`` by name, as `Findings.maps`. Yellow is the
            largest value of those shown in a row, dark blue the smallest.
        image: ``uint8[H, W, C]``.
        channels: how many of each, those of the highest mean.
    """
    figure = Figure((WIDTH, 0.72 * (len(maps) + 1) + 0.3), layout=_layout())
    rows = figure.subplots(len(maps) + 1, 1)
    _show(rows[0], image)
    rows[0].set_anchor("W")
    for ax, (name, found) in zip(rows[1:], maps.items(), strict=True):
        strongest = np.argsort(-found.mean((0, 1)))[:channels]
        chosen = np.moveaxis(found[..., strongest], 2, 0)
        size = max(1, 32 // chosen.shape[1])
        ax.imshow(_mosaic(np.kron(chosen, np.ones((1, size, size))), columns=channels, margin=2),
                  cmap="cividis")  # fmt: skip
        ax.set_axis_off()
        height, width, features = found.shape
        ax.set_title(f"{name}: {height}x{width}, {features} channels", fontsize=8, loc="left")
    rows[0].set_title("image", fontsize=8, loc="left")
    return figure


def embedding(points: np.ndarray, found: Findings) -> Figure:
    """Examples in the plane, coloured by label; mistakes are crossed.

    Args:
        points: ``float[M, 2]``, as `embedding` gives them.
        found: the first M of its examples are shown.
    """
    figure = Figure((WIDTH, 4.6), layout=_layout())
    ax = figure.subplots()
    labels = found.labels[: len(points)]
    wrong = found.predictions[: len(points)] != labels
    for k in np.unique(labels):
        members = points[labels == k]
        colour = PETROFF[k % len(PETROFF)]
        ax.scatter(
            members[:, 0],
            members[:, 1],
            s=9,
            color=colour,
            marker="os^DvP*X"[k // len(PETROFF) % 8],
        )
    x, y = points[wrong].T
    ax.scatter(x, y, s=40, marker="x", color="black", linewidths=1, label="mistake")
    if len(found.class_names) <= 30:
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "0.6", "alpha": 0.9}
        for k in np.unique(labels):
            name = _shown(found.class_names[k])
            x, y = np.median(points[labels == k], axis=0)
            ax.text(x, y, name, size=9, ha="center", va="center", color=DARK, bbox=box)
    if wrong.any():
        ax.legend(frameon=False, loc="best")
    ax.set(xticks=[], yticks=[])
    return figure


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)


def _shown(name: str, longest: int = 12) -> str:
    """A class name as a picture can hold it: short, on one line, without mathematics."""
    name = " ".join(name.split())
    short = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return short.replace("$", r"\$")


def _show(ax: Axes, image: np.ndarray) -> None:
    """An image, uint8[H, W, C], pixel by pixel."""
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
    ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, **grey)
    ax.set_axis_off()


def _mosaic(
    pictures: np.ndarray, columns: int | None = None, margin: int = 1, gap: float = np.nan
) -> np.ndarray:
    """Pictures, float[N, h, w(, C)], side by side in rows, with a margin between them."""
    count = len(pictures)
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    filler = np.full((rows * columns - count, *pictures.shape[1:]), gap)
    padding = [(0, 0), (0, margin), (0, margin)] + [(0, 0)] * (pictures.ndim - 3)
    tiles = np.pad(np.concatenate([pictures, filler]), padding, constant_values=gap)
    _, height, width, *channels = tiles.shape
    tiles = tiles.reshape(rows, columns, height, width, *channels).swapaxes(1, 2)
    return tiles.reshape(rows * height, columns * width, *channels)[:-margin, :-margin]


def _error_axis(ax: Axes) -> None:
    """A logarithmic axis in percent that ends at zero."""
    ax.set_yscale("symlog", linthresh=0.1, linscale=0.3)
    ax.set_yticks([0, 0.1, 0.3, 1, 3, 10, 30, 100])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    low, high = (float(value) for value in ax.dataLim.intervaly)
    ax.set_ylim(0 if low < 0.1 else low / 1.4, min(100, high * 1.4) if high else 100)
    ax.set_ylabel("error, %")


def _plain_logarithm(ax: Axes, subs: Sequence[int] = (1, 2, 5)) -> None:
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
