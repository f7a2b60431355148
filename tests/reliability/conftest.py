"""An undisturbed run to compare with."""

from collections.abc import Iterator
from typing import Any

import pytest
import worker
from faults import Undisturbed, program_of, saved

import resnet_jax as rj
from resnet_jax.training.program import Program


@pytest.fixture(autouse=True)
def small_network() -> Iterator[None]:
    with worker.shrunk():
        yield


@pytest.fixture
def program() -> Program:
    """The undisturbed run's program, to restore its checkpoints with."""
    return program_of()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    states = [None]
    train = Program.train

    def noting(self: Program, *args: Any) -> Any:
        state, metrics = train(self, *args)
        states.append(saved(state))
        return state, metrics

    with worker.shrunk(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "train", noting)
        run = rj.train(worker.CONFIG, tmp_path_factory.mktemp("undisturbed") / "run", quiet=True)
    return Undisturbed(run, states)
