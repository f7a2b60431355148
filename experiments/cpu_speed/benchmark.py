"""Is this package faster than PyTorch on a CPU, and what would Flax written the obvious way cost?

Command:   pip install torch==2.13.0
           python -m experiments.cpu_speed.benchmark                    (all, about an hour)
           python -m experiments.cpu_speed.benchmark --only "batch 64"  (cases that contain this)
Result:    results.json in the folder of the instruction set: medians and quartiles of all calls.
           Training at batch 64 is 2.8 times as fast as PyTorch at its best setting with AVX2, 1.6
           times with AVX-512; a small stem of width 16 is slower
Machine:   2 cores of an AMD EPYC, idle; the ratio depends on it

The contenders' processes take turns, so that a slow minute of the machine falls on all of them.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from experiments.cpu_speed.contenders import start, timed
from experiments.measuring import Row, machine, of_processor, with_cache, write_json
from resnet_jax.memory import tuned

RESULTS = of_processor(Path(__file__).parent, "results")
TORCH = ("torch eager", "torch channels_last", "torch bf16", "torch compile")
CONTENDERS = ("resnet_jax", "flax", *TORCH)
QUARTILES = ("quartile1_ms", "median_ms", "quartile3_ms")
SECONDS = 0.6  # of one turn
TOO_LONG = 3  # times its share of a case's time, and a contender's turns are over


def case(name: str, what: str, batch: int, **other: Any) -> Row:
    """32x32x1 and the imagenet stem unless it says otherwise."""
    base = {"size": 32, "channels": 1, "classes": 10, "width": 64, "stem": "imagenet"}
    return {"name": name, "what": what, "batch": batch, **base, **other}


CASES = [
    *(case(f"training, batch {n}", "training", n) for n in (16, 32, 64, 128, 256, 512)),
    case("training, small stem, width 16", "training", 64, size=28, stem="small", width=16),
    case("training, 224x224x3, batch 8", "training", 8, size=224, channels=3, classes=1000),
    case("training, batch 64, bfloat16", "training", 64, dtype="bfloat16"),
    *(case(f"inference, batch {n}", "inference", n) for n in (1, 64, 256)),
    case("inference, small stem, width 16", "inference", 64, size=28, stem="small", width=16),
    case("inference, 224x224x3, batch 8", "inference", 8, size=224, channels=3, classes=1000),
]


class Contender:
    def __init__(self, name: str, case: Row, cache: str) -> None:
        environment = (tuned if name == "resnet_jax" else dict)(os.environ) | with_cache(cache)
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # others are on the same GPU
        self.steps = case.get("steps", 1)
        with mock.patch.dict(os.environ, environment):
            self.process = ProcessPoolExecutor(1, get_context("spawn"), start, (name, case))
            self.process.submit(int).result()

    def time(self, calls: int) -> Row:
        return self.process.submit(timed, calls, self.steps).result()

    def stop(self) -> None:
        self.process.shutdown()


def measure(case: Row, names: Sequence[str], rounds: int) -> list[Row]:
    contenders, rows, compiling = {}, [], {}
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            if name not in TORCH:
                # Compiled by a process before it, as all starts but a program's first one are.
                before = Contender(name, case, cache)
                compiling[name] = {"peak_compiling_mib": before.time(1)["peak_mib"]}
                before.stop()
            try:
                contenders[name] = Contender(name, case, cache)
            except BrokenProcessPool as error:
                rows.append({"case": case["name"], "contender": name, "failure": str(error)})
    times, peaks, calls = {}, {}, {}
    for name, contender in contenders.items():
        contender.time(1)
        answer = contender.time(2)
        times[name], peaks[name] = answer["seconds"], answer["peak_mib"]
        calls[name] = max(2, round(SECONDS / min(times[name])))  # as many as fill a turn
    for _ in range(rounds):
        for name, contender in contenders.items():
            if sum(times[name]) <= TOO_LONG * rounds * SECONDS:  # else its few calls say enough
                answer = contender.time(calls[name])
                times[name] += answer["seconds"]
                peaks[name] = answer["peak_mib"]
    for name, contender in contenders.items():
        contender.stop()
        quartiles = zip(QUARTILES, statistics.quantiles(times[name], n=4), strict=True)
        row = {"case": case["name"], "contender": name, "calls": len(times[name])}
        row |= {key: round(1e3 * value, 3) for key, value in quartiles}
        row |= {"min_ms": round(1e3 * min(times[name]), 3), "peak_mib": round(peaks[name])}
        rows.append(row | {k: round(v) for k, v in compiling.get(name, {}).items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contender")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()

    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    order = [case["name"] for case in CASES]
    for chosen in (case for case in CASES if options.only in case["name"]):
        rows = measure(chosen, CONTENDERS, options.rounds)
        print(*rows, sep="\n", flush=True)
        old = [row for row in old if row["case"] != chosen["name"]] + rows
        old.sort(key=lambda row: order.index(row["case"]))
        packages = ("jax", "flax", "optax", "torch")
        write_json(RESULTS, {"machine": machine(*packages), "rows": old})


if __name__ == "__main__":
    main()
