"""The command: carries out the runs that have no line yet, and says how long the rest takes."""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import resnet_jax as rj
from resnet_jax.data.dataset import Dataset, sample
from resnet_jax.training.jax_settings import configured_jax

from .measure import Laboratory, carry_out
from .results import RESULTS, append, read
from .study import Run, quick_runs, runs

QUICK_RESULTS = Path("runs/residual_study_quick.jsonl")


def load(config: rj.TrainConfig) -> Dataset:
    """The sample of the data set that a setting asks for."""
    assert config.data.subset
    train, validation, test = config.data.subset
    data = rj.load_dataset(config.data.name, config.data.dir)
    return sample(data, train=train, validation=validation, test=test, seed=config.data.subset_seed)


def carry_out_all(left: list[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Network by network, so that no more than one's programs are in memory."""
    loaded: dict[str, Dataset] = {}
    for (network, setting), group in groupby(left, lambda run: (run.network, run.setting)):
        laboratory = None
        for run in group:
            if setting not in loaded:
                loaded[setting] = load(run.config)
            laboratory = laboratory or Laboratory(network, run.config)
            yield run, carry_out(run, laboratory, loaded[setting])


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all done, 75 some left (the same command goes on)."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.residual_study", description=__doc__
    )
    parser.add_argument("--quick", action="store_true", help="the study in miniature")
    parser.add_argument("--only", default="", help="runs whose name contains this; see --list")
    parser.add_argument("--list", action="store_true", help="show the runs and which are done")
    parser.add_argument("--minutes", type=float, help="begin no further run after this time")
    parser.add_argument("--results", type=Path, help="file of results, one line for each run")
    options = parser.parse_args(arguments)
    path = options.results or (QUICK_RESULTS if options.quick else RESULTS)

    every = quick_runs() if options.quick else runs()
    chosen = [run for run in every if options.only in str(run)]
    if not chosen:
        parser.error(f"--only {options.only}: no run has that in its name; see --list")
    rows = read(path)
    keys = [{name: row.get(name) for name in chosen[0].key} for row in rows]
    left = [run for run in chosen if run.key not in keys]
    if options.list:
        for run in chosen:
            print("to do" if run in left else "done ", run)
        return 0

    console = Console(highlight=False, soft_wrap=True)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=console,
        transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    began, done, total = time.monotonic(), 0.0, sum(run.cost for run in left)
    console.print(f"{len(chosen) - len(left)} of {len(chosen)} runs are done: {path}")
    with configured_jax(chosen[0].config), bar:
        task = bar.add_task("compiling", total=len(chosen), completed=len(chosen) - len(left))
        for count, (run, result) in enumerate(carry_out_all(left), 1):
            append(path, {**run.key, **result})
            done += run.cost
            elapsed = time.monotonic() - began
            minutes = elapsed * (total - done) / done / 60
            accuracy = f"{result['test']['accuracy']:7.2%}"
            seconds = f"{result['seconds']:5.1f} s"
            console.print(f"{run}: {accuracy} in {seconds}; {minutes:.0f} min left")
            bar.update(task, advance=1, description=f"about {minutes:.0f} min left")
            if options.minutes and elapsed > 60 * options.minutes and count < len(left):
                console.print(f"{len(left) - count} runs are left; the same command goes on")
                return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())
