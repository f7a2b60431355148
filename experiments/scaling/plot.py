"""What do the measurements of cost.py look like?

Command:   python -m experiments.scaling.plot     (the figure)
           python -m experiments.tables           (the tables of README.md)
Result:    cost.png
"""

from functools import cache, partial
from itertools import product

from matplotlib.figure import Figure

from experiments.measuring import Row, read_rows
from experiments.plotting import BLUE, GREEN, ORANGE, PINK, logarithmic, panels
from experiments.scaling.cost import COSTS, DEPTHS, SIZES
from experiments.tables import crossed


@cache
def costs(part: str) -> dict[tuple[int, int], Row]:
    return {(row["depth"], row["size"]): row for row in read_rows(COSTS, part=part)}


def number(value: float) -> str:
    """Format three significant digits, or a whole number from a hundred on."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def table_of_costs(part: str, key: str, factor: float = 1.0) -> str:
    cells = {
        (f"ResNet-{depth}", f"{size}x{size}"): number(factor * costs(part)[depth, size][key])
        for depth, size in product(DEPTHS, SIZES)
    }
    return crossed(cells, "")


def cost_ratio(key: str, more: tuple[int, int], less: tuple[int, int]) -> str:
    """Return how many times as large one cell, (depth, size), is as another."""
    found = costs("steps")
    return f"{number(found[more][key] / found[less][key])} times"


def rate(depth: int, size: int) -> str:
    row = costs("steps")[depth, size]
    return f"{number(6 * row['multiply_adds'] * row['batch'] / row['step_ms'] / 1e6)} GFLOP/s"


def draw() -> Figure:
    titles = (
        "time, from 18 to 152 layers, batch 8",
        "memory: of the step (filled), peak of the process (open)",
    )
    figure, ((time, memory),) = panels((10, 4.4), titles)
    note = partial(time.annotate, textcoords="offset points", fontsize=8)
    styles = ((PINK, "D"), (GREEN, "^"), (ORANGE, "s"), (BLUE, "o"))
    for size, (colour, marker) in zip(SIZES, styles, strict=True):
        rows = [costs("steps")[depth, size] for depth in DEPTHS]
        work = [row["multiply_adds"] / 1e9 for row in rows]
        times = [row["step_ms"] / row["batch"] for row in rows]
        style = {"color": colour, "marker": marker, "ms": 6, "lw": 1.4}
        time.plot(work, times, **style)
        memory.plot(work, [row["program_mib"] for row in rows], **style, label=f"{size}x{size}")
        memory.plot(work, [row["peak_mib"] for row in rows], **style | {"ls": ":", "mfc": "white"})
        for at, place in ((0, (5, -9)), (-1, (-4, 7))):
            note(str(rows[at]["depth"]), (work[at], times[at]), place, color=colour)
    low, high = time.get_xlim()
    for gflops in (10, 100):
        ends = [6 * work / gflops * 1e3 for work in (low, high)]
        time.plot((low, high), ends, color="#777777", lw=0.8, ls="--", scalex=False, scaley=False)
        style = {"color": "#555555", "rotation": 30, "rotation_mode": "anchor"}
        note(f"{gflops} GFLOP/s", (0.06, 6 * 0.06 / gflops * 1e3), (0, 4), **style)
    for axes in (time, memory):
        logarithmic(axes.xaxis)
        logarithmic(axes.yaxis, subs=(1, 2, 5))
        axes.set_xlabel("multiply-adds of one image's forward pass, billions")
    time.set_ylabel("training step, ms an image")
    memory.set_ylabel("MiB")
    memory.legend(frameon=False)
    return figure


if __name__ == "__main__":
    draw().savefig(COSTS.with_name("cost.png"), dpi=110)
