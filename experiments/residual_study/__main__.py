"""What does the shortcut do? The command: carries out the runs that have no line yet.

Command:   python -m experiments.residual_study              (all 248 runs, three hours)
           python -m experiments.residual_study --quick      (a miniature, no network needed)
Needs:     the full MNIST prepared ($TFDS_DATA_DIR, or `resnet-jax data prepare mnist`)
Result:    results.jsonl, a line for each finished run. In the book's setting at 0.005 the shortcut
           is worth +0.4 points (-0.1 to +1.0, 10 seeds) at 18 layers and +33.5 (+29.2 to +38.2, 10
           seeds) at 34; README.md and results.ipynb tell the rest
Machine:   2 cores of an AMD EPYC, no accelerator

The book (NNDL: Practice, section 5.4) changes the learning rate together with the shortcut. Here
both rates are given to both networks, depth and batch norm are varied, and the networks are looked
into: where the gradient goes, what a shortcut carries, what one unit is worth.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

import resnet_jax as rj
from experiments.measuring import Row, append_row, read_rows
from experiments.residual_study.measure import Laboratory, carry_out
from experiments.residual_study.study import Run, quick_runs, runs
from resnet_jax.data.dataset import Dataset, sample
from resnet_jax.training.jax_settings import configured_jax

RESULTS = Path(__file__).with_name("results.jsonl")
QUICK_RESULTS = Path("runs/residual_study_quick.jsonl")


def load(config: rj.TrainConfig) -> Dataset:
    assert config.data.subset
    train, validation, test = config.data.subset
    data = rj.load_dataset(config.data.name, config.data.dir)
    return sample(data, train=train, validation=validation, test=test, seed=config.data.subset_seed)


def carry_out_all(left: list[Run]) -> Iterator[tuple[Run, Row]]:
    """Network by network, so that no more than one's programs are in memory."""
    load_once = cache(load)
    for (network, _), group in groupby(left, lambda run: (run.network, run.setting)):
        laboratory = None
        for run in group:
            laboratory = laboratory or Laboratory(network, run.config)
            yield run, carry_out(run, laboratory, load_once(run.config))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all done, 75 some left (the same command goes on)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    rows = read_rows(path)
    keys = [{name: row.get(name) for name in chosen[0].key} for row in rows]
    left = [run for run in chosen if run.key not in keys]
    if options.list:
        for run in chosen:
            print("to do" if run in left else "done ", run)
        return 0

    began, done, total = time.monotonic(), 0.0, sum(run.cost for run in left)
    print(f"{len(chosen) - len(left)} of {len(chosen)} runs are done: {path}", flush=True)
    with configured_jax(chosen[0].config):
        for count, (run, result) in enumerate(carry_out_all(left), 1):
            append_row(path, {**run.key, **result})
            done += run.cost
            elapsed = time.monotonic() - began
            minutes = elapsed * (total - done) / done / 60
            found = f"{result['test']['accuracy']:7.2%} in {result['seconds']:5.1f} s"
            print(f"{run}: {found}; {minutes:.0f} min left", flush=True)
            if options.minutes and elapsed > 60 * options.minutes and count < len(left):
                print(f"{len(left) - count} runs are left; the same command goes on")
                return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())
