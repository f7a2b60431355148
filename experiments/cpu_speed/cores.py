"""How long do two cores take to hand a byte to each other and back?

Command:   python -m experiments.cpu_speed.cores     (a few milliseconds)
Result:    nanoseconds: 160 to 270 where both cores have one cache of the last level, and 340 to 420
           where they have not; 0 where there is one core, or processes cannot be pinned
Machine:   2 cores of an AMD EPYC, which a virtual machine has now of one chiplet and now of two

It changes within minutes, and with it what a step takes, see README.md.
"""

import mmap
import os
import time

TIMES = 4_000
APART = 300  # nanoseconds; longer, and the cores have no cache in common


def round_trip_ns() -> float:
    """Nanoseconds to hand a byte over and back, the mean of many times."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if len(cores) < 2:
        return 0.0
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


if __name__ == "__main__":
    print(round(min(round_trip_ns() for _ in range(3))))
