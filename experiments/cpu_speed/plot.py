"""Draws `results.json` and writes the tables of README.md from it and the other JSON files.

Command:   python experiments/cpu_speed/plot.py
Result:    docs/images/cpu_speed.png, and the tables here and in the project's README
"""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from benchmark import CASES, TORCH
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PICTURE = ROOT / "docs/images/cpu_speed.png"
# Okabe and Ito's colours, told apart by everyone.
SERIES = {
    "flax": ("Flax, the obvious way", "#000000", "s"),
    "torch": ("PyTorch at its best setting", "#D55E00", "^"),
    "resnet_jax": ("resnet_jax", "#0072B2", "o"),
}

Row = dict[str, float | str]


def by_case(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Rows by case and contender, with PyTorch's quickest setting as ``torch``."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if "median_ms" in row:
            found.setdefault(str(row["case"]), {})[str(row["contender"])] = row
    for row in found.values():
        of_torch = [row[name] for name in TORCH if name in row]
        if of_torch:
            row["torch"] = min(of_torch, key=lambda r: r["median_ms"])
    return found


def draw(found: dict[str, dict[str, Row]]) -> plt.Figure:
    """Milliseconds an image against the batch size, and each case beside PyTorch."""
    figure, (sweep, bars) = plt.subplots(
        1, 2, figsize=(10, 3.9), layout="constrained", width_ratios=(1, 1.15)
    )
    batches = [c for c in CASES if c["name"].startswith("training, batch") and c["name"] in found]
    for name, (label, colour, marker) in SERIES.items():
        sizes = [c["batch"] for c in batches]
        times = [found[c["name"]][name]["median_ms"] / c["batch"] for c in batches]
        sweep.plot(sizes, times, color=colour, marker=marker, ms=5, lw=1.5, label=label)
    sweep.set(xscale="log", yscale="log", xlabel="batch size", ylabel="training step, ms an image")
    sweep.set_ylim(0.8, 60)  # room for the legend above the lines
    sweep.xaxis.set_major_locator(FixedLocator([c["batch"] for c in batches]))
    sweep.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    for axis in (sweep.xaxis, sweep.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    sweep.grid(alpha=0.3, lw=0.5)
    sweep.legend(frameon=False, fontsize=9, loc="upper right")
    sweep.set_title("ResNet-18, 32x32x1", fontsize=10)

    names = [c["name"] for c in CASES if c["name"] in found][::-1]
    ratios = [found[n]["torch"]["median_ms"] / found[n]["resnet_jax"]["median_ms"] for n in names]
    colours = [SERIES["resnet_jax" if ratio >= 1 else "torch"][1] for ratio in ratios]
    drawn = bars.barh(names, ratios, color=colours, height=0.65)
    bars.axvline(1, color="#000000", lw=1)
    over_the_line = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    labels = [f"{ratio:.2f}x" for ratio in ratios]
    bars.bar_label(drawn, labels, padding=4, fontsize=9, bbox=over_the_line)
    bars.set(xlim=(0, max(ratios) * 1.15), xlabel="PyTorch's time / resnet_jax's time")
    bars.set_title("how many times as fast as PyTorch at its best setting", fontsize=10)
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def ratios(found: dict[str, dict[str, Row]]) -> str:
    """The table that the project's README shows too."""
    lines = [
        "| ResNet-18 | resnet_jax | PyTorch, best setting | Flax, obvious | faster than PyTorch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        row = found.get(case["name"])
        if not row:
            continue
        ours, torch, flax = row["resnet_jax"], row["torch"], row["flax"]
        setting = str(torch["contender"]).removeprefix("torch ")
        ratio = torch["median_ms"] / ours["median_ms"]
        lines.append(
            f"| {case['name']} | {ours['median_ms']:.1f} ms ({ours['quartile1_ms']:.1f} to "
            f"{ours['quartile3_ms']:.1f}) | {torch['median_ms']:.1f} ms "
            f"({torch['quartile1_ms']:.1f} to {torch['quartile3_ms']:.1f}), {setting} "
            f"| {flax['median_ms']:.0f} ms | **{ratio:.2f}x** |"
        )
    return "\n".join(lines)


def every_setting(found: dict[str, dict[str, Row]]) -> str:
    """Median of every contender, in milliseconds."""
    names = ("resnet_jax", "flax", *TORCH)
    lines = [f"| ms | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for case in (c["name"] for c in CASES if c["name"] in found):
        cells = [
            f"{found[case][name]['median_ms']:.1f}" if name in found[case] else "" for name in names
        ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def memory(found: dict[str, dict[str, Row]]) -> str:
    """Peak of resident memory; the JAX programs also where they compile first."""
    lines = [
        "| peak, MiB | resnet_jax | the same, compiling | Flax | PyTorch eager |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in (c["name"] for c in CASES if c["name"] in found):
        row = found[case]
        lines.append(
            f"| {case} | {row['resnet_jax']['peak_mib']} "
            f"| {row['resnet_jax'].get('peak_compiling_mib', '')} "
            f"| {row['flax']['peak_mib']} | {row['torch eager']['peak_mib']} |"
        )
    return "\n".join(lines)


def starts(rows: Iterable[Row]) -> str:
    """Seconds from the start of Python to the end of the first training step."""
    lines = ["| start to first step, batch 64 | seconds |", "| --- | --- |"]
    for state in ("cold", "warm"):
        seconds = [r["seconds"] for r in rows if r["case"] == f"start, {state} cache"]
        lines.append(f"| {state} compilation cache | {', '.join(f'{s:.1f}' for s in seconds)} |")
    return "\n".join(lines)


def phases(starts: list[dict[str, float]]) -> str:
    """Where a warm start's time goes: medians of `start.json`, and the median of the sums."""
    lines = ["| a warm start, batch 64 | seconds, median (range) |", "| --- | --- |"]
    columns = {phase: [row[phase] for row in starts] for phase in starts[0]}
    columns["**all**"] = [sum(row.values()) for row in starts]
    for phase, seconds in columns.items():
        middle = statistics.median(seconds)
        lines.append(f"| {phase} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) |")
    return "\n".join(lines)


def profile(steps: list[dict]) -> str:
    """Where a step's time goes: rows of `where_time_goes.json`."""
    parts = list(steps[0]["parts_ms"])
    titles = [f"batch {s['batch']}, {s['lowering']}" for s in steps]
    lines = [f"| ms | {' | '.join(titles)} |", f"| --- |{' --- |' * len(steps)}"]
    for part in parts:
        cells = [f"{step['parts_ms'][part]:.1f}" for step in steps]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    for title, key in (("step, undisturbed", "step_ms"), ("floor", "floor_ms")):
        lines.append(f"| **{title}** | {' | '.join(f'**{s[key]:.1f}**' for s in steps)} |")
    return "\n".join(lines)


def variants(rows: list[dict]) -> str:
    """The networks under several heuristics: `within` of `algorithms.json`.

    A cell is empty where the program is another's above it.
    """
    cases = list(dict.fromkeys((row["network"], row["what"], row["batch"]) for row in rows))
    titles = [f"{network}: {what}, batch {batch}" for network, what, batch in cases]
    lines = [
        f"| ms, and kernels | {' | '.join(titles)} |",
        f"| --- |{' --- |' * len(cases)}",
    ]
    found = {(r["heuristics"], r["network"], r["what"], r["batch"]): r for r in rows}
    for variant in dict.fromkeys(row["heuristics"] for row in rows):
        cells = [found.get((variant, *case)) for case in cases]
        shown = [f"{row['ms']:.1f}, {row['kernels']}" if row else "" for row in cells]
        lines.append(f"| {variant} | {' | '.join(shown)} |")
    return "\n".join(lines)


def algorithms(rows: list[dict]) -> str:
    """Every algorithm alone, at each batch size, the chosen ones bold."""
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    batches = ", ".join(dict.fromkeys(str(row["batch"]) for row in rows))
    lines = [f"| ms at batch {batches} | | {' | '.join(names)} |", f"| --- | --- |{' --- |' * 5}"]
    pairs: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        pairs.setdefault((row["convolution"], row["pass"]), []).append(row)
    for (convolution, pass_), pair in pairs.items():
        cells = [
            ", ".join(
                f"**{row['ms'][name]:.2f}**" if name == row["chosen"] else f"{row['ms'][name]:.2f}"
                for row in pair
            )
            if name in pair[0]["ms"]
            else ""
            for name in names
        ]
        lines.append(f"| {convolution} | {pass_} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(page: Path, tables: dict[str, str]) -> None:
    """Puts each table between its marks."""
    text = page.read_text()
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        text = before + begin + table + "\n" + end + rest.split(end)[1]
    page.write_text(text)


def main() -> None:
    """Writes the picture and the tables."""
    rows = json.loads((HERE / "results.json").read_text())["rows"]
    steps = json.loads((HERE / "where_time_goes.json").read_text())
    found = by_case(rows)
    draw(found).savefig(PICTURE, dpi=110)
    shown = {c["name"] for c in CASES if c["batch"] not in (32, 128, 512)}
    short = {name: row for name, row in found.items() if name in shown}
    write(ROOT / "README.md", {"speed": ratios(short)})
    tables = {"speed": ratios(found), "settings": every_setting(found), "memory": memory(found)}
    tables |= {"starts": starts(rows), "profile": profile(steps)}
    tables["phases"] = phases(json.loads((HERE / "start.json").read_text()))
    measured = json.loads((HERE / "algorithms.json").read_text())
    tables |= {"variants": variants(measured["within"])}
    tables["algorithms"] = algorithms(measured["alone"])
    write(HERE / "README.md", tables)


if __name__ == "__main__":
    main()
