"""The table of the page, from the rows of results."""

import dataclasses

import pandas as pd

from experiments.folder_preset import __main__ as trainings
from experiments.folder_preset.__main__ import BASE, CANDIDATES, WITH_WEIGHTS
from experiments.measuring import mean_and_sd, read_rows
from experiments.tables import table

SETS = (*trainings.SCRATCH[:2], trainings.LARGE, *trainings.SCRATCH[2:], *trainings.FROM_WEIGHTS)
TITLES = {"cifar": "CIFAR-10", "fashion": "Fashion-MNIST", "digits": "digits", "last5": "weights"}
REGRESSION, UNAIDED = "logistic regression", f"{BASE}, without weights"


def measured() -> pd.Series:
    """The best validation accuracies of the seeds, in percent, by line of the table and set."""
    names = {str(r): dataclasses.asdict(r) for r in (*CANDIDATES, *WITH_WEIGHTS)}
    rows = []
    for row in read_rows(trainings.RESULTS):
        found = {"set": (row["data"], row["pictures"]), "best": 100 * row["best"]}
        lines = [name for name, values in names.items() if values == row.get("recipe", {})]
        if "recipe" not in row:
            lines = [REGRESSION]
        elif row["data"] == "last5" and not row["weights"]:
            lines = [UNAIDED]
        elif lines == [str(BASE)] and row["data"] != "last5":
            lines.append(UNAIDED)
        rows += [found | {"line": line} for line in lines]
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
