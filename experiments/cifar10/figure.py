"""Training and test error by update, side by side, as figure 6 of arXiv 1512.03385 has them.

Command:   python -m experiments.cifar10.figure
Result:    errors.png beside the rows, results.jsonl or the file given
Machine:   any
"""

import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from experiments.cifar10.__main__ import RESULTS
from experiments.measuring import MISSING, Row, interval, read_rows
from experiments.plotting import BLUE, GREEN, ORANGE, PINK, save

COLOURS = dict(zip((20, 32, 44, 56), (BLUE, GREEN, PINK, ORANGE), strict=True))


def grouped(rows: list[Row]) -> dict[tuple[int, bool], list[Row]]:
    """The seeds of each network of the figure: the short schedule with option A."""
    groups: dict[tuple[int, bool], list[Row]] = {}
    for row in rows:
        if row["recipe"] == "short" and row["shortcut"] == "pad":
            groups.setdefault((row["depth"], row["residual"]), []).append(row)
    return dict(sorted(groups.items()))


def draw(rows: list[Row], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, part in zip(axes, ("train", "test"), strict=True):
        for (depth, residual), seeds in grouped(rows).items():
            curves = [row[part] for row in seeds]
            steps = [step for step, _ in curves[0]]
            mean = [
                100 * statistics.fmean(error for _, error in points)
                for points in zip(*curves, strict=True)
            ]
            style, kind = ("-", "residual") if residual else ("--", "plain")
            axis.plot(steps, mean, style, color=COLOURS[depth], label=f"{kind} {depth}")
        axis.set(title=f"{part} error, %", xlabel="update", ylim=(0, 80))
    axes[0].legend()
    save(figure, path)


def table_of_errors(rows: list[Row]) -> str:
    """A line for each network: its test error after the last update, and its training error."""
    lines = []
    for (depth, residual), seeds in grouped(rows).items():
        parts = [f"{'residual' if residual else 'plain'} {depth}", f"{len(seeds)} seeds"]
        for name, errors in (
            ("training", [row["train"][-1][1] for row in seeds]),
            ("test", [row["test_error"] for row in seeds]),
        ):
            low, high = interval(errors)
            mean = statistics.fmean(errors)
            parts.append(f"{name} error {mean:.2%} ({low:.2%} to {high:.2%})")
        lines.append(", ".join(parts))
    return "\n".join(lines) or MISSING


if __name__ == "__main__":
    rows_file = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    found = read_rows(rows_file)
    print(table_of_errors(found))
    if found:
        draw(found, rows_file.with_name("errors.png"))
