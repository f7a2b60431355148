"""How accurate is a ResNet-18 on MNIST if every choice is made without the test images?

Command:   python -m experiments.mnist_record           (--list shows the trainings)
           python -m experiments.mnist_record.figure    (the figures, from the rows)
Needs:     the full MNIST and Fashion-MNIST prepared: $TFDS_DATA_DIR, or `resnet-jax data prepare`
Result:    results.jsonl, a row for each finished training
Machine:   2 cores; a training takes 66 to 90 minutes there, and up to three hours beside other work

A training is given no test images. When it is over, its last parameters are judged once, and the
result is in its row. `plain` and `final` learn from all 60,000 images and are judged by the test
images; `ablation` learns from 10,000 of the 55,000 training images and is judged by the 5,000
validation images.
"""

import base64
import hashlib
import math
import shutil
import sys
import zlib
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import resnet_jax as rj
from experiments import units
from experiments.measuring import Row, read_rows
from resnet_jax.config import differences, replaced
from resnet_jax.data.augment import warp
from resnet_jax.data.dataset import ArraySplit, Dataset
from resnet_jax.data.sampler import permutation
from resnet_jax.inspection import calibration

RESULTS = Path(__file__).with_name("results.jsonl")
SEEDS = range(3)
HELD_OUT, ABLATION_IMAGES = 5_000, 10_000
QUICK_UPDATES = 4
SAVE_EVERY = 1_000  # updates
LEVELS = 1_000  # to which probabilities are rounded and kept, for the mean over the seeds

MNIST = rj.PRESETS["mnist"]
# Each ablation changes one thing of this recipe: the preset with elastic distortions as well.
BASE = replaced(MNIST, {"augment.elastic": 0.8, "epochs": 20})


def _affine(strength: float) -> dict[str, Any]:
    """Return the preset's affine distortions, ``strength`` times as strong."""
    preset = MNIST.augment
    values = {name: getattr(preset, name) for name in ("shift", "rotation", "scale", "shear")}
    return {f"augment.{name}": strength * value for name, value in values.items()}


ABLATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "no affine": _affine(0.0),
    "affine x1.5": _affine(1.5),
    "no elastic": {"augment.elastic": 0.0},
    "elastic 0.4": {"augment.elastic": 0.4},
    "elastic 1.4": {"augment.elastic": 1.4},
    "erase 0.1": {"augment.erase": 0.1},
    "erase 0.3": {"augment.erase": 0.3},
    "mixup 0.2": {"augment.mixup": 0.2},
    "cutmix 0.5": {"augment.cutmix": 0.5},
    "no smoothing": {"label-smoothing": 0.0},
    "no ema": {"ema": None},
    "ema 0.99": {"ema": 0.99},
    "decay 1e-4": {"optim.weight-decay": 1e-4},
    "decay 1e-3": {"optim.weight-decay": 1e-3},
    "rate 0.05": {"optim.learning-rate": 0.05},
    "rate 0.2": {"optim.learning-rate": 0.2},
    "cosine": {"optim.schedule": "cosine", "optim.warmup": 0.05},
    "batch 128": {"batch-size": 128},
    "batch 256": {"batch-size": 256},
    "size 28": {"data.image-size": 28},
    "size 40": {"data.image-size": 40},
    "deep stem": {"model.stem": "deep"},
    "small stem, width 16": {"model.stem": "small", "model.width": 16},
    "epochs x2": {"epochs": 40},
    "size 48": {"data.image-size": 48},
    "size 64": {"data.image-size": 64},
}
# The preset as it is, but normalised by the mean and standard deviation of the other dataset.
FASHION = {"data.name": "fashion_mnist", "data.mean": None, "data.std": None}
RECIPES: dict[str, tuple[rj.TrainConfig, dict[str, dict[str, Any]]]] = {
    "plain": (MNIST, {"mnist": {}}),
    "ablation": (BASE, ABLATIONS),
    "final": (rj.PRESETS["record"], {"mnist": {}, "fashion_mnist": FASHION}),
}
# For test-time averaging, in addition to the image as it is: degrees, rows, columns.
VIEWS = ((0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (8, 0, 0), (-8, 0, 0))


@dataclass(frozen=True)
class Training:
    """One training, or for part ``ensemble`` the mean of the final ones."""

    part: str
    recipe: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.part}-{self.recipe}-seed{self.seed}".replace(" ", "_")

    @property
    def tests(self) -> bool:
        """Whether it also learns from the validation images and is judged by the test images."""
        return self.part in ("plain", "final")

    @property
    def config(self) -> rj.TrainConfig:
        start, recipes = RECIPES[self.part]
        return replaced(start, {"seed": self.seed, "eval-every": SAVE_EVERY} | recipes[self.recipe])


def trainings() -> list[Training]:
    """Return all trainings, the most telling first: even the first few answer a question."""
    plain = [Training("plain", "mnist", seed) for seed in SEEDS]
    ablations = [Training("ablation", name, seed) for seed in SEEDS for name in ABLATIONS]
    final = [Training("final", "mnist", seed) for seed in SEEDS]
    others = [Training("ensemble", "mnist"), Training("final", "fashion_mnist")]
    return [*plain, *ablations, *final, *others]


