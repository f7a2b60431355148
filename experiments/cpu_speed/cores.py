"""How long do two cores take to hand a byte to each other and back?

160 to 270 ns where both have one cache of the last level, and 340 to 420 where they have not, or
600, perhaps between sockets. A virtual machine's two cores of an AMD EPYC lie now on one chiplet,
now on two, see README.md.
"""

import mmap
import os
import time

TIMES = 4_000
APART = 300  # nanoseconds; longer, and the cores have no cache in common


def round_trip_ns() -> float:
    """The mean of many times, the least of three; 0 for one core, or where none can be chosen."""
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
            began = began or time.perf_counter()  # the first has waited for the other's start
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
