"""An undisturbed run to compare with."""

from pathlib import Path

import pytest
from faults import Undisturbed, ended, start

import resnet_jax as rj


@pytest.fixture(scope="session")
def undisturbed(one_unit, shared) -> Undisturbed:
    """Of the network of `worker.py`, as all runs that tests compare with it."""

    def make(folder: Path) -> None:
        each = folder / "each"
        runs = [
            start(folder / "run"),
            start(each / "run", "--eval-every", "1", kept=each / "kept"),
        ]
        assert [ended(run) for run in runs] == [0, 0]

    folder = shared("undisturbed", make)
    return Undisturbed(rj.Run.open(folder / "run"), folder / "each" / "kept")
