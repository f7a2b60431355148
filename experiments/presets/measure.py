"""What do the presets reach, and in which time?

Command:   python experiments/presets/measure.py            (all; an hour on 2 cores)
           python experiments/presets/measure.py mnist      (one)
           python experiments/presets/measure.py --report   (only rewrite the tables)
Needs:     the full MNIST prepared: $TFDS_DATA_DIR, or `resnet-jax data prepare mnist`
Result:    results.jsonl, a line for each run; README.md here and the project's show its tables
Machine:   2 cores of an Intel Xeon with AVX-512, 24 GiB, no accelerator

Each run is the user's own command in a process of its own, timed from start to exit. What is done
is skipped, and a run that was killed resumes. The figures of PyTorch are of the same protocol in
PyTorch 2.13, 5 seeds, measured apart from this script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"


@dataclass(frozen=True)
class Question:
    """One row of the table: a command, and the result that is asked for."""

    title: str
    arguments: tuple[str, ...]
    seeds: int
    split: str
    checkpoint: str
    pytorch: str = ""


QUESTIONS = {
    "quickstart": Question(
        "`quickstart`: 4,000 digits, 500 test images", ("quickstart",), 3, "test", "latest"
    ),
    "mnist": Question(
        "`mnist`: 55,000 digits, 5 epochs, 10,000 test images", ("mnist",), 3, "test", "latest"
    ),
    "book": Question(
        "`book`, residual: 1,000 digits, 10,000 test images",
        ("book",), 10, "test_all", "latest", "91.19 %",
    ),
    "book_plain": Question(
        "`book --model.no-residual`, plain: the same",
        ("book", "--model.no-residual"), 10, "test_all", "latest", "90.56 %",
    ),
}  # fmt: skip


def measure(name: str, question: Question, runs: Path) -> None:
    """Runs the seeds of a question that have no line yet."""
    done = {(row["question"], row["seed"]) for row in read()}
    for seed in range(question.seeds):
        if (name, seed) in done:
            continue
        folder = runs / f"{name}-seed{seed}"
        command = [sys.executable, "-m", "resnet_jax.cli", "train", *question.arguments]
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
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        times = [row["seconds"] for row in found if row["seconds"]]
        lines.append(
            f"| {question.title} | {len(found)} "
            f"| **{statistics.mean(accuracies):.2f} %**{spread} "
            f"| {' '.join(f'{a:.2f}' for a in accuracies)} "
            f"| {f'{statistics.median(times):.0f} s' if times else ''} | {question.pytorch} |"
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
    parser.add_argument("--runs", type=Path, default=Path("runs/presets"))
    parser.add_argument("--report", action="store_true", help="only rewrite the tables")
    arguments = parser.parse_args()
    unknown = set(arguments.questions) - set(QUESTIONS)
    if unknown:
        parser.error(f"not known: {', '.join(unknown)}; give some of {', '.join(QUESTIONS)}")
    if not arguments.report:
        for name in arguments.questions or QUESTIONS:
            measure(name, QUESTIONS[name], arguments.runs)
    report()
    print(table())


if __name__ == "__main__":
    main()
