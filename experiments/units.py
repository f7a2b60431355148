"""Units of work: trainings that end with a row of results each, and are not done twice.

A unit is a frozen dataclass of plain values; its `str` names it in the results. An experiment lists
its units, the most telling first, so that any beginning of the list answers a question.
"""

import argparse
import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.measuring import Row, append_row, machine, read_rows


def parser(documentation: str, runs: str) -> argparse.ArgumentParser:
    """The options that all such experiments have; ``runs`` is where their runs' folders lie."""
    made = argparse.ArgumentParser(description=documentation.splitlines()[0])
    made.add_argument("--list", action="store_true", help="show the units and which are done")
    made.add_argument("--only", default="", help="units whose name this regular expression finds")
    made.add_argument("--quick", action="store_true", help="a few updates on a few images")
    made.add_argument("--results", type=Path, help="file of results, a line for each unit")
    made.add_argument("--runs", type=Path, default=Path(runs), help="the runs' folders")
    return made


def rows_file(options: argparse.Namespace, results: Path) -> Path:
    """Where the rows are: with --quick beside the runs, unless --results says."""
    return options.results or (options.runs / "quick.jsonl" if options.quick else results)


def carry_out(
    units: Sequence[Any],
    options: argparse.Namespace,
    results: Path,
    work: Callable[[Any, Path], Row],
) -> int:
    """Do the chosen units that have no row yet: ``work(unit, folder)`` gives what the row says.

    A run in ``folder`` that was killed goes on, and its row may say the ``seconds`` of all its
    starts; they are measured here otherwise. With --quick, rows and runs are kept apart.
    """
    path = rows_file(options, results)
    rows = read_rows(path)
    with tempfile.TemporaryDirectory() as scratch:
        for unit in (unit for unit in units if re.search(options.only, str(unit))):
            name, values = str(unit), dataclasses.asdict(unit)
            # The oldest rows have no name.
            named = (row for row in rows if row.get("name", name) == name)
            done = any(values.items() <= row.items() for row in named)
            if options.list:
                print("done " if done else "to do", name)
            elif not done:
                began = time.monotonic()
                row = work(unit, Path(scratch if options.quick else options.runs) / name)
                row.setdefault("seconds", round(time.monotonic() - began, 1))
                row = {"name": name} | values | row
                append_row(path, row | {"machine": machine("jax")})
                short = {k: v for k, v in row.items() if len(str(v)) < 80}
                print(short, file=sys.stderr, flush=True)
    return 0
