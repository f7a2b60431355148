"""Does a network that has learnt clothes learn digits from fewer examples?

A ResNet-18 of width 16 trained on Fashion-MNIST is fine-tuned on 1,000 MNIST digits and compared
with one trained from random weights on the same 1,000: same recipe, same number of steps, five
draws of digits. Tested on all 10,000 test digits. Nothing was tuned for either of the two.

    python experiments/fine_tuning/run.py            # everything, then writes README.md
    python experiments/fine_tuning/run.py pretrain   # or one piece at a time:
    python experiments/fine_tuning/run.py seed 3
    python experiments/fine_tuning/run.py summarize

Results: results.json beside this file, one row for each run; README.md is written from it.
"""

import dataclasses
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np

import resnet_jax as rj

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
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
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(rows[-1] if arm == "scratch" else f"{arm} {seed}: {row['accuracy']:.2%}", flush=True)


def read() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def bootstrap(differences: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean of paired differences."""
    random = np.random.default_rng(0)
    means = random.choice(differences, (draws, len(differences))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarize() -> None:
    rows = read()
    by_arm = {arm: np.array([r["accuracy"] for r in rows if r["arm"] == arm]) * 100 for arm in ARMS}
    scratch, tuned = (by_arm[arm] for arm in ARMS)
    difference = tuned - scratch
    low, high = bootstrap(difference)
    (pretrained,) = (r for r in rows if r["arm"] == "pretrained")
    lines = [
        "# Fine-tuning: clothes, then digits",
        "",
        "*Written by `run.py` from `results.json`; not by hand.*",
        "",
        "Does a ResNet-18 of width 16 trained on Fashion-MNIST learn 1,000 MNIST digits better "
        "than one that starts from random weights? Same recipe, same 160 steps, same digits, a "
        "fresh head; accuracy on all 10,000 test digits. A seed draws digits, order and weights.",
        "",
        f"| seed | {' | '.join(map(str, SEEDS))} | mean | sd |",
        f"| --- |{' --- |' * (len(SEEDS) + 2)}",
    ]
    for arm in ARMS:
        values = by_arm[arm]
        shown = " | ".join(f"{v:.2f}" for v in values)
        lines.append(f"| {arm}, % | {shown} | {values.mean():.2f} | {values.std(ddof=1):.2f} |")
    verdict = "better" if low > 0 else ("worse" if high < 0 else "not distinguishable")
    lines += [
        "",
        f"Difference (fine-tuned - scratch): **{difference.mean():+.2f} points**, 95 % bootstrap "
        f"interval over the {len(difference)} pairs {low:+.2f} to {high:+.2f}: {verdict}.",
        "",
        f"The pretrained network: {pretrained['accuracy']:.2%} on Fashion-MNIST's test images, "
        f"after {PRETRAINING.epochs:g} epochs. Machine: {os.cpu_count()} CPU cores, "
        f"{platform.machine()}.",
        "",
        "    python experiments/fine_tuning/run.py",
        "",
    ]
    (HERE / "README.md").write_text("\n".join(lines))
    print("\n".join(lines))


def main(arguments: list[str]) -> None:
    match arguments:
        case ["pretrain"]:
            pretrain()
        case ["seed", seed]:
            compare(int(seed))
        case ["summarize"]:
            summarize()
        case []:
            pretrain()
            for seed in SEEDS:
                compare(seed)
            summarize()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
