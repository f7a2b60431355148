"""What do the measurements of this folder look like?

Command:   python -m experiments.cpu_speed.plot     (the picture)
           python -m experiments.tables             (the tables of README.md and of the project's)
Result:    docs/images/cpu_speed.png
"""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from experiments.cpu_speed.benchmark import CASES, CONTENDERS, DEVICES, QUARTILES, TORCH
from experiments.measuring import Row, read_json
from experiments.plotting import BLACK, BLUE, GREEN, ORANGE, logarithmic, panels
from experiments.tables import ROOT, crossed, table

SERIES = {
    "flax": ("Flax, the obvious way", BLACK, "s"),
    "torch": ("PyTorch at its best float32 setting", ORANGE, "^"),
    "resnet_jax": ("resnet_jax", BLUE, "o"),
}
PROCESSORS = {"avx2": "AVX2", "avx512": "AVX-512", "amx": "AVX-512 and AMX"}
LINES = {"avx2": "--", "avx512": "-", "amx": ":"}
USUAL = r"{}, batch \d+"  # cases of 32x32x1


def read(name: str, processor: str = "avx2"):
    return read_json(Path(__file__).parent / processor / f"{name}.json")


def by_case(rows: Iterable[Row], cores: str | None = None) -> dict[str, dict[str, Row]]:
    """Return rows by case and contender, with PyTorch's quickest setting of that type as ``torch``.

    ``cores``: None for cores with a cache in common, or "apart"; rows of a single call go to both.
    """
    found: dict[str, dict[str, Row]] = {}
    for row in (row for row in rows if row.get("cores") == cores or row.get("calls") == 1):
        found.setdefault(row["case"], {})[row["contender"]] = row
    compared = {}
    for case, row in found.items():
        settings = [n for n in TORCH if n in row and (n == "torch bf16") <= ("bfloat16" in case)]
        if settings and "resnet_jax" in row:
            row["torch"] = min((row[n] for n in settings), key=lambda r: r["median_ms"])
            row["speed_up"] = row["torch"]["median_ms"] / row["resnet_jax"]["median_ms"]
            compared[case] = row
    return compared


def measured(processor: str) -> dict[str, dict[str, Row]]:
    return fullest(read("results", processor)["rows"])


