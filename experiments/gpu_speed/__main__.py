"""Does the same step keep up with PyTorch on a GPU?

Command:   python -m experiments.gpu_speed     (needs an NVIDIA GPU, JAX and PyTorch for it)
Result:    results.json: medians and quartiles of a training step
Machine:   named in results.json

Nothing is tuned for a GPU in this package: there a convolution is XLA's own. Every contender runs
in a process of its own, all start at once, and then they take turns, one at a time; a turn is a
number of steps, waited for at its end, as in training.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from experiments.cpu_speed.benchmark import case
from experiments.cpu_speed.contenders import with_jax, with_torch
from experiments.measuring import MISSING, Row, machine, write_json
from experiments.tables import ROOT, table

RESULTS = Path(__file__).with_name("results.json")
ROUNDS, SECONDS = 7, 0.3  # turns, and how long one lasts
PHOTOS = {"size": 224, "channels": 3, "classes": 1000}
# tf32: float32 rounded to 10 bits before it is multiplied, PyTorch's own default for convolutions.
CASES = [
    *(case(f"32x32x1, batch {n}, {kind}", "training", n, dtype=kind)
      for n in (64, 256) for kind in ("float32", "bfloat16")),
    *(case(f"224x224x3, batch 128, {kind}", "training", 128, dtype=kind, **PHOTOS)
      for kind in ("float32", "tf32", "bfloat16")),
]  # fmt: skip
CONTENDERS = ("resnet_jax", "torch eager", "torch channels_last", "torch compile")


def contender(name: str, row: Row) -> None:
    """Answer each number of steps on stdin by the seconds that they took."""
    kind = row.pop("dtype")
    if name == "resnet_jax":
        import jax

        precision = "tensorfloat32" if kind == "tf32" else "highest"
        jax.config.update("jax_default_matmul_precision", precision)
        call = with_jax(row | {"dtype": "float32" if kind == "tf32" else kind}, obvious=False)
        wait = jax.block_until_ready
    else:
        import torch

        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        call = with_torch(row | {"autocast": kind == "bfloat16"}, name.split()[1], "cuda")
        wait = lambda result: torch.cuda.synchronize()  # noqa: E731
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            result = call()
        wait(result)
        print(time.perf_counter() - began, flush=True)


def measure() -> list[Row]:
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = {}
    for row in CASES:
        for name in CONTENDERS:
            command = [sys.executable, "-m", "experiments.gpu_speed", name, json.dumps(row)]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
            print(3, file=process.stdin, flush=True)  # compiled and warmed up side by side
            started[row["name"], name] = process
    alive = {key: process for key, process in started.items() if process.stdout.readline()}

    def steps(process: subprocess.Popen, count: int) -> float:
        print(count, file=process.stdin, flush=True)
        return float(process.stdout.readline()) / count

    counts = {key: max(3, round(SECONDS / steps(p, 5))) for key, p in alive.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in alive}
    for _ in range(ROUNDS):
        for key, process in alive.items():
            times[key].append(steps(process, counts[key]))
    for process in started.values():
        process.communicate()
    rows = []
    for (name, who), seconds in times.items():
        low, middle, high = (round(1e3 * s, 3) for s in statistics.quantiles(seconds, n=4))
        quartiles = {"quartile1_ms": low, "median_ms": middle, "quartile3_ms": high}
        rows.append({"case": name, "contender": who, "steps": counts[name, who], **quartiles})
    return rows


def gpu_speed() -> str:
    """A line for each case: the step's time here and in PyTorch's best setting."""
    if not RESULTS.exists():
        return MISSING
    rows = json.loads(RESULTS.read_text())["rows"]

    def shown(row: Row) -> str:
        return "{median_ms:.2f} ms ({quartile1_ms:.2f} to {quartile3_ms:.2f})".format(**row)

    lines = []
    for name in dict.fromkeys(row["case"] for row in rows):
        ours, *others = sorted(
            (row for row in rows if row["case"] == name), key=lambda r: r["contender"]
        )
        best = min(others, key=lambda row: row["median_ms"])
        ratio = f"**{best['median_ms'] / ours['median_ms']:.2f}x**"
        lines.append([name, shown(ours), f"{shown(best)}, {best['contender'][6:]}", ratio])
    return table(["training step", "resnet_jax", "PyTorch, best setting", "speed-up"], lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        contender(sys.argv[1], json.loads(sys.argv[2]))
    else:
        found = measure()
        write_json(RESULTS, {"machine": machine("jax", "torch"), "rows": found})
        print(gpu_speed())
