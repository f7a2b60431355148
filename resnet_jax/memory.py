"""What a process that computes needs from the system: cores, limits, and settings of malloc.

XLA takes the buffers of every execution from ``malloc`` and frees them afterwards. glibc maps large
ones anew and unmaps them again, so that each page is zeroed and faulted in at each step: for
ResNet-18 at batch 64, 20,700 faults and a fifth of the step's time (``experiments/cpu_speed``).
Settings of malloc prevent it. They take effect when a process starts, so the command restarts
itself with them and a script must be started with them. They do nothing if libc is not glibc.
"""

import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress

from resnet_jax.errors import ResNetJaxError

# The verbs of the command that compute.
COMPUTE = {"train", "evaluate", "predict", "report", "export", "demo"}
# Below these limits JAX and Orbax hang, or crash without a reason: their programs alone take 2 GiB
# of address space. If a network needs more, JAX says so.
LIMITS = {
    "open files (ulimit -n)": (resource.RLIMIT_NOFILE, 64),
    "bytes of memory (ulimit -v)": (resource.RLIMIT_AS, 5 * 2**29),
}

MOST_FILES = 2**16

# A glibc older than 2.35 ignores the settings that it does not know.
TUNABLES = {
    # Huge pages of 2 MiB where the system grants them: 1/512 of the faults. With ARM's base pages
    # of 64 KiB, a huge page would have 512 MiB.
    "glibc.malloc.hugetlb": int(resource.getpagesize() < 2**16),
    "glibc.malloc.mmap_threshold": 2**25,  # the maximum; only a step's temporaries are above
    "glibc.malloc.trim_threshold": 2**31,  # less free memory than this stays mapped
    # Otherwise the few bytes behind each aligned buffer are kept for small objects, the gap that
    # the buffer leaves is too small for the next one, and the process grows by several buffers.
    "glibc.malloc.tcache_count": 0,
}


def tuned(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with malloc's settings, to start a script that computes on a CPU.

    They save up to a fifth of a step. If ``GLIBC_TUNABLES`` is set, nothing is added to it.
    """
    settings = ":".join(f"{name}={value}" for name, value in TUNABLES.items())
    return {"GLIBC_TUNABLES": settings, **environment}


def restart_tuned() -> None:
    """On Linux, restart this process in `tuned`'s environment, unless `GLIBC_TUNABLES` is set."""
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
        with suppress(OSError, ValueError):  # the system may have another limit
            if 0 <= soft < most:  # infinity is below 0
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            break
    for what, (limit, least) in LIMITS.items():
        current, _ = resource.getrlimit(limit)
        if current != resource.RLIM_INFINITY and current < least:
            raise ResNetJaxError(f"{what} must be at least {least:,}, got {current:,}: raise it")
