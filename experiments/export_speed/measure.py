"""How fast is inference from an exported file beside the run itself?

Command:   python -m experiments.export_speed.measure RUN     (of resnet18 on mnist or mnist_5k)
Result:    results.json: milliseconds, medians of 15 rounds

A call goes from uint8 to probabilities; the calls take turns. All weights take the same time.
"""

from functools import partial
from pathlib import Path

import jax
from tyro.conf import Positional

import resnet_jax as rj
from experiments.measuring import command, machine, milliseconds, place, read_json, write_json
from experiments.tables import crossed
from resnet_jax.interop import Network
from resnet_jax.interop.network import noise
from resnet_jax.interop.onnx import runner
from resnet_jax.memory import restart_tuned

RESULTS = Path(__file__).with_name("results.json")
BATCHES = (1, 64, 256)


def speeds() -> str:
    rows = read_json(RESULTS)["rows"]
    cells = {(r["what"], f"batch {r['batch']}"): f"{r['milliseconds']:.1f}" for r in rows}
    return crossed(cells, "")


def where() -> str:
    return place(read_json(RESULTS)["machine"])


def main(run: Positional[Path]) -> None:
    opened, rows = rj.Run.open(run), []
    variables = jax.device_put(opened.variables())
    network = Network(opened.model, variables, opened.preprocessing, opened.class_names)
    stablehlo, onnx = (opened.export(name).read_bytes() for name in ("stablehlo", "onnx"))
    by_name = {
        "resnet_jax": partial(jax.jit(network.apply), variables),
        "StableHLO file in JAX": jax.jit(jax.export.deserialize(bytearray(stablehlo)).call),
        "ONNX file in onnxruntime": runner(onnx),
    }
    with opened.jax_settings():  # in float32 on a GPU too, as the files are
        for batch in BATCHES:
            images = noise(opened.image_shape, batch)
            calls = {name: partial(call, images) for name, call in by_name.items()}
            for name, median in milliseconds(calls, rounds=15, warm_calls=3).items():
                rows.append({"batch": batch, "what": name, "milliseconds": median})
                print(rows[-1], flush=True)
    write_json(RESULTS, {"machine": machine("jax", "onnxruntime"), "rows": rows})


if __name__ == "__main__":
    restart_tuned()
    command(main)
