"""The tables of the page, from the rows of results."""

import dataclasses
import statistics

from experiments.folder_preset import __main__ as trainings
from experiments.folder_preset.__main__ import BASE, CANDIDATES, PRESENT, WITH_WEIGHTS, Recipe
from experiments.measuring import Row, read_rows
from experiments.tables import table

SETS = [*trainings.SCRATCH[:2], trainings.LARGE, *trainings.SCRATCH[2:], *trainings.FROM_WEIGHTS]
TITLES = {"cifar": "CIFAR-10", "fashion": "Fashion-MNIST", "digits": "digits", "last5": "weights"}
EARLY = 3  # evaluations


def title(data: str, pictures: int) -> str:
    return f"{TITLES[data]} {pictures:,}"


def rows_of(recipe: Recipe, weights: bool) -> dict[tuple[str, int], list[Row]]:
    """Return a recipe's rows by the set of pictures; ``weights``: those of the last five classes
    from weights, or from scratch."""
    wanted, found = dataclasses.asdict(recipe), read_rows(trainings.RESULTS)
    found = [row for row in found if row.get("recipe") == wanted]
    return {
        (data, pictures): [
            row
            for row in found
            if (row["data"], row["pictures"]) == (data, pictures)
            and row["weights"] == (weights and data == "last5")
        ]
        for data, pictures in SETS
    }


def means(recipe: Recipe, weights: bool = True) -> dict[tuple[str, int], float]:
    """The mean over seeds of the best validation accuracy, in percent, where it is measured."""
    found = rows_of(recipe, weights).items()
    return {
        pictures: 100 * statistics.mean(r["best"] for r in rows) for pictures, rows in found if rows
    }


def accuracies() -> str:
    """The validation accuracy of every recipe on every set, and where it is furthest behind."""
    recipes = [*CANDIDATES, *WITH_WEIGHTS]
    most: dict[tuple[str, int], float] = {}
    for found in map(means, recipes):
        most |= {pictures: max(best, most.get(pictures, 0)) for pictures, best in found.items()}
    baseline = {
        (row["data"], row["pictures"]): f"{100 * row['best']:.1f}"
        for row in read_rows(trainings.RESULTS)
        if row["name"].startswith("baseline")
    }
    lines = [["logistic regression", *[""] * 3, *(baseline.get(s, "") for s in SETS), ""]]
    for recipe, weights in [*((recipe, True) for recipe in recipes), (BASE, False)]:
        behind = [
            (most[pictures] - mean, title(*pictures))
            for pictures, mean in means(recipe).items()
            if weights
        ]
        worst = "{:.1f} ({})".format(*max(behind)) if behind else ""
        lines.append([*_settings(recipe, weights), *_cells(recipe, weights), worst])
    head = ["augmentation", "rate", "epochs x batch", "size"]
    return table([*head, *(title(*pictures) for pictures in SETS), "furthest behind"], lines)


def _settings(recipe: Recipe, weights: bool) -> list[str]:
    flip, crop = "flip" * recipe.flip, f"crop {recipe.crop:g}" if recipe.crop else ""
    changes = ", ".join(filter(None, [flip, crop])) or "none"
    body = f", body {recipe.body:g}" if recipe.body != 1 else ""
    return [
        changes + ("" if weights else ", without weights"),
        f"{recipe.rate:g}{body}",
        f"{recipe.epochs} x {recipe.batch}",
        str(recipe.size or "own"),
    ]


def _cells(recipe: Recipe, weights: bool) -> list[str]:
    cells = []
    for rows in rows_of(recipe, weights).values():
        best = [100 * row["best"] for row in rows]
        spread = f" ± {statistics.stdev(best):.1f}" if len(best) > 1 else ""
        cells.append(f"{statistics.mean(best):.1f}{spread}" if best else "")
    return cells


def early() -> str:
    """The first validation accuracies of the present recipe and of the base, and the last."""
    lines = []
    for recipe, name in ((PRESENT, "present"), (BASE, "base")):
        for pictures, rows in rows_of(recipe, True).items():
            if rows:
                curves = zip(*(row["by_step"] for row in rows), strict=True)
                points = [
                    f"{100 * statistics.mean(a for _, a in point):.1f} (step {point[0][0]})"
                    for point in curves
                ]
                lines.append([title(*pictures), name, *points[:EARLY], points[-1]])
    return table(["pictures", "recipe", *["an early one"] * EARLY, "last"], lines)
