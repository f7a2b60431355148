"""Keep freed memory at hand, so that each execution on a CPU does not fault its buffers in anew.

XLA takes the buffers of every execution from ``malloc`` and frees them afterwards. glibc maps large
ones freshly and unmaps them again, so that each page is zeroed and faulted in at each step: for
ResNet-18 at batch 64, 20,700 faults and a fifth of the step's time. What is measured about it is in
``experiments/cpu_speed``. None of it does anything where the C library is not glibc.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8

# Settings of glibc's malloc that only the start of a process can give (glibc 2.35; what an older
# one does not know it ignores). They make a step as quick as :func:`keep_freed_memory` does, for
# half the memory.
TUNABLES = {
    "glibc.malloc.hugetlb": 1,  # pages of 2 MiB where the system grants them: 1/512 of the faults
    "glibc.malloc.mmap_threshold": 2**25,  # the largest; only a step's temporaries are above
    "glibc.malloc.trim_threshold": 2**31,  # anything smaller stays mapped
    # Else the few bytes behind each aligned buffer are kept for small objects, the gap that the
    # buffer leaves is too small for the next one, and the process grows by several buffers.
    "glibc.malloc.tcache_count": 0,
}


def tuned(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that computes on a CPU: with :data:`TUNABLES`.

    Settings of the user's own (``GLIBC_TUNABLES``) are left as they are.
    """
    settings = ":".join(f"{name}={value}" for name, value in TUNABLES.items())
    return {"GLIBC_TUNABLES": settings, **environment}


def restart_tuned() -> None:
    """Start this program again, as the same process, with :func:`tuned`'s environment.

    Must be called before anything slow is imported. Does nothing where ``GLIBC_TUNABLES`` is set,
    by this function or the user.
    """
    if sys.platform.startswith("linux") and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], tuned(os.environ))


def keep_freed_memory() -> bool:
    """Ask the C library to keep all freed memory: what a running program can still do.

    With one arena, no separate mappings and no trimming, a step faults 1,000 pages in. The process
    keeps the memory of its peak, and several times its temporaries, for its lifetime.

    Must be called before other threads are started, that is before JAX's first computation. Does
    nothing in a process with tunables (:func:`tuned`).

    Returns:
      Whether it was done.
    """
    libc = _glibc()
    if libc is None or "GLIBC_TUNABLES" in os.environ:
        return False
    settings = (
        # Threads' own arenas fall back to mapping whatever does not fit in their 64 MiB.
        (_ARENA_MAX, 1),
        (_MMAP_MAX, 0),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, 2**26),
    )
    done = [libc.mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(done)


@cache
def trim_after_compiling() -> None:
    """Hand back to the system what tracing and compiling leave, from now on, for each program.

    A step's temporaries are mapped apart: what lies free between small objects is of no use to
    them. It takes a few milliseconds after what took more than a tenth of a second.
    """
    libc = _glibc()
    if libc is None:
        return
    import jax.monitoring

    def trim(event: str, duration_secs: float, **_: str | int) -> None:
        # Also sent where the program came from the compilation cache.
        if duration_secs > 0.1 and event.endswith("/backend_compile_duration"):
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)


def _glibc() -> ctypes.CDLL | None:
    """The process's C library where it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - AttributeError unless this is glibc
    except (OSError, AttributeError):
        return None
    return libc
