"""The table of the page, from the rows of results."""

import dataclasses
import statistics

from experiments.folder_preset import __main__ as trainings
from experiments.folder_preset.__main__ import BASE, CANDIDATES, WITH_WEIGHTS, Recipe
from experiments.measuring import read_rows
from experiments.tables import table

Set = tuple[str, int]
SETS = (*trainings.SCRATCH[:2], trainings.LARGE, *trainings.SCRATCH[2:], *trainings.FROM_WEIGHTS)
TITLES = {"cifar": "CIFAR-10", "fashion": "Fashion-MNIST", "digits": "digits", "last5": "weights"}


def title(pictures: Set) -> str:
    return f"{TITLES[pictures[0]]} {pictures[1]:,}"


def best_of(recipe: Recipe | None, weights: bool = True) -> dict[Set, list[float]]:
    """Return the best validation accuracy of each seed, in percent, on the sets measured.

    Without a recipe it is the baseline's. ``weights`` counts for the last five classes alone.
    """
    found: dict[Set, list[float]] = {}
    wanted = None if recipe is None else dataclasses.asdict(recipe)
    for row in read_rows(trainings.RESULTS):
        started = recipe is not None and weights and row["data"] == "last5"
        if row.get("recipe") == wanted and row.get("weights", False) == started:
            found.setdefault((row["data"], row["pictures"]), []).append(100 * row["best"])
    return found


def accuracies() -> str:
    """The validation accuracy of every recipe on every set, and where it is furthest behind."""
    measured = {str(recipe): best_of(recipe) for recipe in (*CANDIDATES, *WITH_WEIGHTS)}
    means = {
        name: {pictures: statistics.mean(best) for pictures, best in found.items()}
        for name, found in measured.items()
    }
    behind = {
        name: [
            (max(other.get(pictures, 0) for other in means.values()) - mean, title(pictures))
            for pictures, mean in found.items()
            if pictures in SETS
        ]
        for name, found in means.items()
    }
    rows = {"logistic regression": best_of(None), **measured}
    rows |= {f"{BASE}, without weights": best_of(BASE, weights=False)}
    lines = [
        [
            name,
            *(_cell(found.get(pictures, [])) for pictures in SETS),
            "{:.1f} ({})".format(*max(behind[name])) if behind.get(name) else "",
        ]
        for name, found in rows.items()
        if found
    ]
    return table(["recipe", *map(title, SETS), "furthest behind"], lines)


def _cell(best: list[float]) -> str:
    spread = f" ± {statistics.stdev(best):.1f}" if len(best) > 1 else ""
    return f"{statistics.mean(best):.1f}{spread}" if best else ""
