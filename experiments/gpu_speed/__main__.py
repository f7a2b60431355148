"""Does the same step keep up with PyTorch on a GPU?

Command:   python -m experiments.gpu_speed     (needs an NVIDIA GPU, JAX and PyTorch for it)
Result:    results.json: medians and quartiles of a training step

This package tunes nothing for a GPU: there a convolution is XLA's own. Processes take turns as in
`cpu_speed.benchmark`; a call makes ten steps and waits at their end, as training does.
"""

import os
import sys
from pathlib import Path

import jax

from experiments.cpu_speed.benchmark import case, measure
from experiments.cpu_speed.plot import comparison, fullest
from experiments.measuring import machine, read_json, write_json

RESULTS = Path(__file__).with_name("results.json")
SMALL = {"device": "cuda", "steps": 10}
PHOTOS = SMALL | {"size": 224, "channels": 3, "classes": 1000}
# tf32: float32 rounded to 10 bits of mantissa before products, PyTorch's default in convolutions.
CASES = [
    *(case(f"32x32x1, batch {n}, {kind}", "training", n, dtype=kind, **SMALL)
      for n in (64, 256) for kind in ("float32", "bfloat16")),
    *(case(f"224x224x3, batch 128, {kind}", "training", 128, dtype=kind, **PHOTOS)
      for kind in ("float32", "tf32", "bfloat16")),
]  # fmt: skip
CONTENDERS = ("resnet_jax", "torch eager", "torch channels_last", "torch compile")


def gpu_speed() -> str:
    rows = read_json(RESULTS, missing={"rows": []})["rows"]
    return comparison("training step", fullest(rows), digits=2)


if __name__ == "__main__":
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the contenders are on the same GPU
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]  # one GPU, as PyTorch takes
    if jax.default_backend() != "gpu":
        sys.exit(f"JAX finds no GPU here but {jax.default_backend()}")
    where, rows = machine("jax", "torch"), []
    for chosen in CASES:
        rows += measure(chosen, CONTENDERS, rounds=7)
        write_json(RESULTS, {"machine": where, "rows": rows})
    print(gpu_speed())