def fullest(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Return each case's rows, as `by_case` does, from the kind of turns with more contenders.

    Kinds: with a cache in common, which wins a tie, and with cores apart, which `titled` marks.
    """
    found: dict[str, dict[str, Row]] = {}
    for kind in (by_case(rows), by_case(rows, "apart")):
        for case, row in kind.items():
            found[case] = max(found.get(case, {}), row, key=len)
    return {case: found[case] for case in dict.fromkeys(r["case"] for r in rows) if case in found}


def titled(case: str, row: dict[str, Row]) -> str:
    return f"{case} *" if row["resnet_jax"].get("cores") == "apart" else case


def draw() -> Figure:
    results = {processor: measured(processor) for processor in PROCESSORS}
    titles = ("ResNet-18, 32x32x1", "times as fast as PyTorch at its best")
    figure, ((sweep, bars),) = panels((10, 7), titles, width_ratios=(1, 1.15))
    usual = re.compile(USUAL.format("training"))
    sizes = {case["name"]: case["batch"] for case in CASES if usual.fullmatch(case["name"])}
    for name, (label, colour, marker) in SERIES.items():
        style = {"color": colour, "marker": marker, "ms": 5, "lw": 1.5}
        sweep.plot([], [], **style, label=label)
        for processor, found in results.items():
            known = {case: size for case, size in sizes.items() if name in found.get(case, {})}
            times = [found[case][name]["median_ms"] / size for case, size in known.items()]
            sweep.plot(known.values(), times, **style, ls=LINES[processor])
    for processor, line in LINES.items():
        sweep.plot([], [], color="grey", ls=line, label=PROCESSORS[processor])
    logarithmic(sweep.xaxis, tuple(sizes.values()))
    logarithmic(sweep.yaxis, (1, 2, 5, 10, 20, 50))
    sweep.set(xlabel="batch size", ylabel="training step, ms an image")
    sweep.set_ylim(0.5, 150)  # room for the legend above the lines
    sweep.legend(frameon=False, fontsize=9, loc="upper right")

    columns = {PROCESSORS[p]: {c: r["speed_up"] for c, r in results[p].items()} for p in PROCESSORS}
    ratios = pd.DataFrame(columns).reindex([case["name"] for case in CASES]).dropna(how="all")
    ratios.iloc[::-1, ::-1].plot.barh(ax=bars, color=[GREEN, BLUE, ORANGE], width=0.84)
    edge = {"facecolor": "white", "edgecolor": "none", "pad": 0}
    for drawn in bars.containers:
        labels = [f"{ratio:.2f}x" if ratio else "" for ratio in drawn.datavalues]
        bars.bar_label(drawn, labels, padding=3, fontsize=7, bbox=edge)
    bars.axvline(1, color=BLACK, lw=1)
    bars.margins(x=0.15)
    bars.set(xlabel="PyTorch's time / resnet_jax's time")
    bars.legend(frameon=False, fontsize=9, loc="lower right", reverse=True)
    bars.grid(False)
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def speed_ups(what: str, processor: str) -> str:
    found = measured(processor)
    usual = [found[name]["speed_up"] for name in found if re.fullmatch(USUAL.format(what), name)]
    return f"{min(usual):.1f} to {max(usual):.1f}"


def slower(processor: str) -> str:
    ratios = ((row["speed_up"], name) for name, row in measured(processor).items())
    return ", ".join(f"{ratio:.2f} ({name})" for ratio, name in ratios if ratio < 1) or "none"


def comparison(title: str, found: dict[str, dict[str, Row]], digits: int = 1) -> str:
    """Tabulate the time of each case here, in PyTorch's best setting and, if measured, in Flax."""

    def time(row: Row) -> str:
        low, middle, high = (f"{row[k]:.{digits}f}" for k in QUARTILES)
        return f"{middle} ms ({low} to {high})"

    lines = []
    for name, row in found.items():
        torch = f"{time(row['torch'])}, {row['torch']['contender'].removeprefix('torch ')}"
        flax = f"{row['flax']['median_ms']:.0f} ms" if "flax" in row else ""
        ratio = f"**{row['speed_up']:.2f}x**"
        lines.append([titled(name, row), time(row["resnet_jax"]), torch, flax, ratio])
    head = [title, "resnet_jax", "PyTorch, best setting", "Flax, obvious", "speed-up"]
    return table(head, lines)


def speed(processor: str) -> str:
    return comparison(f"ResNet-18, {PROCESSORS[processor]}", measured(processor))


def apart(processor: str) -> str:
    """Tabulate times with and without a cache that the two cores have in common."""
    titles = ("resnet_jax", DEVICES, "PyTorch, best setting")
    rows = read("results", processor)["rows"]
    together, apart, lines = by_case(rows), by_case(rows, "apart"), []
    for case in (case for case in apart if case in together):
        best = together[case]["torch"]["contender"]
        cells = [
            f"{places[name]['median_ms']:.1f}" if name in places else ""
            for name in ("resnet_jax", DEVICES, best)
            for places in (together[case], apart[case])
        ]
        lines.append([case, *cells])
    head = [f"{title}, {cores}" for title in titles for cores in ("one cache", "apart")]
    return table([f"ms, {PROCESSORS[processor]}", *head], lines)


def settings(processor: str) -> str:
    found = measured(processor)
    cells = {
        (titled(case, row), name): f"{row[name]['median_ms']:.1f}"
        for name in CONTENDERS
        for case, row in found.items()
        if name in row
    }
    return crossed(cells, f"ms, {PROCESSORS[processor]}")


def memory(processor: str) -> str:
    columns = {
        "resnet_jax": ("resnet_jax", "peak_mib"),
        "the same, compiling": ("resnet_jax", "peak_compiling_mib"),
        "Flax": ("flax", "peak_mib"),
        "PyTorch eager": ("torch eager", "peak_mib"),
    }
    cells = {
        (titled(case, row), title): str(row.get(name, {}).get(key, ""))
        for case, row in measured(processor).items()
        for title, (name, key) in columns.items()
    }
    return crossed(cells, f"peak, MiB, {PROCESSORS[processor]}")


def starts(processor: str) -> str:
    lines = (
        [f"{state} compilation cache", ", ".join(f"{s:.1f}" for s in seconds)]
        for state, seconds in read("start", processor)["starts"].items()
    )
    return table(["start to first step, batch 64", "seconds"], lines)


def phases() -> str:
    columns = pd.DataFrame(read("start")["phases"])
    columns["**all**"] = columns.sum(axis=1)
    columns = {name: (s.median(), s.min(), s.max()) for name, s in columns.items()}
    lines = ([name, "{:.2f} ({:.2f} to {:.2f})".format(*three)] for name, three in columns.items())
    return table(["a warm start, batch 64", "seconds, median (range)"], lines)


def profile() -> str:
    cells = {}
    for step in read("where_time_goes"):
        column = f"batch {step['batch']}, {step['lowering']}"
        cells |= {(part, column): f"{ms:.1f}" for part, ms in step["parts_ms"].items()}
        for title, key in (("**step, undisturbed**", "step_ms"), ("**floor**", "floor_ms")):
            cells[title, column] = f"**{step[key]:.1f}**"
    return crossed(cells, "ms")


def variants(processor: str) -> str:
    """Tabulate the networks under several heuristics; a program equal to one above has no cell."""
    title = "{network}: {what}, batch {batch}".format_map
    rows = read("algorithms", processor)["within"]
    cells = {(r["heuristics"], title(r)): f"{r['ms']:.1f}, {r['kernels']}" for r in rows}
    return crossed(cells, "ms, and kernels")


def algorithms(processor: str) -> str:
    rows = sorted(read("algorithms", processor)["alone"], key=lambda row: row["batch"])
    cells: dict[tuple[str, ...], str] = {}
    for row in rows:
        for name, ms in row["ms"].items():
            cell = row["convolution"], row["pass"], name
            time = f"**{ms:.2f}**" if name == row["chosen"] else f"{ms:.2f}"
            cells[cell] = f"{cells[cell]}, {time}" if cell in cells else time
    batches = ", ".join(dict.fromkeys(str(row["batch"]) for row in rows))
    return crossed(cells, f"ms at batch {batches}", "")


if __name__ == "__main__":
    draw().savefig(ROOT / "docs/images/cpu_speed.png", dpi=110)