def load(training: Training, quick: bool) -> tuple[Dataset, ArraySplit]:
    """Return a dataset with only the images to learn from, and the split that judges."""
    name = "mnist_5k" if quick else training.config.data.name
    held_out = 100 if quick else HELD_OUT
    data = rj.load_dataset(name, validation=0 if training.tests else held_out)
    train, judging = data.train, data.test if training.tests else data.validation
    most = {"ablation": ABLATION_IMAGES}.get(training.part, len(train))
    if quick:
        most, judging = 256, judging.take(slice(100))
    if most < len(train):
        train = train.take(permutation(len(train), 0)[:most])
    none = train.take(slice(0))
    return Dataset.of(data.name, train, none, none, data.class_names), judging


def moved(images: np.ndarray, degrees: float, rows: float, columns: float) -> np.ndarray:
    """Return the images rotated and shifted, in whole grey levels."""
    angle, count = math.radians(degrees), len(images)
    matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    inverse = jnp.broadcast_to(jnp.asarray(matrix, jnp.float32), (count, 2, 2))
    shift = jnp.broadcast_to(jnp.asarray([rows, columns], jnp.float32), (count, 2))
    result = warp(jnp.asarray(images, jnp.float32), inverse, shift)
    return np.asarray(jnp.round(result)).astype(np.uint8)


def packed(probabilities: np.ndarray) -> str:
    levels = np.round(probabilities * LEVELS).astype("<u2")
    return base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode()


def unpacked(text: str, classes: int = 10) -> np.ndarray:
    levels = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2").reshape(-1, classes)
    return np.maximum(levels, 0.5) / LEVELS  # no class is impossible


def checksum(variables: Any) -> str:
    """Return the SHA-256 of the parameters and running statistics, in the order of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def judged(probabilities: np.ndarray, labels: np.ndarray) -> Row:
    """Return accuracy, cross-entropy in nats, calibration, and each wrong answer."""
    p, found = np.asarray(probabilities, np.float64), calibration(probabilities, labels)
    of_label, answers = p[np.arange(len(p)), labels], p.argmax(1)
    each = {"index": np.arange(len(p)), "label": labels, "answer": answers}
    each |= {"probability": p.max(1).round(4), "of_label": of_label.round(4)}
    wrong = pd.DataFrame(each)[answers != labels].to_dict("records")
    columns = [found.counts, *np.nan_to_num((found.confidence, found.accuracy)).round(5)]
    names = ("counts", "confidence", "accuracy")
    return {
        "accuracy": round(1 - len(wrong) / len(p), 6),
        "loss": round(float(-np.log(of_label).mean()), 5),
        "ece": round(found.ece, 5),
        "wrong": wrong,
        "reliability": {n: c.tolist() for n, c in zip(names, columns, strict=True)},
    }


def predictions(training: Training, run: rj.Run, judging: ArraySplit) -> Row:
    """Judge a trained model once, on the images as they are and, unless an ablation, on views."""
    probabilities = run.predict(judging.images, "latest")
    row = judged(probabilities, judging.labels)
    if training.part == "ablation":
        del row["wrong"], row["reliability"]
    else:
        views = [run.predict(moved(judging.images, *view), "latest") for view in VIEWS]
        found = judged(np.mean([probabilities, *views], axis=0), judging.labels)
        row["test_time_averaging"] = {name: found[name] for name in ("accuracy", "loss", "ece")}
    if training.part == "final":
        row["sha256"] = checksum(run.variables("latest"))
        row["probabilities"] = {"thousandths": packed(probabilities)}
    return row


def train(training: Training, quick: bool, folder: Path) -> Row:
    """Train or resume in ``folder``, and judge the last parameters."""
    data, judging = load(training, quick)
    config, images = training.config, len(data.train)
    if quick:
        small = {"model.width": 4, "model.lowering": "reference", "batch-size": 16, "log-every": 1}
        config = replaced(config, small | {"epochs": QUICK_UPDATES * 16 / images})
    run = rj.train(config, folder, data=data, quiet=True)
    rows = run.metrics()
    rates = rows.images_per_s[1:]  # without compilation
    row: Row = {
        "images": images,
        "steps": int(rows.step.max()),
        "step_ms": round(float((1000 * config.batch_size / rates).median()), 2),
        "seconds": float(rows.seconds.max()),
        "settings": {
            option: value for option, (_, value) in differences(rj.TrainConfig(), config).items()
        },
    }
    row |= predictions(training, run, judging)
    if not training.tests:
        shutil.rmtree(folder)  # a hundred megabytes each
    return row


def work(options: Namespace, training: Training, folder: Path) -> Row:
    if training.part != "ensemble":
        return train(training, options.quick, folder)
    rows = read_rows(options.results, part="final", recipe=training.recipe)
    if len(rows) < len(SEEDS):
        sys.exit(f"{training} needs the {len(SEEDS)} seeds of final in {options.results}")
    _, judging = load(Training("final", training.recipe), options.quick)
    mean = np.mean([unpacked(row["probabilities"]["thousandths"]) for row in rows], axis=0)
    return judged(mean, judging.labels)


def main(arguments: list[str] | None = None) -> None:
    options = units.parsed(__doc__, RESULTS, arguments)
    units.carry_out(trainings(), options, partial(work, options))


if __name__ == "__main__":
    main()
