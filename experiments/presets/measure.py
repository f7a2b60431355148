"""What do the presets reach, and in which time?

Command:   python experiments/presets/measure.py            (all; an hour on 2 cores)
           python experiments/presets/measure.py mnist      (one)
           python experiments/presets/measure.py --report   (only rewrite the tables)
Needs:     the full MNIST prepared: $TFDS_DATA_DIR, or `resnet-jax data prepare mnist`
Result:    results.jsonl, a line for each run; README.md here and the project's show its tables
Machine:   2 cores, 24 GiB, no accelerator; each line of results.jsonl names its processor

Each run is the user's own command in a process of its own, timed from start to exit. What is done
is skipped, and a run that was killed resumes. PyTorch's figures are of the same recipe on the same
images, by `book_pytorch.py` and `fast_pytorch.py`; those on other images are of the same protocol
on the first 1,000 digits of MNIST in the book's order, 5 seeds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
RUNS = Path("runs/presets")


@dataclass(frozen=True)
class Question:
    """One row of the table: a command, and the result that is asked for."""

    title: str
    arguments: tuple[str, ...]
    seeds: int
    split: str
    checkpoint: str
    on_other_images: str = ""  # PyTorch's accuracy
    pytorch: str = ""  # the file with PyTorch's on these, and what its rows must say
    rows_of_pytorch: tuple[tuple[str, object], ...] = ()


QUESTIONS = {
    "quickstart": Question(
        "`quickstart`: 4,000 digits, 500 test images", ("quickstart",), 3, "test", "latest"
    ),
    "fast": Question(
        "`fast`: 55,000 digits until validation passes 99.1 %, 10,000 test images",
        ("fast", "--no-report"), 5, "test", "latest", pytorch="fast_pytorch.jsonl",
    ),
    "mnist": Question(
        "`mnist`: 55,000 digits, 5 epochs, 10,000 test images", ("mnist",), 3, "test", "latest"
    ),
    "book": Question(
        "`book`, residual: 1,000 digits, 10,000 test images",
        ("book",), 10, "test_all", "latest", "91.19 %",
        "book_pytorch.jsonl", (("layers", 18), ("residual", True)),
    ),
    "book_plain": Question(
        "`book --model.no-residual`, plain: the same",
        ("book", "--model.no-residual"), 10, "test_all", "latest", "90.56 %",
        "book_pytorch.jsonl", (("layers", 18), ("residual", False)),
    ),
}  # fmt: skip


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure(name: str, seeds: Iterable[int], runs: Path) -> None:
    """Runs those seeds of a question that have no line yet."""
    question = QUESTIONS[name]
    done = {(row["question"], row["seed"]) for row in read()}
    for seed in seeds:
        if (name, seed) in done:
            continue
        folder = runs / f"{name}-seed{seed}"
        command = [sys.executable, "-m", "resnet_jax", "train", *question.arguments]
        resumed = folder.exists()
        began = time.perf_counter()
        subprocess.run([*command, "--seed", str(seed), "--run-dir", str(folder)], check=True)
        seconds = time.perf_counter() - began
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        tests = [row for row in map(json.loads, lines) if row["kind"] == "test"]
        row = {
            "question": name,
            "seed": seed,
            # A run that went on after a kill has no time of its own.
            "seconds": None if resumed else round(seconds, 1),
            "cores": os.cpu_count(),
            "processor": processor(),
            "load": round(os.getloadavg()[1], 1),
            "tests": [
                {key: test[key] for key in ("split", "checkpoint", "step", "accuracy", "loss")}
                for test in tests
            ],
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read() -> list[dict]:
    return [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []


def accuracy_of(accuracies: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2f} %{spread}"


def time_of(rows: list[dict]) -> str:
    """Median and range of the runs' seconds, of those that have any."""
    times = [row["seconds"] for row in rows if row.get("seconds")]
    if not times:
        return ""
    return f"{statistics.median(times):.0f} s ({min(times):.0f} to {max(times):.0f})"


def of_pytorch(question: Question) -> str:
    """PyTorch's accuracy and time, on these images and on others."""
    path = HERE / (question.pytorch or ".")
    rows = [json.loads(line) for line in path.open()] if path.is_file() else []
    rows = [row for row in rows if set(question.rows_of_pytorch) <= row.items()]
    found = [f"{question.on_other_images} on other images"] if question.on_other_images else []
    if rows:
        seeds = f"{len(rows)} seed{'s' * (len(rows) > 1)}"
        here = f"{accuracy_of([100 * row['accuracy'] for row in rows])} ({seeds})"
        found.append(", ".join(filter(None, (here, time_of(rows)))))
    return "; ".join(found)


def table() -> str:
    """The results as a Markdown table."""
    lines = [
        "| what | seeds | accuracy, mean ± sd | each | time of the command | PyTorch |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = read()
    for name, question in QUESTIONS.items():
        found = sorted((r for r in rows if r["question"] == name), key=lambda r: r["seed"])
        if not found:
            continue
        accuracies = [
            100 * test["accuracy"]
            for row in found
            for test in row["tests"]
            if (test["split"], test["checkpoint"]) == (question.split, question.checkpoint)
        ]
        lines.append(
            f"| {question.title} | {len(found)} | **{accuracy_of(accuracies)}** "
            f"| {' '.join(f'{a:.2f}' for a in accuracies)} | {time_of(found)} "
            f"| {of_pytorch(question)} |"
        )
    return "\n".join(lines)


def report() -> None:
    """Puts the table between the marks in both READMEs."""
    for page in (HERE / "README.md", HERE.parents[1] / "README.md"):
        text = page.read_text()
        begin, end = "<!-- presets -->\n", "<!-- end presets -->"
        before, rest = text.split(begin)
        page.write_text(before + begin + table() + "\n" + end + rest.split(end)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", help=f"some of {', '.join(QUESTIONS)}")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--report", action="store_true", help="only rewrite the tables")
    arguments = parser.parse_args()
    unknown = set(arguments.questions) - set(QUESTIONS)
    if unknown:
        parser.error(f"not known: {', '.join(unknown)}; give some of {', '.join(QUESTIONS)}")
    if not arguments.report:
        for name in arguments.questions or QUESTIONS:
            measure(name, range(QUESTIONS[name].seeds), arguments.runs)
    report()
    print(table())


if __name__ == "__main__":
    main()
