"""What a process that computes needs of the system: cores, limits, and settings of malloc.

XLA takes the buffers of every execution from ``malloc`` and frees them afterwards. glibc maps large
ones anew and unmaps them again, so that each page is zeroed and faulted in at each step: for
ResNet-18 at batch 64, 20,700 faults and a fifth of the step's time (``experiments/cpu_speed``).
Settings of malloc prevent it. They take effect when a process starts: the command restarts itself
with them, a script must be started with them. They do nothing where the C library is not glibc.
"""

import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress

from resnet_jax.errors import ResNetJaxError

# The verbs of the command that compute.
COMPUTE = {"train", "evaluate", "predict", "report", "export", "demo"}
# Below these, JAX and Orbax crash without a reason or hang: their programs alone take 2 GiB of
# address space. If a network needs more, JAX says so.
LIMITS = {
    "open files (ulimit -n)": (resource.RLIMIT_NOFILE, 64),
    "bytes of memory (ulimit -v)": (resource.RLIMIT_AS, 5 * 2**29),
}

MOST_FILES = 2**16

# What an older glibc than 2.35 does not know it ignores.
TUNABLES = {
    # Pages of 2 MiB where the system grants them: 1/512 of the faults. Beside ARM's pages of 64 KiB
    # they have 512 MiB.
    "glibc.malloc.hugetlb": int(resource.getpagesize() < 2**16),
    "glibc.malloc.mmap_threshold": 2**25,  # the largest; only a step's temporaries are above
    "glibc.malloc.trim_threshold": 2**31,  # anything smaller stays mapped
    # Else the few bytes behind each aligned buffer are kept for small objects, the gap that the
    # buffer leaves is too small for the next one, and the process grows by several buffers.
    "glibc.malloc.tcache_count": 0,
}


def tuned(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment to start a script with that computes on a CPU: malloc's settings.

    They save up to a fifth of a step. The user's own (``GLIBC_TUNABLES``) stay as they are.
    """
    settings = ":".join(f"{name}={value}" for name, value in TUNABLES.items())
    return {"GLIBC_TUNABLES": settings, **environment}


def restart_tuned() -> None:
    """Start this program again, as the same process, in `tuned`'s environment, unless it is set."""
    if sys.platform.startswith("linux") and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], tuned(os.environ))


def cores() -> int:
    """Return how many cores this process may use, which a scheduler may have limited."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_limits() -> None:
    """Raise the limit on open files, then refuse to compute where a limit is too low."""
    # ImageNet has about as many shards as the usual soft limit, which any process may raise.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for files in (MOST_FILES, 10_240):  # macOS may take no more than its OPEN_MAX
        most = files if hard == resource.RLIM_INFINITY else min(hard, files)
        with suppress(OSError, ValueError):  # where the system has a limit beside it
            if 0 <= soft < most:  # infinity is below 0
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            break
    for what, (limit, least) in LIMITS.items():
        current, _ = resource.getrlimit(limit)
        if current != resource.RLIM_INFINITY and current < least:
            raise ResNetJaxError(f"{what} must be at least {least:,}, got {current:,}: raise it")
