"""What tests of training share."""

import pytest


@pytest.fixture(scope="session")
def stop_after():
    """Makes a `should_stop` that says "enough" after so many steps."""
    return lambda steps: iter([*[None] * (steps - 1), "enough"]).__next__
