"""Figure 6 of arXiv 1512.03385 on a small machine: what depth does with shortcuts and without.

Command:   python -m experiments.cifar10 FOLDER     (or $CIFAR10_FOLDER; --list shows the trainings)
           python -m experiments.cifar10.figure     (the figure, from the rows)
Needs:     FOLDER with train/<class> and test/<class>: all 60,000 images (ours are lossy JPEGs);
           torch==2.13.0 for the last training, which is PyTorch's
Result:    results.jsonl, a row for each finished training (README.md)

The schedule is the paper's, 16 times shorter: 4,000 updates of 128 images at 0.1, divided by ten
after half and three quarters. The test images decide nothing: the last parameters are evaluated.
"""

import sys
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import resnet_jax as rj
from experiments import units
from experiments.measuring import Row
from resnet_jax.data.dataset import Dataset, sample

RESULTS = Path(__file__).with_name("results.jsonl")
# The presets count epochs of 45,000 images; here, as in the paper, all 50,000 are learnt from.
UPDATES = {"short": 4_000, "resnet20_cifar10": 64_000, "resnet56_cifar10": 64_000}
QUICK_UPDATES, POINTS = 3, 40  # of a miniature; of a curve
IN_PYTORCH = " in PyTorch"


@dataclass(frozen=True)
class Training:
    """One training, by the settings that tell it from all others."""

    depth: int
    residual: bool
    seed: int
    recipe: str = "short"  # or a preset, or a preset in PyTorch
    shortcut: str = "pad"  # option A; "projection" is option B

    def __str__(self) -> str:
        kind = "residual" if self.residual else "plain"
        name = f"{self.recipe}-{kind}-{self.depth}-{self.shortcut}-seed{self.seed}"
        return name.replace(" ", "_")

    def config(self, updates: int | None, images: int) -> rj.TrainConfig:
        """Return the recipe over ``updates`` updates; None: its own number."""
        preset = self.recipe.replace("short", "resnet20_cifar10")
        config = rj.PRESETS[preset.removesuffix(IN_PYTORCH)]
        updates = updates or UPDATES.get(self.recipe)
        epochs = config.epochs if updates is None else updates * config.batch_size / images
        steps = max(1, round(epochs * images / config.batch_size) // POINTS)
        model = rj.ModelConfig(f"resnet{self.depth}", self.residual, shortcut=self.shortcut)
        # On a GPU float32 is rounded to TF32 before it is multiplied, as is usual there.
        return replace(
            config, model=model, epochs=epochs, seed=self.seed, log_every=steps, eval_every=steps,
            matmul_precision="default",
        )  # fmt: skip


def trainings() -> list[Training]:
    """Return all trainings, the most telling first: even the first few answer a question."""
    seeds, both = range(3), (False, True)
    figure = [Training(depth, kind, seed) for seed in seeds for depth in (20, 56) for kind in both]
    option_b = [Training(20, True, seed, shortcut="projection") for seed in seeds]
    between = [Training(depth, kind, 0) for depth in (32, 44) for kind in both]
    fast = [Training(20, True, seed, recipe="cifar10_fast") for seed in seeds]
    paper = [Training(depth, True, 0, recipe=f"resnet{depth}_cifar10") for depth in (20, 56)]
    pytorch = [Training(20, True, 0, recipe=f"cifar10_fast{IN_PYTORCH}")]
    return figure + option_b + between + fast + paper + pytorch


def load(folder: Path | None, quick: bool) -> Dataset:
    if folder is None:
        sys.exit("give the folder of images, or CIFAR10_FOLDER")
    data = rj.load_dataset("folder", folder, validation=0)
    if quick:
        data = sample(data, train=512, validation=0, test=100, seed=0)
    return Dataset.of("cifar10 as JPEGs", data.train, data.test, data.test, data.class_names)


def train(data: Dataset, updates: int | None, training: Training, folder: Path) -> Row:
    """Train or resume in ``folder``; return errors by update, as shares of the images."""
    config = training.config(updates, len(data.train))
    if training.recipe.endswith(IN_PYTORCH):
        from experiments import pytorch

        found = pytorch.train(config, data)
        return {"test_error": round(1 - found["accuracy"], 4), "images": len(data.train)} | found
    run = rj.train(config, folder, data=data, quiet=True)
    metrics = run.metrics()

    def curve(kind: str) -> list[tuple[int, float]]:
        rows = metrics[metrics.kind == kind]
        return list(zip(rows.step.tolist(), (1 - rows.accuracy).round(4).tolist(), strict=True))

    tested = run.evaluate("test", "latest")
    return {
        "test_error": round(1 - tested.accuracy, 4),
        "images": len(data.train),
        "seconds": float(metrics.seconds.max()),
        "train": curve("train"),
        "test": curve("validation"),
    }


def main(arguments: list[str] | None = None) -> None:
    options = units.parsed(__doc__, RESULTS, arguments, cifar=True)
    data = cache(partial(load, options.folder, options.quick))
    updates = QUICK_UPDATES if options.quick else None
    units.carry_out(trainings(), options, lambda unit, at: train(data(), updates, unit, at))


if __name__ == "__main__":
    main()
