"""Does a network that has learnt clothes learn digits from fewer examples?

Command:   python -m experiments.fine_tuning.run     (ten minutes; resumes what was interrupted)
Result:    results.json, a row for each run: 95.21 ± 0.29 % from scratch and 95.46 ± 0.26 %
           fine-tuned, mean ± sd of 5 seeds
Machine:   2 CPU cores

A ResNet-18 of width 16 trained on Fashion-MNIST is fine-tuned on 1,000 MNIST digits and compared
with one trained from random weights on the same 1,000: same recipe, same number of steps, five
draws of digits. Tested on all 10,000 test digits. Nothing was tuned for either of the two.
"""

import json
from pathlib import Path

import numpy as np

import resnet_jax as rj
from experiments.measuring import Row, interval, write_json
from experiments.tables import table

RESULTS = Path(__file__).with_name("results.json")
RUNS = Path("runs/fine_tuning")
SEEDS = range(5)
ARMS = ("scratch", "fine-tuned")

PRETRAINING = rj.TrainConfig(
    model=rj.ModelConfig(width=16),  # a quarter: the ten runs then take minutes on two cores
    data=rj.DataConfig(name="fashion_mnist", mean=(0.1307,), std=(0.3081,)),
    optim=rj.OptimConfig(
        learning_rate=0.05, nesterov=True, weight_decay=5e-4, schedule="one_cycle", warmup=0.25
    ),
    epochs=2,
    batch_size=128,
)


def config_of(arm: str, seed: int) -> rj.TrainConfig:
    mean, std = PRETRAINING.data.mean, PRETRAINING.data.std
    return rj.TrainConfig(
        model=PRETRAINING.model,
        data=rj.DataConfig(
            name="mnist", subset=(1000, 0, 1000), subset_seed=seed, mean=mean, std=std
        ),
        optim=PRETRAINING.optim,
        epochs=10,
        seed=seed,
        eval_every=10_000,  # at the end alone
        # A fresh head: the names of the classes differ.
        init_from=str(RUNS / "pretrained") if arm == "fine-tuned" else None,
    )


def train(config: rj.TrainConfig, arm: str, seed: int, folder: str, split: str) -> Row:
    metrics = rj.train(config, RUNS / folder, quiet=True).metrics()
    tested = metrics[(metrics["kind"] == "test") & (metrics["split"] == split)]
    row = tested[tested["checkpoint"] == "latest"].iloc[-1]
    found = {"accuracy": round(float(row["accuracy"]), 6), "loss": round(float(row["loss"]), 6)}
    return {"arm": arm, "seed": seed, **found, "seconds": round(float(row["seconds"]), 1)}


def main() -> None:
    rows = [train(PRETRAINING, "pretrained", 0, "pretrained", "test")]
    for seed in SEEDS:
        for arm in ARMS:
            rows.append(train(config_of(arm, seed), arm, seed, f"{arm}-seed{seed}", "test_all"))
            print(rows[-1], flush=True)
    write_json(RESULTS, sorted(rows, key=lambda row: (row["arm"], row["seed"])))


def accuracies(arm: str) -> np.ndarray:
    """Of one kind of run, in percent, by seed."""
    rows = json.loads(RESULTS.read_text())
    return 100 * np.array([row["accuracy"] for row in rows if row["arm"] == arm])


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


if __name__ == "__main__":
    main()
