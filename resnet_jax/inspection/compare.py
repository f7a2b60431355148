"""Compare several runs: the settings in which they differ, and their results over seeds."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from resnet_jax.errors import ResNetJaxError
from resnet_jax.run import Checkpoint, Run
from resnet_jax.settings import Effect, as_argument, settings
from resnet_jax.storage import check_replaceable, expanded, write_whole


def group_by_settings(runs: Sequence[Run]) -> list[tuple[str, dict[str, Any], list[Run]]]:
    """Group the runs that differ only in the seed; return each group's name, values and runs.

    A name is ``book-seed*``, or lists all folders. The values are the settings, the data's
    fingerprint and the recorded names of `Run.parts` in which the groups differ.
    """
    telling = (Effect.LEARNING, Effect.SELECTION)
    described = [
        {s.option: s.value for s in settings(run.config) if s.effect in telling}
        | {"data fingerprint": run.fingerprint[:12], **run.parts}
        for run in runs
    ]
    keys = dict.fromkeys(key for values in described for key in values)
    differing = [k for k in keys if k != "seed" and len({d.get(k) for d in described}) > 1]
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run, values in zip(runs, described, strict=True):
        groups.setdefault(tuple(values.get(k) for k in differing), []).append(run)
    folders = [[run.path.name for run in members] for members in groups.values()]
    stems = [{name.rstrip("0123456789") for name in names} for names in folders]
    names = [
        f"{min(stem)}*" if len(stem) == 1 < len(members) else ", ".join(members)
        for stem, members in zip(stems, folders, strict=True)
    ]
    if len(set(names)) < len(names):
        names = [", ".join(str(run.path) for run in members) for members in groups.values()]
    telling_apart = [dict(zip(differing, key, strict=True)) for key in groups]
    return list(zip(names, telling_apart, groups.values(), strict=True))


def compare_runs(runs: Iterable[Run], checkpoint: Checkpoint = "best") -> pd.DataFrame:
    """Return the results of several runs, one row for all runs that differ only in the seed.

    Args:
        runs: opened runs.
        checkpoint: the one whose test results are compared.

    Returns:
        A table indexed by the folders' names: the settings, data fingerprints and `Run.parts` that
        differ; ``runs`` (how many are finished) and ``seeds``; for each test split, here ``test``,
        ``test accuracy`` (a fraction), ``test loss``, and their standard deviations with n - 1 (NaN
        for one run), ``test accuracy sd`` and ``test loss sd``; ``seconds``, the mean time.

    Raises:
        ResNetJaxError: there are no runs, one is given twice, or one is damaged.
    """
    if checkpoint not in get_args(Checkpoint):
        raise ResNetJaxError(f"checkpoint {checkpoint} is not known: give best or latest")
    runs = list(runs)
    if not runs:
        raise ResNetJaxError("there is nothing to compare: give the folders of some runs")
    paths = [run.path.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ResNetJaxError(f"run {max(paths, key=paths.count)} is given twice: give each once")
    rows = []
    groups = group_by_settings(runs)
    for _, values, members in groups:
        ended = [lines for run in members if len(lines := final_tests(run.metrics()))]
        found = [lines[lines["checkpoint"] == checkpoint] for lines in ended]
        tests = [lines.drop_duplicates("split", keep="last") for lines in found]
        seeds = " ".join(str(run.config.seed) for run in members)
        row: dict[str, Any] = {**values, "runs": len(tests), "seeds": seeds}
        if tests:
            splits = pd.concat(tests).groupby("split", sort=False)
            for split, of_split in splits:
                for column in ("accuracy", "loss"):
                    row[f"{split} {column}"] = of_split[column].mean()
                    row[f"{split} {column} sd"] = of_split[column].std(ddof=1)
            row["seconds"] = splits["seconds"].mean().max()
        rows.append(row)
    table = pd.DataFrame(rows, index=[name for name, _, _ in groups])
    for name in groups[0][1]:  # keep the types: pandas turns 32 into 32.0 beside None
        table[name] = pd.Series([row[name] for row in rows], table.index, dtype=object)
    return table


def final_tests(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the tests at a run's end; none if training has continued since."""
    return metrics[metrics.index > metrics.index[metrics["kind"] != "test"].max()]


def write_curves(runs: Sequence[Run], output: Path) -> None:
    """Write the curves of several runs into a picture; runs of one group share a colour."""
    from resnet_jax.inspection.plots import compared_curves, own_style

    output = expanded(output)
    check_replaceable(output)
    if not output.parent.is_dir():
        raise ResNetJaxError(f"{output} cannot be written: {output.parent} is no folder; make it")
    curves = {}
    for name, values, members in group_by_settings(runs):
        listing = ", ".join(f"{option} {as_argument(value)}" for option, value in values.items())
        curves[f"{name}: {listing}" if listing else name] = [run.metrics() for run in members]
    picture = io.BytesIO()
    try:
        with own_style():
            compared_curves(curves).savefig(picture, format=output.suffix[1:], dpi="figure")
    except (ValueError, RuntimeError) as error:  # such as pgf without LaTeX
        raise ResNetJaxError(
            f"{output} cannot be written ({error}): give a name that ends in .png"
        ) from error
    write_whole(output, picture.getvalue())
