"""Does a network that has learnt clothes learn digits from fewer examples?

Command:   python -m experiments.fine_tuning.run              (everything, ten minutes)
           python -m experiments.fine_tuning.run pretrain     (or one piece at a time)
           python -m experiments.fine_tuning.run seed 3
Result:    results.json, a row for each run: 95.21 ± 0.29 % from scratch and 95.46 ± 0.26 %
           fine-tuned, mean ± sd of 5 seeds
Machine:   2 CPU cores

A ResNet-18 of width 16 trained on Fashion-MNIST is fine-tuned on 1,000 MNIST digits and compared
with one trained from random weights on the same 1,000: same recipe, same number of steps, five
draws of digits. Tested on all 10,000 test digits. Nothing was tuned for either of the two.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np

import resnet_jax as rj
from experiments.measuring import interval, write_json
from experiments.tables import table

RESULTS = Path(__file__).with_name("results.json")
RUNS = Path(os.environ.get("FINE_TUNING_RUNS", "runs/fine_tuning"))
SEEDS = range(5)

OPTIM = rj.OptimConfig(
    learning_rate=0.05, nesterov=True, weight_decay=5e-4, schedule="one_cycle", warmup=0.25
)
# A quarter of the usual width: the ten runs then take minutes on two cores.
MODEL = rj.ModelConfig(width=16)
PRETRAINING = rj.TrainConfig(
    model=MODEL,
    data=rj.DataConfig(name="fashion_mnist", mean=(0.1307,), std=(0.3081,)),
    optim=OPTIM,
    epochs=2,
    batch_size=128,
)
ARMS = ("scratch", "fine-tuned")


def config_of(arm: str, seed: int) -> rj.TrainConfig:
    config = rj.TrainConfig(
        model=MODEL,
        data=rj.DataConfig(
            name="mnist",
            subset=(1000, 0, 1000),
            subset_seed=seed,
            mean=(0.1307,),
            std=(0.3081,),
        ),
        optim=OPTIM,
        epochs=10,
        seed=seed,
        eval_every=10_000,  # at the end alone
    )
    if arm == "fine-tuned":
        # A fresh head: the names of the classes differ.
        config = dataclasses.replace(config, init_from=str(RUNS / "pretrained"))
    return config


def pretrain() -> None:
    run = rj.train(PRETRAINING, RUNS / "pretrained", quiet=True)
    add("pretrained", 0, run, "test")


def compare(seed: int) -> None:
    for arm in ARMS:
        run = rj.train(config_of(arm, seed), RUNS / f"{arm}-seed{seed}", quiet=True)
        add(arm, seed, run, "test_all")


def add(arm: str, seed: int, run: rj.Run, split: str) -> None:
    metrics = run.metrics()
    tested = metrics[(metrics["kind"] == "test") & (metrics["split"] == split)]
    row = tested[tested["checkpoint"] == "latest"].iloc[-1]
    rows = [r for r in read() if (r["arm"], r["seed"]) != (arm, seed)]
    rows.append(
        {
            "arm": arm,
            "seed": seed,
            "accuracy": round(float(row["accuracy"]), 6),
            "loss": round(float(row["loss"]), 6),
            "seconds": round(float(row["seconds"]), 1),
        }
    )
    rows.sort(key=lambda r: (r["arm"], r["seed"]))
    write_json(RESULTS, rows)
    print(f"{arm} {seed}: {row['accuracy']:.2%}", flush=True)


def read() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def accuracies(arm: str) -> np.ndarray:
    """Of one kind of run, in percent, by seed."""
    return 100 * np.array([row["accuracy"] for row in read() if row["arm"] == arm])


def by_seed() -> str:
    found = {arm: accuracies(arm) for arm in ARMS}
    lines = [
        [f"{arm}, %", *(f"{v:.2f}" for v in (*values, values.mean(), values.std(ddof=1)))]
        for arm, values in found.items()
    ]
    return table(["seed", *SEEDS, "mean", "sd"], lines)


def difference() -> str:
    differences = accuracies("fine-tuned") - accuracies("scratch")
    low, high = interval(differences)
    verdict = "better" if low > 0 else ("worse" if high < 0 else "not distinguishable")
    return (
        f"**{differences.mean():+.2f} points**, 95 % bootstrap interval over the "
        f"{len(differences)} pairs {low:+.2f} to {high:+.2f}: {verdict}"
    )


def pretrained() -> str:
    return f"{accuracies('pretrained')[0]:.2f} %"


def values() -> dict:
    return {"by_seed": by_seed, "difference": difference, "pretrained": pretrained}


def main(arguments: list[str]) -> None:
    match arguments:
        case ["pretrain"]:
            pretrain()
        case ["seed", seed]:
            compare(int(seed))
        case []:
            pretrain()
            for seed in SEEDS:
                compare(seed)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
