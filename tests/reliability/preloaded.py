"""What every forked run imports, imported once: the package's public parts and its libraries."""

import orbax.checkpoint  # noqa: F401
import pytest  # noqa: F401 (a child imports the program that it was started from)
import worker  # noqa: F401

import resnet_jax as rj

PUBLIC = [getattr(rj, name) for name in rj.__all__]
