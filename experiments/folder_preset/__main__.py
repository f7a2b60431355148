"""Which settings of the preset `folder` work for 200 to 20,000 pictures, with and without weights?

Command:   python -m experiments.folder_preset FOLDER   (or $CIFAR10_FOLDER; --list shows the units)
Needs:     FOLDER with train/<class>: CIFAR-10 as JPEGs; Fashion-MNIST prepared: $TFDS_DATA_DIR
Result:    results.jsonl, a row for each training and for the baseline of each set of pictures

Matrix products have the accelerator's default precision, unlike those of the preset.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

import resnet_jax as rj
from experiments import units
from experiments.folder_preset.pictures import HELD_OUT, folder_of
from experiments.measuring import Row, mean_and_sd, read_rows
from experiments.tables import table
from resnet_jax.config import replaced

RESULTS = Path(__file__).with_name("results.jsonl")
POINTS = 5  # validations of a run, approximately
SEEDS = range(2)


@dataclass(frozen=True)
class Recipe:
    """The settings that vary; the defaults are those of the preset when the question was asked."""

    flip: bool = False
    crop: float = 0.0  # least area of a resized crop
    rate: float = 0.1
    body: float = 1.0  # the body's learning rate as a share of `rate`
    epochs: int = 30
    batch: int = 64
    size: int | None = None  # pixels to which pictures are resized; None keeps their size

    def __str__(self) -> str:
        changes = f"{'flip' * self.flip}{f'crop{self.crop:g}' if self.crop else ''}" or "none"
        body = f"-body{self.body:g}" if self.body != 1 else ""
        return f"{changes}-{self.rate:g}{body}-{self.epochs}x{self.batch}-at{self.size or 'own'}"


EARLIER = Recipe()
BASE = Recipe(flip=True, crop=0.35, rate=0.05)
# The most telling recipes come first.
CANDIDATES = (
    EARLIER,
    BASE,
    replace(BASE, crop=0.6),
    *(replace(BASE, rate=rate) for rate in (0.1, 0.02)),
    replace(BASE, crop=0.0),
    replace(BASE, flip=False, crop=0.0),
    replace(BASE, crop=0.08),
    replace(BASE, rate=0.01),
    replace(BASE, batch=32),
    replace(BASE, epochs=60),
    replace(BASE, epochs=15),
    replace(BASE, flip=False),
    replace(BASE, size=64),
)
# Only for training from weights: the body at a tenth of the rate, for 30 epochs or 15.
WITH_WEIGHTS = tuple(replace(BASE, body=0.1, epochs=epochs) for epochs in (30, 15))
SCRATCH = (("cifar", 200), ("cifar", 2_000), ("fashion", 2_000), ("digits", 1_200))
LARGE = ("cifar", 20_000)  # for the most telling candidates
LARGE_CANDIDATES = CANDIDATES[:6]
FROM_WEIGHTS = (("last5", 200), ("last5", 2_000))
# The columns of the table.
SETS = (*SCRATCH[:2], LARGE, *SCRATCH[2:], *FROM_WEIGHTS)
TITLES = {"cifar": "CIFAR-10", "fashion": "Fashion-MNIST", "digits": "digits", "last5": "weights"}
REGRESSION, UNAIDED = "logistic regression", f"{BASE}, without weights"


@dataclass(frozen=True)
class Baseline:
    data: str
    pictures: int

    def __str__(self) -> str:
        return f"baseline-{self.data}-{self.pictures}"

    def carry_out(self, folder: Path, cifar: Path | None, quick: bool) -> Row:
        count, held_out = (20, 20) if quick else (self.pictures, HELD_OUT[self.data])
        pictures = folder_of(self.data, count, held_out, folder.parent / "pictures", cifar)
        data = rj.load_dataset("folder", pictures, fit="crop")
        splits = [split.batch(np.arange(len(split))) for split in (data.train, data.validation)]
        train, held = (np.float32(images.reshape(len(images), -1)) / 255 for images, _ in splits)
        mean = train.mean(0)
        from sklearn.linear_model import LogisticRegression

        found = LogisticRegression(C=0.01, tol=1e-3, max_iter=1_000)
        found.fit(train - mean, splits[0][1])
        return {"best": round(float(found.score(held - mean, splits[1][1])), 4)}


@dataclass(frozen=True)
class Training:
    data: str
    pictures: int
    recipe: Recipe
    weights: bool = False  # start from those of a run on CIFAR-10's other classes
    seed: int = 0

    def __str__(self) -> str:
        weights = "-weights" * self.weights
        return f"{self.data}-{self.pictures}{weights}-{self.recipe}-seed{self.seed}"

    @property
    def before(self) -> "Training":
        """The training whose weights start this one; the two share only the pictures' size."""
        return Training("first5", 10_000, replace(BASE, size=self.recipe.size))

    def config(self, place: Path, cifar: Path | None, weights: Path, quick: bool) -> rj.TrainConfig:
        recipe, count, held_out = self.recipe, self.pictures, HELD_OUT[self.data]
        epochs = recipe.epochs // (3 if count >= 10_000 else 1)
        small = {"model.width": 4, "model.lowering": "reference"} if quick else {}
        if quick:
            recipe, epochs, count, held_out = replace(recipe, batch=8), 1, 20, 20
        every = max(1, round(epochs * count / recipe.batch / POINTS))
        settings = {
            "data.dir": str(folder_of(self.data, count, held_out, place, cifar)),
            "data.image-size": recipe.size,
            "augment.flip": recipe.flip,
            "augment.resized-crop": recipe.crop,
            "optim.learning-rate": recipe.rate,
            "optim.body-rate": recipe.body,
            "init-from": str(weights) if self.weights else None,
            "epochs": epochs,
            "batch-size": recipe.batch,
            "seed": self.seed,
            "eval-every": every,
            "log-every": every,
            "matmul-precision": "default",
        }
        start = replace(rj.PRESETS["folder"], augment=rj.AugmentConfig())
        return replaced(start, settings | small)

    def carry_out(self, folder: Path, cifar: Path | None, quick: bool) -> Row:
        """Train or resume in ``folder``; remove it unless others start from its weights."""
        first, runs = self.before, folder.parent
        weights = runs / "weights" / str(first)
        if self.weights and not weights.exists():
            first.carry_out(runs / str(first), cifar, quick)
        if self == first and weights.exists():
            folder = weights
        config = self.config(runs / "pictures", cifar, weights, quick)
        try:
            metrics = rj.train(config, folder, quiet=True).metrics()
        except rj.ResNetJaxError as error:
            if "not finite" not in str(error):
                raise
            shutil.rmtree(folder)
            return {"best": 0.0, "last": 0.0, "diverged": str(error)}
        if self == first:
            weights.parent.mkdir(exist_ok=True)
            folder.rename(weights)  # onto itself if it is there already
        else:
            shutil.rmtree(folder)
        found, trained = (metrics[metrics.kind == kind] for kind in ("validation", "train"))
        points = zip(found.step.tolist(), found.accuracy.round(4).tolist(), strict=True)
        return {
            "steps": int(found.step.max()),
            "seconds": float(metrics.seconds.max()),
            "best": round(float(found.accuracy.max()), 4),
            "last": round(float(found.accuracy.iloc[-1]), 4),
            "train": round(float(trained.accuracy.iloc[-1]), 4),
            "by_step": list(points),
        }


