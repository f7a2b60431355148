"""The figures, and the numbers of the pages: the value of each expression behind its comment.

Command:   python -m experiments.scaling.report
Result:    docs/images/scaling.png, cost.png; the tables of docs/scaling.md and README.md here

    A step takes <!-- step("h100", 50, "weak", 64) -->36 ms<!-- end -->.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from experiments.residual_study.report import filled
from experiments.residual_study.results import read
from experiments.scaling import model
from experiments.scaling.cost import CELLS, COSTS, DEPTHS, SIZES
from experiments.scaling.model import DEVICES, GLOBAL_BATCH, IMAGE_BYTES, machines, network

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs/scaling.md", Path(__file__).with_name("README.md"))
SCALINGS = {"weak": model.weak, "strong": model.strong}
SHOWN = (1, 8, 64, 256, 1024)
MISSING = "not yet measured"
# Okabe and Ito's colours, told apart by everyone; lines and markers differ as well.
TERMS = {
    "compute": ("#0072B2", "-", "o"),
    "gradients": ("#D55E00", "--", "s"),
    "statistics": ("#009E73", "-.", "^"),
    "input": ("#CC79A7", ":", "D"),
}
WHOLE: dict[str, Any] = {"color": "#BBBBBB", "lw": 7, "solid_capstyle": "round"}
SIZE_STYLES = {
    28: ("#CC79A7", "D"),
    56: ("#009E73", "^"),
    112: ("#D55E00", "s"),
    224: ("#0072B2", "o"),
}


def number(value: float) -> str:
    """Three digits, none of them after the point from a hundred on."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    """With its unit; of a second and more, in seconds."""
    return f"{number(seconds)} s" if seconds >= 0.9995 else f"{number(1e3 * seconds)} ms"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def step_of(machine: str, depth: int, scaling: str, n: int) -> model.Step:
    return SCALINGS[scaling](machines()[machine], network(depth), n)


def step(machine: str, depth: int, scaling: str, n: int) -> str:
    return milliseconds(step_of(machine, depth, scaling, n).seconds)


def term(name: str, machine: str, depth: int, scaling: str, n: int) -> str:
    return milliseconds(getattr(step_of(machine, depth, scaling, n), name))


def efficiency(machine: str, depth: int, scaling: str, n: int) -> str:
    return f"{step_of(machine, depth, scaling, n).efficiency:.0%}".replace("%", " %")


def all_reduces(depth: int) -> str:
    """Of a step, for the statistics."""
    return str(model.ALL_REDUCES * len(network(depth).norms))


def images_to_hide(machine: str, depth: int, n: int) -> str:
    return str(model.images_to_hide(machines()[machine], network(depth), n))


def decoded() -> str:
    return f"{model.decoded_per_s():.0f} images/s"


def cores_needed(machine: str, depth: int) -> str:
    """To decode what a host's devices take."""
    chosen = machines()[machine]
    needed = chosen.devices_per_host * chosen.images_per_s(network(depth))
    return number(needed / model.decoded_per_s())


def minutes(machine: str, depth: int, n: int, epochs: int) -> str:
    """Of computing alone, for epochs of ImageNet."""
    rate = n * machines()[machine].images_per_s(network(depth))
    return f"{number(epochs * model.IMAGES / rate / 60)} minutes"


def table_of_networks() -> str:
    rows = []
    for depth in (18, 50):
        net = network(depth)
        size = model.BYTES_PER_NUMBER * net.parameters
        rows.append(
            [
                f"ResNet-{depth}",
                f"{net.parameters / 1e6:.1f} M",
                f"{size / 1e6:.0f} MB",
                f"{net.multiply_adds / 1e9:.2f} G",
                f"{6 * net.multiply_adds / 1e9:.1f} GFLOP",
                f"{len(net.norms)}: {all_reduces(depth)} all-reduces",
            ]
        )
    head = ["network", "parameters", "gradients", "multiply-adds, forward", "training, an image"]
    return table([*head, "batch norms"], rows)


def table_of_machines() -> str:
    rows = []
    for machine in machines().values():
        joined = ", then ".join(
            f"{level.bandwidth / 1e9:g} GB/s and {1e6 * level.latency:g} us"
            + (f" ({level.axes}-D torus)" if level.axes else "")
            for level in machine.levels
        )
        rows.append(
            [
                machine.title,
                f"{number(machine.flops / 1e12)} TFLOP/s x {machine.share:.0%}".replace("%", " %"),
                number(machine.images_per_s(network(50))),
                joined,
                f"{machine.cores} cores, {machine.storage / 1e9:.3g} GB/s",
                str(machine.batch),
                machine.sources,
            ]
        )
    head = ["devices", "peak x sustained share", "ResNet-50, images/s", "links, one way"]
    return table([*head, "host: decoding, storage", "images a device", "sources"], rows)


