"""What do the presets reach, and in which time?

Command:   python -m experiments.presets.measure            (all; an hour on 2 cores)
           python -m experiments.presets.measure mnist      (one)
Needs:     the full MNIST prepared: $TFDS_DATA_DIR, or `resnet-jax data prepare mnist`
Result:    results.jsonl, a line for each run. Test accuracy, mean ± sd: quickstart 98.27 ± 0.31 %
           (3 seeds), fast 99.22 ± 0.07 % (5), mnist 99.55 ± 0.03 % (3), book 92.51 ± 0.18 % and
           plain 92.03 ± 0.80 % (10)
Machine:   2 cores, 24 GiB, no accelerator; each line of results.jsonl names its processor

Each run is the user's own command in a process of its own, timed from start to exit. What is done
is skipped, and a run that was killed resumes. PyTorch's figures are of the same recipe on the same
images, by `book_pytorch.py` and `fast_pytorch.py`; those on other images are of the same protocol
on the first 1,000 digits of MNIST in the book's order, 5 seeds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from experiments.measuring import Row, append_row, machine, read_rows
from experiments.tables import table

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
RUNS = Path("runs/presets")


class Question(NamedTuple):
    """One row of the table: a command, and the result that is asked for."""

    title: str
    arguments: tuple[str, ...]
    seeds: int
    split: str = "test"
    on_other_images: str = ""  # PyTorch's accuracy
    pytorch: str = ""  # the file with PyTorch's on these, and what its rows must say
    rows_of_pytorch: Row = {}  # noqa: RUF012


QUESTIONS = {
    "quickstart": Question("`quickstart`: 4,000 digits, 500 test images", ("quickstart",), 3),
    "fast": Question(
        "`fast`: 55,000 digits until validation passes 99.1 %, 10,000 test images",
        ("fast", "--no-report"), 5, pytorch="fast_pytorch.jsonl",
    ),
    "mnist": Question("`mnist`: 55,000 digits, 5 epochs, 10,000 test images", ("mnist",), 3),
    "book": Question(
        "`book`, residual: 1,000 digits, 10,000 test images", ("book",), 10, "test_all",
        "91.19 %", "book_pytorch.jsonl", {"layers": 18, "residual": True},
    ),
    "book_plain": Question(
        "`book --model.no-residual`, plain: the same", ("book", "--model.no-residual"), 10,
        "test_all", "90.56 %", "book_pytorch.jsonl", {"layers": 18, "residual": False},
    ),
}  # fmt: skip


def measure(name: str, seeds: Iterable[int], runs: Path) -> None:
    question = QUESTIONS[name]
    done = {(row["question"], row["seed"]) for row in read_rows(RESULTS)}
    for seed in seeds:
        if (name, seed) in done:
            continue
        folder = runs / f"{name}-seed{seed}"
        command = [sys.executable, "-m", "resnet_jax", "train", *question.arguments]
        command += ["--seed", str(seed), "--run-dir", str(folder)]
        resumed, began = folder.exists(), time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - began
        tests = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "test"]
        kept = ("split", "checkpoint", "step", "accuracy", "loss")
        where = machine()
        row = {"question": name, "seed": seed}
        # A run that went on after a kill has no time of its own.
        row |= {"seconds": None if resumed else round(seconds, 1), "cores": where["cores"]}
        row |= {"processor": where["processor"], "load": round(os.getloadavg()[1], 1)}
        row |= {"tests": [{key: test[key] for key in kept} for test in tests]}
        append_row(RESULTS, row)


def accuracy_of(accuracies: list[float]) -> str:
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2f} %{spread}"


def time_of(rows: list[Row], in_full: bool) -> str:
    """Median of the runs' seconds, of those that have any, and their range."""
    times = [row["seconds"] for row in rows if row.get("seconds")]
    if not times:
        return ""
    spread = f" ({min(times):.0f} to {max(times):.0f})" if in_full else ""
    return f"{statistics.median(times):.0f} s{spread}"


def of_pytorch(question: Question, in_full: bool) -> str:
    rows = read_rows(HERE / question.pytorch) if question.pytorch else []
    rows = [row for row in rows if question.rows_of_pytorch.items() <= row.items()]
    found = [f"{question.on_other_images} on other images"] if question.on_other_images else []
    if rows:
        seeds = f"{len(rows)} seed{'s' * (len(rows) > 1)}"
        here = f"{accuracy_of([100 * row['accuracy'] for row in rows])} ({seeds})"
        found.append(", ".join(filter(None, (here, time_of(rows, in_full)))))
    return "; ".join(found)


def presets(in_full: bool = False) -> str:
    """The results; in full with the accuracy of each seed and the range of times."""
    lines = []
    for name, question in QUESTIONS.items():
        found = [row for row in read_rows(RESULTS) if row["question"] == name]
        found.sort(key=lambda row: row["seed"])
        accuracies = [
            100 * test["accuracy"]
            for row in found
            for test in row["tests"]
            if (test["split"], test["checkpoint"]) == (question.split, "latest")
        ]
        line = [question.title, len(found), f"**{accuracy_of(accuracies)}**"]
        line += [" ".join(f"{a:.2f}" for a in accuracies)] * in_full
        lines.append([*line, time_of(found, in_full), of_pytorch(question, in_full)])
    each = ["each"] * in_full
    head = ["what", "seeds", "accuracy, mean ± sd", *each, "time of the command", "PyTorch"]
    return table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", help=", ".join(QUESTIONS))
    parser.add_argument("--runs", type=Path, default=RUNS)
    arguments = parser.parse_args()
    if unknown := set(arguments.questions) - set(QUESTIONS):
        parser.error(f"not known: {', '.join(unknown)}; give some of {', '.join(QUESTIONS)}")
    for name in arguments.questions or QUESTIONS:
        measure(name, range(QUESTIONS[name].seeds), arguments.runs)


if __name__ == "__main__":
    main()
