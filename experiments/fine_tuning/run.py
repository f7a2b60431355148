"""Does a network that has learnt clothes learn digits from fewer examples?

Command:   python -m experiments.fine_tuning.run     (ten minutes; --list, --only, --quick)
Needs:     MNIST and Fashion-MNIST prepared, as `resnet-jax data prepare` does
Result:    results.jsonl, a row for each run. Neither arm was tuned
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

import resnet_jax as rj
from experiments import units
from experiments.measuring import Row, interval, read_rows
from experiments.tables import table
from resnet_jax.config import replaced

RESULTS = Path(__file__).with_name("results.jsonl")
SEEDS = range(5)
ARMS = ("scratch", "fine-tuned")

# The recipe of `fast`, at a quarter of its width: the ten runs then take minutes on two cores.
CLOTHES = {"data.name": "fashion_mnist", "data.find-digit": False, "model.width": 16}
TO_THE_END = {"epochs": 2, "target": None, "eval-every": None}
PRETRAINING = replaced(rj.PRESETS["fast"], CLOTHES | TO_THE_END)


@dataclass(frozen=True)
class Training:
    """A training on Fashion-MNIST ("pretrained"), or on 1,000 digits from scratch or fine-tuned."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-seed{self.seed}"


PRETRAINED = Training("pretrained", 0)


def train(quick: bool, training: Training, folder: Path) -> Row:
    config, split = PRETRAINING, "test"
    if training != PRETRAINED:
        # Evaluated only at the end.
        digits = {"data.name": "mnist", "data.subset": (1000, 0, 1000), "eval-every": 10_000}
        seeds = {"data.subset-seed": training.seed, "seed": training.seed}
        config = replaced(config, digits | seeds | {"epochs": 10, "batch-size": 64})
        split = "test_all"
    if training.arm == "fine-tuned":  # with a fresh head: the names of the classes differ
        start = folder.with_name(str(PRETRAINED))
        train(quick, PRETRAINED, start)  # trains it, resumes it, or finds it finished
        config = replaced(config, {"init-from": str(start)})
    if quick:
        config = replaced(config, {"model.width": 4, "model.lowering": "reference", "epochs": 0.1})
    rj.train(config, folder, quiet=True)
    tests = read_rows(folder / "metrics.jsonl", kind="test", split=split, checkpoint="latest")
    return {name: round(tests[-1][name], 6) for name in ("accuracy", "loss", "seconds")}


def accuracies() -> pd.DataFrame:
    """Return accuracies in percent, by seed and arm."""
    rows = pd.DataFrame(read_rows(RESULTS)).pivot(index="seed", columns="arm", values="accuracy")
    return 100 * rows.reindex(index=SEEDS, columns=["pretrained", *ARMS])


def by_seed() -> str:
    lines = []
    for arm, values in accuracies()[list(ARMS)].items():
        each = values.map("{:.2f}".format, na_action="ignore").fillna("")
        lines.append([f"{arm}, %", *each, f"{values.mean():.2f}", f"{values.std():.2f}"])
    return table(["seed", *SEEDS, "mean", "sd"], lines)


def difference() -> str:
    found = accuracies()
    differences = (found["fine-tuned"] - found["scratch"]).dropna()
    low, high = interval(differences)
    verdict = "better" if low > 0 else ("worse" if high < 0 else "not distinguishable")
    return (
        f"**{differences.mean():+.2f} points**, 95 % interval over the "
        f"{len(differences)} pairs {low:+.2f} to {high:+.2f}: {verdict}"
    )


def pretrained() -> str:
    return f"{accuracies()['pretrained'][0]:.2f} %"


if __name__ == "__main__":
    trainings = [PRETRAINED, *(Training(arm, seed) for seed in SEEDS for arm in ARMS)]
    options = units.parsed(__doc__, RESULTS)
    units.carry_out(trainings, options, partial(train, options.quick))
