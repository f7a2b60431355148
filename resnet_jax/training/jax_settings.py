"""JAX's devices, and the settings of JAX that hold for as long as a configuration is in use."""

import functools
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from resnet_jax.config import TrainConfig
from resnet_jax.data.cache import cache_root
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.distributed import process_count

# JAX can bound its cache too, but then it looks at every file whenever it adds one.
COMPILATION_CACHE_BYTES = 2 * 2**30
_CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)


def find_devices(*, local: bool = False) -> list[jax.Device]:
    try:
        devices = jax.local_devices() if local else jax.devices()
    except (RuntimeError, AssertionError) as error:  # the platform has no device here, or no plugin
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ResNetJaxError(
            f"JAX finds no device ({reason}): set JAX_PLATFORMS to a platform of this machine, "
            "such as cpu, or unset it"
        ) from error
    counts = Counter(device.process_index for device in devices)
    if len(counts) > process_count():
        raise ResNetJaxError(f"JAX's devices are of {len(counts)} processes: give --distributed")
    if (most := max(counts.values())) > (fewest := min(counts.values())):
        raise ResNetJaxError(
            f"processes have {fewest} to {most} devices: give each the same number (JAX needs it)"
        )
    return devices


def compiler_options(optimization_level: int) -> dict[str, int]:
    """Return the ``compiler_options`` for `jax.jit` that set how hard LLVM optimises for a CPU.

    They are empty on GPU and TPU, which have no such level, and if ``XLA_FLAGS`` sets one. Level 1
    compiles sooner than the default and runs about as fast; level 0 compiles ResNet-18's step in
    half the time, but the step then runs five times as long (experiments/cpu_speed).
    """
    option = "xla_backend_optimization_level"
    if find_devices(local=True)[0].platform != "cpu" or option in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {option: optimization_level}


@contextmanager
def configured_jax(config: TrainConfig) -> Iterator[None]:
    """Apply the settings of JAX that a configuration asks for, within a ``with`` block.

    They hold for this thread, except for the compilation cache, which belongs to the process. So
    what a run computes depends on its configuration alone, and what its user computes before and
    after does not depend on the run. A compilation cache that the user has set up
    (``JAX_COMPILATION_CACHE_DIR``) is used as it is.
    """
    # Of several processes JAX lets one write: others would compile what it loads, or wait on GPUs.
    alone, before = process_count() == 1, {name: getattr(jax.config, name) for name in _CACHE}
    package_cache = config.compilation_cache and alone and not before[_CACHE[0]]
    folder = cache_root() / "compiled" if package_cache else Path()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    package_cache = package_cache and os.path.isdir(folder)  # also False if a parent is closed
    # 0, to cache the many small programs of a start too: together they take longer to compile than
    # one large one. Infinity if the folder cannot be written, because JAX would warn each time.
    from_seconds = 0.0 if os.access(folder, os.W_OK) else math.inf
    with (
        jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())),  # none
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
        jax.enable_x64(config.model.dtype == "float64"),
        jax.default_matmul_precision(config.matmul_precision),
        jax.threefry_partitionable(True),
        ExitStack() as stack,
    ):
        if package_cache:
            stack.callback(_configure, before)
            _remove_oldest(folder, COMPILATION_CACHE_BYTES)
            # "none": on a GPU, XLA's own cache beside JAX's fails if it cannot be written.
            _configure(dict(zip(_CACHE, (str(folder), from_seconds, "none"), strict=True)))
        yield


def _configure(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    reset_cache()  # JAX reads the settings of its cache only once


@functools.cache  # once per process: with thousands of programs it takes longer than a prediction
def _remove_oldest(folder: Path, limit: int) -> None:
    """Remove empty files, and the oldest files until the rest take at most ``limit`` bytes."""
    with suppress(OSError):  # another process may remove them too, or we lack permission
        paths = [path for path in folder.iterdir() if path.is_file()]  # XLA kept a folder there
        files = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in paths]
        excess = sum(size for _, size, _ in files) - limit
        for changed, size, path in sorted(files):
            # A full disk leaves empty entries: JAX never replaces them, and warns at each start.
            empty = not size and time.time_ns() - changed > 60 * 10**9
            if empty or excess > 0:
                path.unlink()
                excess -= size
