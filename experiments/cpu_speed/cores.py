"""How long do two cores take to hand a byte to each other and back?

It takes 160 to 270 ns if the cores share a last-level cache, and 340 to 420 if they do not, or 600,
perhaps between sockets. A virtual machine's two cores of an AMD EPYC are at times on one chiplet
and at times on two, see README.md.
"""

import mmap
import os
import time

TIMES = 4_000
APART = 300  # nanoseconds; if it takes longer, the cores have no cache in common


def round_trip_ns() -> float:
    """Return the least of three means; 0 with one core, or if a process cannot choose its cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    return min(_mean_ns(cores) for _ in range(3)) if len(cores) > 1 else 0.0


def _mean_ns(cores: list[int]) -> float:
    shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
    child = os.fork()
    os.sched_setaffinity(0, {cores[child == 0]})
    began = 0.0
    for _ in range(TIMES):
        if child:
            shared[0] = 1
            while shared[0]:
                pass
            began = began or time.perf_counter()  # the first trip waited for the child's start
        else:
            while not shared[0]:
                pass
            shared[0] = 0
    if not child:
        os._exit(0)
    seconds = time.perf_counter() - began
    os.sched_setaffinity(0, cores)
    os.waitpid(child, 0)
    return 1e9 * seconds / (TIMES - 1)
