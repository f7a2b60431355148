"""What the rows of the MNIST record say: tables for its page, and three figures.

Command:   python -m experiments.mnist_record.figure     (those figures that have rows)
           python -m experiments.tables                  (the tables of README.md)
Needs:     the full MNIST, for the picture of the wrong digits
Result:    wrong.png, reliability.png and time.png beside the rows
"""

import statistics

import numpy as np
from matplotlib.figure import Figure

import resnet_jax as rj
from experiments.measuring import Row, mean_and_sd, read_rows
from experiments.mnist_record.__main__ import ABLATIONS, RESULTS
from experiments.plotting import BLUE, ORANGE, logarithmic, panels
from experiments.presets import measure
from experiments.tables import table
from resnet_jax.inspection import Calibration, plots

TITLES = {
    ("plain", "mnist"): "preset `mnist` on all 60,000 images",
    ("final", "mnist"): "preset `record`",
    ("ensemble", "mnist"): "ensemble: the mean of their probabilities",
    ("final", "fashion_mnist"): "`record` on Fashion-MNIST",
}


def rows_of(part: str, recipe: str) -> list[Row]:
    return read_rows(RESULTS, part=part, recipe=recipe)


def mean(rows: list[Row], name: str, digits: int) -> str:
    return f"{statistics.fmean(row[name] for row in rows):.{digits}f}"


def results() -> str:
    """Tabulate test accuracy: of single models, with test-time averaging, and of the ensemble."""
    lines = []
    for (part, recipe), title in TITLES.items():
        if rows := rows_of(part, recipe):
            accuracies = [100 * row["accuracy"] for row in rows]
            averaged = [100 * r["test_time_averaging"]["accuracy"] for r in rows if r.get("steps")]
            line = [title, len(rows), mean_and_sd(accuracies, 2, " %")]
            line += [" ".join(f"{a:.2f}" for a in accuracies), mean(rows, "loss", 4)]
            lines.append([*line, mean(rows, "ece", 4), mean_and_sd(averaged, 2, " %")])
    head = ["what", "models", "test accuracy, mean ± sd", "each", "cross-entropy, nats"]
    head += ["calibration error", "accuracy with test-time averaging"]
    return table(head, lines)


def against(rows: list[Row], base: list[Row]) -> tuple[str, str]:
    """Return differences of accuracy, in points, and of loss, over the seeds that both have."""
    before = {row["seed"]: row for row in base}
    pairs = [(row, before[row["seed"]]) for row in rows if row["seed"] in before]
    if not pairs or rows == base:
        return "", ""
    points = [100 * (row["accuracy"] - other["accuracy"]) for row, other in pairs]
    losses = [row["loss"] - other["loss"] for row, other in pairs]
    each = " ".join(f"{point:+.2f}" for point in points)
    return f"{statistics.fmean(points):+.2f} ({each})", f"{statistics.fmean(losses):+.4f}"


def choices() -> str:
    """Tabulate the ablations' validation accuracy beside the base's."""
    lines, base = [], rows_of("ablation", "base")
    for recipe in ABLATIONS:
        if rows := rows_of("ablation", recipe):
            accuracy = mean_and_sd([100 * row["accuracy"] for row in rows], 2, " %")
            lines.append([recipe, len(rows), accuracy, mean(rows, "loss", 4), *against(rows, base)])
    head = ["recipe", "seeds", "validation accuracy, mean ± sd", "cross-entropy, nats"]
    head += ["accuracy less the base's, points (each seed)", "cross-entropy less the base's"]
    return table(head, lines)


def weights() -> str:
    """Tabulate the command that makes each model again, and the checksum that tells if it did."""
    lines = []
    for row in rows_of("final", "mnist"):
        where = row["machine"]
        machine = f"{where.get('device', where['processor'])}, {where['cores']} cores"
        command = f"`resnet-jax train record --seed {row['seed']}`"
        lines.append([command, f"`{row['sha256']}`", machine, where["jax"]])
    return table(["command", "SHA-256 of the parameters", "machine", "jax"], lines)


def draw_wrong(row: Row, images: np.ndarray) -> Figure:
    """Draw each digit that a model gets wrong, with its answer and its label."""
    wrong = sorted(row["wrong"], key=lambda digit: -digit["probability"])
    lines, columns = -(-len(wrong) // 8), 8
    figure = Figure((10, 1.6 * lines + 0.5), layout="constrained")
    figure.suptitle(f"{len(wrong)} of the test digits: label, and what the network says")
    for axes in figure.subplots(lines, columns, squeeze=False).flat:
        axes.set_axis_off()
    title = "is {label} ({of_label:.0%})\nsays {answer} ({probability:.0%})"
    for axes, digit in zip(figure.axes, wrong, strict=False):
        axes.imshow(images[digit["index"], :, :, 0], cmap="gray_r")
        axes.set_title(title.format_map(digit), fontsize=8)
    return figure


def draw_time() -> Figure:
    """Draw test error by time on two cores; the time of `record` is from a step's median time."""
    names = ("quickstart", "fast", "mnist", "book")
    seconds = {name: measure.seconds_of(name) for name in names}
    accuracies = {name: measure.accuracies_of(name) for name in names}
    final = rows_of("final", "mnist")
    here = [r for r in final if "device" not in r["machine"] and r["machine"]["cores"] == 2]
    if here:
        seconds["record"] = [r["step_ms"] / 1000 * r["steps"] for r in here]
        accuracies["record"] = [100 * r["accuracy"] for r in final]
    figure, ((axes,),) = panels((6, 4), [""])
    for name, times in seconds.items():
        accuracy = statistics.fmean(accuracies[name])
        point = statistics.median(times), 100 - accuracy
        axes.plot(*point, "o", color=ORANGE if name == "record" else BLUE)
        where = {"textcoords": "offset points", "xytext": (6, 4)}
        axes.annotate(f"{name} {accuracy:.2f}%", point, **where)
    axes.set(xlabel="seconds on two cores", xlim=(50, 20_000), ylabel="wrong, % of test digits")
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis, subs=(1, 2, 5))
    return figure


if __name__ == "__main__":
    draw_time().savefig(RESULTS.with_name("time.png"), dpi=110)
    for row in rows_of("final", "mnist")[:1]:
        columns = {name: np.array(column) for name, column in row["reliability"].items()}
        for name in ("confidence", "accuracy"):  # an empty bin has neither
            columns[name] = np.where(columns["counts"], columns[name], np.nan)
        reliability = plots.reliability(Calibration(**columns))
        reliability.savefig(RESULTS.with_name("reliability.png"), dpi=110)
        images = rj.load_dataset("mnist").test.images
        draw_wrong(row, images).savefig(RESULTS.with_name("wrong.png"), dpi=110)
