"""Units of work, such as trainings: each ends with one row of results and is not done twice.

A unit is a frozen dataclass of plain values; its `str` names it in the results. An experiment lists
its most telling units first, so that even the first few of them answer a question.
"""

import argparse
import atexit
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.measuring import Row, append_row, machine, read_rows
from resnet_jax.errors import ResNetJaxError


def parsed(
    documentation: str, file: Path, arguments: Sequence[str] | None = None, cifar: bool = False
) -> argparse.Namespace:
    """Parse the options of an experiment with units; ``cifar`` adds the folder of CIFAR-10.

    By default rows are in ``file`` and runs in runs/ under the experiment's name; with --quick both
    are in a folder that is removed at the end.
    """
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show the units and which are done")
    parser.add_argument("--only", default="", help="units whose name this regular expression finds")
    parser.add_argument("--quick", action="store_true", help="a few updates on a few images")
    parser.add_argument("--results", type=Path, help="file of results, a line for each unit")
    parser.add_argument("--runs", type=Path)
    if cifar:
        parser.add_argument("folder", type=Path, nargs="?", default=os.getenv("CIFAR10_FOLDER"))
    options = parser.parse_args(arguments)
    try:
        re.compile(options.only)
    except re.error as error:
        parser.error(f"--only {options.only} is no regular expression: {error}")
    if options.quick and not options.runs:
        options.runs = Path(tempfile.mkdtemp())  # otherwise a second --quick finds all done
        atexit.register(shutil.rmtree, options.runs, ignore_errors=True)
    options.runs = options.runs or Path("runs", file.parent.name)
    options.results = options.results or (options.runs / "quick.jsonl" if options.quick else file)
    return options


def carry_out(
    units: Sequence[Any], options: argparse.Namespace, work: Callable[[Any, Path], Row]
) -> None:
    """Carry out the chosen units that have no row yet; ``work(unit, folder)`` returns the row.

    A killed run in ``folder`` resumes; the row may hold the ``seconds`` of all the run's starts.
    """
    with tempfile.TemporaryDirectory() as scratch:  # no other --quick finds its runs
        runs = Path(scratch) if options.quick else options.runs
        for unit in (unit for unit in units if re.search(options.only, str(unit))):
            name = {"name": str(unit)}  # the oldest rows have no name
            values = name | dataclasses.asdict(unit)
            # Read for each unit, because another process may add rows.
            done = any(values.items() <= (name | row).items() for row in read_rows(options.results))
            if options.list or done:
                print("done " if done else "to do", unit)
            else:
                began = time.monotonic()
                try:
                    row = values | work(unit, runs / str(unit))
                except (ResNetJaxError, subprocess.CalledProcessError) as error:
                    sys.exit(f"{unit}: {error}")
                row.setdefault("seconds", round(time.monotonic() - began, 1))
                append_row(options.results, row | {"machine": machine("jax")})
                shown = {k: v for k, v in row.items() if len(str(v)) < 80}
                print(shown, file=sys.stderr, flush=True)