def table_of_steps(depth: int, scaling: str) -> str:
    """Step time, efficiency and bound by number of devices."""
    rows = []
    for name, machine in machines().items():
        cells = []
        for n in SHOWN:
            found = step_of(name, depth, scaling, n)
            cells.append(
                f"{milliseconds(found.seconds)}, {found.efficiency:.0%}".replace("%", " %")
                + (f", {found.bound}" if found.bound != "compute" else "")
            )
        rows.append([machine.title, *cells])
    return table([f"ResNet-{depth}", *(f"{n:,}" for n in SHOWN)], rows)


def table_of_bounds() -> str:
    """Which term is the longest from how many devices on."""
    rows = []
    for depth in (18, 50):
        for machine in machines().values():
            cells = []
            for scaling in SCALINGS.values():
                found = model.bounds(scaling, machine, network(depth))
                changes = ", ".join(f"{bound} from {n}" for n, bound in found[1:])
                enough = model.efficient_up_to(scaling, machine, network(depth), 0.8)
                cells += [changes or "compute throughout", f"{enough:,}"]
            rows.append([f"ResNet-{depth}", machine.title, *cells])
    head = ["network", "devices", "batch grows: bound", "80 % up to"]
    return table([*head, f"batch of {GLOBAL_BATCH:,}: bound", "80 % up to"], rows)


def table_of_inputs() -> str:
    """What a host must read and decode, so that its devices never wait."""
    rows = []
    for machine in machines().values():
        cells = []
        for depth in (18, 50):
            needed = machine.devices_per_host * machine.images_per_s(network(depth))
            mark = "**" if needed > machine.input_per_s else ""
            cells.append(f"{mark}{number(needed)}{mark}")
            cells.append(number(needed * IMAGE_BYTES / 1e6))
        rows.append([machine.title, *cells, number(machine.input_per_s)])
    head = ["host", "ResNet-18, images/s", "MB/s", "ResNet-50, images/s", "MB/s"]
    return table([*head, "it reads and decodes, images/s"], rows)


def costs(part: str) -> dict[tuple[int, int], dict[str, Any]]:
    """The measured cells of the whole table, by depth and size."""
    wanted = [(cell.depth, cell.size, cell.batch, cell.width) for cell in CELLS]
    return {
        (row["depth"], row["size"]): row
        for row in read(COSTS)
        if row["part"] == part and (row["depth"], row["size"], row["batch"], row["width"]) in wanted
    }


def done() -> str:
    """Which part of the table of costs is measured; the rest says so in its place."""
    count = len(costs("steps"))
    return "complete" if count == len(CELLS) else f"partial: {count} of {len(CELLS)} cells"


def table_of_costs(part: str, key: str, factor: float = 1.0) -> str:
    """One measured quantity, by depth and size."""
    found = costs(part)
    rows = [
        [
            f"ResNet-{depth}",
            *(
                number(factor * found[depth, size][key]) if (depth, size) in found else MISSING
                for size in SIZES
            ),
        ]
        for depth in DEPTHS
    ]
    return table(["", *(f"{size}x{size}" for size in SIZES)], rows)


def cost_ratio(key: str, more: tuple[int, int], less: tuple[int, int]) -> str:
    """How many times one cell, (depth, size), is another."""
    found = costs("steps")
    if more not in found or less not in found:
        return MISSING
    return f"{number(found[more][key] / found[less][key])} times"


def rate(depth: int, size: int) -> str:
    """Arithmetic of a measured step, by the nominal count."""
    row = costs("steps").get((depth, size))
    if row is None:
        return MISSING
    return f"{number(6 * row['multiply_adds'] * row['batch'] / row['step_ms'] / 1e6)} GFLOP/s"


NAMES: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        *(step, term, efficiency, all_reduces, images_to_hide, decoded, cores_needed, minutes),
        *(table_of_networks, table_of_machines, table_of_steps, table_of_bounds),
        *(table_of_inputs, table_of_costs, cost_ratio, rate, done),
    )
}


class Values:
    """What `filled` asks for the value of an expression."""

    names = NAMES


