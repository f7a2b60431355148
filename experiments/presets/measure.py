"""What do the presets reach, and in which time, and does PyTorch reach the same?

Command:   python -m experiments.presets.measure   (three hours on 2 cores; --list, --only, --quick)
Needs:     the full MNIST prepared: $TFDS_DATA_DIR, or `resnet-jax data prepare mnist`; for the
           comparison PyTorch (torch==2.13.0)
Result:    results.jsonl, a line for each run

Each run is the user's own command in a process of its own, timed from start to exit.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from experiments import units
from experiments.measuring import Row, count_seeds, in_process, mean_and_sd, read_json, read_rows
from experiments.tables import table

RESULTS = Path(__file__).with_name("results.jsonl")
OTHER_IMAGES = RESULTS.parents[1] / "residual_study/pytorch.json"
QUICK = ("--epochs", "0.01", "--model.width", "8", "--model.lowering", "reference")


class Question(NamedTuple):
    arguments: tuple[str, ...]
    seeds: int
    split: str = "test"
    title: str = ""  # of its line in the table; without a title it has none


PLAIN, DEEP = ("--model.no-residual",), ("--model.name", "resnet34")
QUESTIONS = {
    "quickstart": Question(
        ("quickstart",), 3, title="`quickstart`: 4,000 digits, 500 test images"
    ),
    "fast": Question(
        ("fast", "--no-report"), 5,
        title="`fast`: 55,000 digits until validation passes 99.1 %, at most 1.5 epochs, 10,000 "
        "test images",
    ),
    "mnist": Question(
        ("mnist",), 3, title="`mnist`: 55,000 digits, 5 epochs, 10,000 test images"
    ),
    "book": Question(
        ("book",), 10, "test_all", "`book`, residual: 1,000 digits, 10,000 test images"
    ),
    "book_plain": Question(
        ("book", *PLAIN), 10, "test_all", "`book --model.no-residual`, plain: the same"
    ),
    "fast_pytorch": Question(("fast",), 5),
    "book_pytorch": Question(("book",), 10, "test_all"),
    "book_plain_pytorch": Question(("book", *PLAIN), 10, "test_all"),
    "book34_pytorch": Question(("book", *DEEP), 10, "test_all"),
    "book34_plain_pytorch": Question(("book", *DEEP, *PLAIN), 10, "test_all"),
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """One run of a command, or of PyTorch if the name of the question ends in "_pytorch"."""

    question: str
    seed: int

    def __str__(self) -> str:
        return f"{self.question}-seed{self.seed}"


def measurements() -> list[Measurement]:
    """Return all runs; a command and PyTorch take turns, so that a slow hour falls on both."""
    found = (
        Measurement(name, seed)
        for one in QUESTIONS
        for seed in range(QUESTIONS[one].seeds)
        for name in (one, f"{one}_pytorch")
        if name in QUESTIONS and (find_spec("torch") or not name.endswith("_pytorch"))
    )
    return list(dict.fromkeys(found))


def measure(quick: bool, unit: Measurement, folder: Path) -> Row:
    question = QUESTIONS[unit.question]
    arguments = [*question.arguments, "--seed", str(unit.seed), *QUICK * quick]
    if unit.question.endswith("_pytorch"):
        found = in_process("pytorch", "main", arguments)
        return {"tests": [{"split": question.split, "checkpoint": "latest", **found}]}
    resumed, began = folder.exists(), time.monotonic()
    command = [sys.executable, "-m", "resnet_jax", "train", *arguments, "--run-dir", str(folder)]
    subprocess.run(command, check=True)
    # The time of a run that was resumed after a kill is not known.
    seconds = None if resumed else round(time.monotonic() - began, 1)
    tests = read_rows(folder / "metrics.jsonl", kind="test")
    kept = ("split", "checkpoint", "step", "accuracy", "loss")
    return {"seconds": seconds, "tests": [{key: test[key] for key in kept} for test in tests]}


def accuracies_of(question: str) -> list[float]:
    """Return the accuracy of each seed's last parameters, in percent."""
    wanted = (QUESTIONS[question].split, "latest")
    tests = (test for row in read_rows(RESULTS, question=question) for test in row["tests"])
    return [100 * t["accuracy"] for t in tests if (t["split"], t["checkpoint"]) == wanted]


def seconds_of(question: str) -> list[float]:
    return [row["seconds"] for row in read_rows(RESULTS, question=question) if row["seconds"]]


def _time(question: str, in_full: bool) -> str:
    if not (times := seconds_of(question)):
        return ""
    spread = f" ({min(times):.0f} to {max(times):.0f})" if in_full else ""
    return f"{statistics.median(times):.0f} s{spread}"


def _in_pytorch(name: str, in_full: bool) -> str:
    twin, network = f"{name}_pytorch", (18, PLAIN[0] not in QUESTIONS[name].arguments, 0.005)
    found = [
        f"{statistics.fmean(row['seeds']):.1f} % on other images"  # the first 1,000 digits, 5 seeds
        for row in read_json(OTHER_IMAGES)["accuracy"]
        if name.startswith("book") and (row["layers"], row["residual"], row["rate"]) == network
    ]
    if accuracies := accuracies_of(twin) if twin in QUESTIONS else []:
        here = f"{mean_and_sd(accuracies, 2, ' %')} ({count_seeds(accuracies)})"
        found.append(", ".join(filter(None, (here, _time(twin, in_full)))))
    return "; ".join(found)


def presets(in_full: bool = False) -> str:
    """Tabulate the results; ``in_full`` adds the accuracy of each seed and the range of times."""
    lines = []
    for name, question in QUESTIONS.items():
        if question.title:
            accuracies = accuracies_of(name)
            each = [" ".join(f"{a:.2f}" for a in accuracies)] * in_full
            mean = f"**{mean_and_sd(accuracies, 2, ' %')}**"
            times = _time(name, in_full), _in_pytorch(name, in_full)
            lines.append([question.title, len(accuracies), mean, *each, *times])
    each = ["each"] * in_full
    head = ["what", "seeds", "accuracy, mean ± sd", *each, "time of the command", "PyTorch"]
    return table(head, lines)


if __name__ == "__main__":
    options = units.parsed(__doc__, RESULTS)
    units.carry_out(measurements(), options, partial(measure, options.quick))
