"""What all tests share: folders of their own, and programs that compile in a hurry."""

import atexit
import os
import pathlib
import shutil
import tempfile

# Before JAX is imported. What is tested is the mathematics, not LLVM's optimisation of it, which
# takes most of the time on tiny networks.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

# Nothing is written to the user's home. In the environment, so that the processes which tests
# start share the programs compiled once.
_cache = tempfile.mkdtemp(prefix="resnet-jax-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["RESNET_JAX_CACHE_DIR"] = _cache
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_cache, "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

# Prepared data sets: yours, those beside the checkout, or an empty folder to prepare into.
_beside = pathlib.Path(__file__).parents[2] / "shared/data/tfds"
if "TFDS_DATA_DIR" not in os.environ:
    _empty = pathlib.Path(_cache, "tfds")
    _empty.mkdir()
    os.environ["TFDS_DATA_DIR"] = str(_beside if _beside.is_dir() else _empty)