def draw_scaling() -> Figure:
    """Every term and the whole step against the number of devices."""
    chosen = ("cpu", "h100", "v5e", "v5p")
    lines = [(depth, scaling) for depth in (18, 50) for scaling in SCALINGS]
    figure = Figure((11, 9.6), layout="constrained")
    grid = figure.subplots(len(lines), len(chosen), sharex=True, sharey="row")
    for row, ((depth, scaling), panels) in enumerate(zip(lines, grid, strict=True)):
        for name, axes in zip(chosen, panels, strict=True):
            steps = [step_of(name, depth, scaling, n) for n in DEVICES]
            axes.plot(DEVICES, [1e3 * s.seconds for s in steps], **WHOLE)
            for key, (colour, line, marker) in TERMS.items():
                values = [1e3 * getattr(s, key) or float("nan") for s in steps]
                axes.plot(DEVICES, values, color=colour, ls=line, marker=marker, ms=3.5, lw=1.4)
            axes.set(xscale="log", yscale="log")
            axes.xaxis.set_major_locator(FixedLocator([1, 8, 64, 256, 1024]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylim(0.1, 60_000 if scaling == "strong" else 900)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.grid(alpha=0.3, lw=0.5)
            if row == 0:
                axes.set_title(machines()[name].title.replace(", ", "\n", 1), fontsize=10)
            if row == len(lines) - 1:
                axes.set_xlabel("devices")
        what = f"batch of {GLOBAL_BATCH:,}" if scaling == "strong" else "batch grows"
        panels[0].set_ylabel(f"ResNet-{depth}, {what}\nms a step")
    handles = [
        Line2D([], [], color=colour, ls=line, marker=marker, ms=4, label=key)
        for key, (colour, line, marker) in TERMS.items()
    ]
    handles.append(Line2D([], [], **WHOLE, label="the step"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
    return figure


def draw_costs() -> Figure:
    """Measured time and memory against multiply-adds."""
    found = costs("steps")
    figure = Figure((10, 4.4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for size, (colour, marker) in SIZE_STYLES.items():
        rows = [found[depth, size] for depth in DEPTHS if (depth, size) in found]
        if not rows:
            continue
        work = [row["multiply_adds"] / 1e9 for row in rows]
        style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 6, "lw": 1.4}
        time.plot(work, [row["step_ms"] / row["batch"] for row in rows], **style)
        memory.plot(work, [row["program_mib"] for row in rows], **style, label=f"{size}x{size}")
        memory.plot(work, [row["peak_mib"] for row in rows], **style | {"ls": ":", "mfc": "white"})
        for axes, row, value in (
            (time, rows[-1], rows[-1]["step_ms"] / rows[-1]["batch"]),
            (time, rows[0], rows[0]["step_ms"] / rows[0]["batch"]),
        ):
            place = (5, -9) if row is rows[0] else (-4, 7)
            axes.annotate(
                str(row["depth"]), (row["multiply_adds"] / 1e9, value), place,
                textcoords="offset points", fontsize=8, color=colour,
            )  # fmt: skip
    low, high = time.get_xlim()[0], time.get_xlim()[1]
    for gflops in (10, 100):
        ends = [6 * work / gflops * 1e3 for work in (low, high)]
        time.plot((low, high), ends, color="#777777", lw=0.8, ls="--", scalex=False, scaley=False)
        time.annotate(
            f"{gflops} GFLOP/s", (0.06, 6 * 0.06 / gflops * 1e3), (0, 4),
            textcoords="offset points", fontsize=8, color="#555555", rotation=30,
            rotation_mode="anchor",
        )  # fmt: skip
    for axes in (time, memory):
        _logarithmic(axes)
        axes.set_xlabel("multiply-adds of one image's forward pass, billions")
    time.set_ylabel("training step, ms an image")
    memory.set_ylabel("MiB")
    time.set_title("time, from 18 to 152 layers, batch 8", fontsize=10)
    memory.set_title("memory: of the step (filled), peak of the process (open)", fontsize=10)
    if found:
        memory.legend(frameon=False)
    return figure


def _logarithmic(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, lw=0.5)


def save(figure: Figure, path: Path) -> None:
    """As a PNG of 64 colours, half as large as one of all."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    Image.open(file).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Writes figures and pages."""
    save(draw_scaling(), ROOT / "docs/images/scaling.png")
    save(draw_costs(), Path(__file__).with_name("cost.png"))
    for page in PAGES:
        page.write_text(filled(page.read_text(), Values()))


if __name__ == "__main__":
    main()
