"""How fast is inference from an exported file beside the run itself?

ResNet-18 for 28x28 grey digits, from uint8 to probabilities, on a CPU: the run's own jitted
program, the StableHLO file called by JAX, the ONNX file in onnxruntime. Random weights, which cost
the same; alternating, the median of 15 rounds.

    python experiments/export_speed/measure.py RUN       # a run of resnet18 on mnist or mnist_5k

Results: results.json and README.md beside this file.
"""

import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax

import resnet_jax as rj
from resnet_jax.interop import Network
from resnet_jax.interop.network import noise
from resnet_jax.interop.onnx import runner

HERE = Path(__file__).parent
BATCHES = (1, 64, 256)
ROUNDS = 15


def contenders(run: rj.Run) -> dict:
    variables = jax.device_put(run.variables())
    ours = jax.jit(Network(run.model, variables, run.preprocessing, run.class_names).apply)
    files = {name: run.export(name).read_bytes() for name in ("stablehlo", "onnx")}
    stablehlo = jax.jit(jax.export.deserialize(bytearray(files["stablehlo"])).call)
    return {
        "resnet_jax": lambda images: ours(variables, images),
        "StableHLO file in JAX": stablehlo,
        "ONNX file in onnxruntime": runner(files["onnx"]),
    }


def main() -> None:
    run = rj.Run.open(sys.argv[1])
    calls = contenders(run)
    rows = []
    for batch in BATCHES:
        images = noise(run.image_shape, batch)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(-2, ROUNDS):
            for name, call in calls.items():
                start = time.perf_counter()
                jax.block_until_ready(call(images)["probabilities"])
                if round_ >= 0:
                    seconds[name].append(time.perf_counter() - start)
        for name, times in seconds.items():
            milliseconds = round(1000 * statistics.median(times), 2)
            rows.append({"batch": batch, "what": name, "milliseconds": milliseconds})
            print(rows[-1], flush=True)
    packages = {name: version(name) for name in ("jax", "onnxruntime")}
    results = {"rows": rows, "cpu_count": os.cpu_count(), "versions": packages}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    time_of = {(row["what"], row["batch"]): row["milliseconds"] for row in rows}
    lines = [
        "# Inference from exported files",
        "",
        "*Written by `measure.py`; not by hand.*",
        "",
        f"ResNet-18, 28x28x1, uint8 to probabilities, {os.cpu_count()} CPU cores, "
        + ", ".join(f"{name} {number}" for name, number in packages.items())
        + f". Milliseconds for a batch, median of {ROUNDS} alternating rounds.",
        "",
        "| | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |",
        "| --- |" + " --- |" * len(BATCHES),
    ]
    for name in calls:
        cells = " | ".join(f"{time_of[name, batch]:.1f}" for batch in BATCHES)
        lines.append(f"| {name} | {cells} |")
    (HERE / "README.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
