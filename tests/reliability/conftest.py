"""An undisturbed run to compare with."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Undisturbed, ended, start

import resnet_jax as rj


@pytest.fixture(autouse=True)
def small_network(one_unit: None) -> None:
    """The network of `worker.py`, for tests that look at its runs in their own process."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Path]:
    """A folder that is made once for all of pytest's workers: ``shared(name, make)``."""
    base = tmp_path_factory.getbasetemp()

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path = (base if worker_id == "master" else base.parent) / name
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path / "made").exists():
                path.mkdir()
                make(path)
                (path / "made").touch()
        return path

    return folder


@pytest.fixture(scope="session")
def undisturbed(shared: Callable[..., Path]) -> Undisturbed:
    def make(folder: Path) -> None:
        each = folder / "each"
        each.mkdir()
        runs = [
            start(folder / "run"),
            start(each / "run", "--eval-every", "1", kept=each / "kept"),
        ]
        assert [ended(run) for run in runs] == [0, 0]

    folder = shared("undisturbed", make)
    return Undisturbed(rj.Run.open(folder / "run"), folder / "each" / "kept")
