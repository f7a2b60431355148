"""Is this package faster than PyTorch on a CPU, and what would Flax written the obvious way cost?

Command:   pip install torch==2.13.0
           python -m experiments.cpu_speed.benchmark                    (all, up to an hour)
           python -m experiments.cpu_speed.benchmark --only "batch 64"  (cases that contain this)
Result:    results.json in the folder of the kind of processor: medians and quartiles of the calls
           of all turns

The contenders' processes take turns, so that a slow minute of the machine falls on all of them.
Turns before or after which the two cores are apart, without a common cache (`cores.py`), are
summarised in rows of their own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from experiments import measuring
from experiments.cpu_speed.cores import APART
from experiments.measuring import Row
from experiments.tables import ROOT
from resnet_jax.memory import tuned

RESULTS = measuring.of_processor(Path(__file__).parent, "results")
TORCH = ("torch eager", "torch channels_last", "torch bf16", "torch compile")
# Two devices of one core each, which share a batch and exchange sums and gradients.
DEVICES = "resnet_jax, 2 devices"
TWO = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
CONTENDERS = ("resnet_jax", DEVICES, "flax", *TORCH)
QUARTILES = ("quartile1_ms", "median_ms", "quartile3_ms")
SECONDS = 0.6  # of one turn
TRIES = 3  # at most this many times the turns asked for, to get enough with a cache in common
LEAST = 3  # turns; a row of fewer would say nothing
HOPELESS = 10.0  # seconds of a first call, above which there is no second
RARE = 0.25  # share of turns with a cache in common, below which no more are tried


def case(name: str, what: str, batch: int, **other: Any) -> Row:
    """Return a case, of 32x32x1 and the imagenet stem unless ``other`` says otherwise."""
    base = {"size": 32, "channels": 1, "classes": 10, "width": 64, "stem": "imagenet"}
    return {"name": name, "what": what, "batch": batch, **base, **other}


CASES = [
    *(case(f"training, batch {n}", "training", n) for n in (16, 32, 64, 128, 256)),
    case("training, small stem, width 16", "training", 64, size=28, stem="small", width=16),
    case("training, 224x224x3, batch 8", "training", 8, size=224, channels=3, classes=1000),
    case("training, batch 64, bfloat16", "training", 64, dtype="bfloat16"),
    *(case(f"inference, batch {n}", "inference", n) for n in (1, 64, 256)),
    case("inference, small stem, width 16", "inference", 64, size=28, stem="small", width=16),
    case("inference, 224x224x3, batch 8", "inference", 8, size=224, channels=3, classes=1000),
]


class Contender:
    """A process that times calls when asked to."""

    def __init__(self, name: str, case: Row, cache: str) -> None:
        command = [sys.executable, "-m", "experiments.cpu_speed.contenders", name, json.dumps(case)]
        environment = (tuned if "resnet_jax" in name else dict)(os.environ)
        environment |= measuring.with_cache(cache) | ({"XLA_FLAGS": TWO} if name == DEVICES else {})
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # contenders share the GPU
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        self.alive = self.process.stdout.readline() != ""

    def time(self, calls: int) -> Row:
        """Return the seconds of each call, and the peak of resident memory so far in MiB."""
        print(calls, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.communicate()


def apart(case: Row) -> bool:
    """Return whether two cores have no cache in common at this moment; a GPU does not mind."""
    return "device" not in case and measuring.in_process("cpu_speed.cores", "round_trip_ns") > APART


def measure(case: Row, names: Sequence[str], rounds: int) -> list[Row]:
    contenders, rows, compiling = {}, [], {}
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            if name not in TORCH:
                # Another process compiles first: every start but a program's first uses the cache.
                before = Contender(name, case, cache)
                if before.alive:
                    compiling[name] = {"peak_compiling_mib": round(before.time(1)["peak_mib"])}
                before.stop()
            if (contender := Contender(name, case, cache)).alive:
                contenders[name] = contender
            else:  # such as two devices, which cannot share one image
                print(f"{name} cannot start and gets no row: its reason stands above", flush=True)
    calls, peaks = {}, {}
    turns: dict[tuple[str, bool], list[list[float]]] = {}  # with cores apart, or not
    for name, contender in contenders.items():
        first = contender.time(1)
        turns[name, False], turns[name, True], peaks[name] = [], [], first["peak_mib"]
        # A turn has as many calls as fill it; a hopeless contender gets no further calls.
        if first["seconds"][0] > HOPELESS:
            turns[name, apart(case)], calls[name] = [first["seconds"]], 0
        else:
            once = min(contender.time(2)["seconds"]) * case.get("steps", 1)
            calls[name] = max(2, round(SECONDS / once))
    kinds: list[bool] = []
    while len(kinds) < TRIES * rounds * len(contenders):
        if len(kinds) == rounds * len(contenders) and kinds.count(False) < RARE * len(kinds):
            break
        for name, contender in contenders.items():
            kinds.append(was_apart := apart(case))
            if calls[name] and max(len(turns[name, False]), len(turns[name, was_apart])) < rounds:
                answer = contender.time(calls[name])
                peaks[name] = answer["peak_mib"]
                turns[name, was_apart or apart(case)].append(answer["seconds"])
    for contender in contenders.values():
        contender.stop()
    for (name, far), measured in turns.items():
        times = list(chain.from_iterable(measured))
        if measured and len(measured) >= min(rounds, LEAST) * bool(calls[name]):
            three = statistics.quantiles(times, n=4) if len(times) > 1 else 3 * times
            row = {"case": case["name"], "contender": name, "calls": len(times)}
            row |= {"cores": "apart"} if far else {}
            row |= {key: round(1e3 * s, 3) for key, s in zip(QUARTILES, three, strict=True)}
            row |= {"min_ms": round(1e3 * min(times), 3), "peak_mib": round(peaks[name])}
            rows.append(row | compiling.get(name, {}))
    return rows


def main(rounds: int = 7, only: str = "") -> None:
    """Measure the cases whose name contains ``only``, with ``rounds`` turns of every contender."""
    where = measuring.machine("jax", "flax", "optax", "torch")  # fails if one is missing
    if "device" in where:  # the PyTorch of this comparison has none
        sys.exit(f"JAX computes on {where['device']} here: set JAX_PLATFORMS=cpu")
    found = measuring.read_json(RESULTS, missing={"rows": []})
    old = found["rows"] if found.get("machine") == where else []  # drops another machine's
    order = [case["name"] for case in CASES]
    for chosen in (case for case in CASES if only in case["name"]):
        rows = measure(chosen, CONTENDERS, rounds)
        print(*rows, sep="\n", flush=True)
        old = [row for row in old if row["case"] != chosen["name"]] + rows
        old.sort(key=lambda row: order.index(row["case"]))
        measuring.write_json(RESULTS, {"machine": where, "rows": old})


if __name__ == "__main__":
    measuring.command(main)
