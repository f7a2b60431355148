"""How fast is inference from an exported file beside the run itself?

Command:   python -m experiments.export_speed.measure RUN     (of resnet18 on mnist or mnist_5k)
Result:    results.json: milliseconds, medians of 15 rounds

From uint8 to probabilities, in turns. Any weights cost the same.
"""

import os
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
from tyro.conf import Positional

import resnet_jax as rj
from experiments.measuring import command, milliseconds, read_json, write_json
from experiments.tables import crossed
from resnet_jax.interop import Network
from resnet_jax.interop.network import noise
from resnet_jax.interop.onnx import runner

RESULTS = Path(__file__).with_name("results.json")
BATCHES = (1, 64, 256)


def contenders(run: rj.Run) -> dict:
    variables = jax.device_put(run.variables())
    ours = jax.jit(Network(run.model, variables, run.preprocessing, run.class_names).apply)
    stablehlo, onnx = (run.export(name).read_bytes() for name in ("stablehlo", "onnx"))
    return {
        "resnet_jax": partial(ours, variables),
        "StableHLO file in JAX": jax.jit(jax.export.deserialize(bytearray(stablehlo)).call),
        "ONNX file in onnxruntime": runner(onnx),
    }


def speeds() -> str:
    rows = read_json(RESULTS)["rows"]
    cells = {(r["what"], f"batch {r['batch']}"): f"{r['milliseconds']:.1f}" for r in rows}
    return crossed(cells, "")


def machine() -> str:
    found = read_json(RESULTS)
    packages = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['cpu_count']} CPU cores, {packages}"


def main(run: Positional[Path]) -> None:
    opened, rows = rj.Run.open(run), []
    by_name = contenders(opened)
    for batch in BATCHES:
        images = noise(opened.image_shape, batch)
        calls = {name: partial(call, images) for name, call in by_name.items()}
        for name, median in milliseconds(calls, rounds=15, warm_rounds=2).items():
            rows.append({"batch": batch, "what": name, "milliseconds": median})
            print(rows[-1], flush=True)
    packages = {name: version(name) for name in ("jax", "onnxruntime")}
    write_json(RESULTS, {"rows": rows, "cpu_count": os.cpu_count(), "versions": packages})


if __name__ == "__main__":
    command(main)
