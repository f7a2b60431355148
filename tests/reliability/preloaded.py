"""What every forked run imports, imported once: the package's public parts and its libraries."""

import gc

import orbax.checkpoint  # noqa: F401
import pytest  # noqa: F401 (a child imports the program that it was started from)
import worker

import resnet_jax as rj
from resnet_jax.data import load

PUBLIC = [getattr(rj, name) for name in rj.__all__]
worker.read_digits_once()
load.mnist_5k()
gc.collect()
gc.freeze()  # what is imported is not looked at again in any child
