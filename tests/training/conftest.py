"""What tests of training share."""

import itertools
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def stop_after() -> Callable[[int], Callable[[], str | None]]:
    """Make a `should_stop` that says "enough" after so many steps."""

    def make(steps: int) -> Callable[[], str | None]:
        asked = itertools.count(1)
        return lambda: "enough" if next(asked) == steps else None

    return make