def all_units() -> list[Baseline | Training]:
    """Return the baselines, the runs that give weights, and the rest, the most telling first."""
    sets = [*SCRATCH, LARGE, *FROM_WEIGHTS]
    found: list[Baseline | Training] = [Baseline(*pictures) for pictures in sets]
    for seed in SEEDS:
        for recipe in (*CANDIDATES, *WITH_WEIGHTS):
            scratch = SCRATCH if recipe in CANDIDATES else ()
            large = (LARGE,) if recipe in LARGE_CANDIDATES else ()
            found += [Training(*s, recipe, seed=seed) for s in (*scratch, *large)]
            found += [Training(*s, recipe, weights=True, seed=seed) for s in FROM_WEIGHTS]
    # The same without weights shows what the weights are worth.
    found += [Training(*s, BASE, seed=seed) for s in FROM_WEIGHTS for seed in SEEDS]
    starts = list(dict.fromkeys(u.before for u in found if isinstance(u, Training) and u.weights))
    return [*found[: len(sets)], *starts, *found[len(sets) :]]


def measured() -> pd.Series:
    """Return the seeds' best validation accuracies, in percent, by line of the table and set."""
    rows = []
    for row in read_rows(RESULTS):
        found = {"set": (row["data"], row["pictures"]), "best": 100 * row["best"]}
        recipe = Recipe(**row["recipe"]) if "recipe" in row else None
        unaided = recipe == BASE and row["data"] == "last5" and not row["weights"]
        rows.append(found | {"line": UNAIDED if unaided else str(recipe or REGRESSION)})
    return pd.DataFrame(rows).groupby(["line", "set"])["best"].agg(list)


def accuracies() -> str:
    best, order = measured(), [REGRESSION, *map(str, (*CANDIDATES, *WITH_WEIGHTS)), UNAIDED]
    titles = {pictures: f"{TITLES[pictures[0]]} {pictures[1]:,}" for pictures in SETS}
    means = best.map(lambda values: sum(values) / len(values))
    recipes = means.drop([REGRESSION, UNAIDED], errors="ignore")
    behind = recipes.groupby("set").transform("max") - recipes
    lines = []
    for line in (line for line in order if line in best.index):
        cells = [mean_and_sd(best.get((line, pictures), []), 1) for pictures in SETS]
        furthest = ""
        if line in behind.index:
            gaps = ((gap, titles[at]) for at, gap in behind[line].items() if at in titles)
            furthest = "{:.1f} ({})".format(*max(gaps))
        lines.append([line, *cells, furthest])
    return table(["recipe", *titles.values(), "furthest behind"], lines)


def main(arguments: list[str] | None = None) -> None:
    options = units.parsed(__doc__, RESULTS, arguments, cifar=True)
    given = options.folder, options.quick
    units.carry_out(all_units(), options, lambda unit, at: unit.carry_out(at, *given))


if __name__ == "__main__":
    main()
