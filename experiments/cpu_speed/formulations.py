"""Which formulation of a convolution is quickest, alone and within the network?

Command:   python experiments/cpu_speed/formulations.py                   (all, twenty minutes)
           python experiments/cpu_speed/formulations.py --only "width 16" --batches 64
           python experiments/cpu_speed/plot.py                           (the tables)
Result:    formulations.json: milliseconds of every formulation of every convolution of two
           networks; and of the networks under several rules also seconds to compile, kernels and
           MiB of temporaries
Machine:   see results.json; run it on an idle one

The rule in `resnet_jax/ops/rule.py` rests on it. Alone a formulation shows its products; within the
network its shifts and sums fuse with what is around them, which is why both are measured. All
contenders of a row take turns in one process.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import resnet_jax as rj
from resnet_jax.memory import restart_tuned
from resnet_jax.ops import cpu, rule
from resnet_jax.ops.geometry import Geometry

RESULTS = Path(__file__).with_suffix(".json")
BATCHES = (64, 256)


class Network(NamedTuple):
    """A ResNet-18 for images of one channel."""

    stem: str
    width: int
    side: int

    def shapes(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Side, kernel, stride, channels and features of its convolutions larger than 1x1.

        The last stage's repeated ones are left out: at 32x32 their map is a single pixel.
        """
        side, width = self.side, self.width
        if self.stem == "imagenet":
            yield side, 7, 2, 1, width
            side //= 4
        else:
            yield side, 3, 1, 1, width
        for _ in range(3):
            yield side, 3, 1, width, width
            yield side, 3, 2, width, 2 * width
            side, width = -(-side // 2), 2 * width


NETWORKS = {
    "width 64, 32x32": Network("imagenet", 64, 32),
    "width 16, 28x28": Network("small", 16, 28),
}
_fits = rule.fits
# What to put in the place of the rule's parts, or of what keeps gradients from running ahead.
VARIANTS: dict[str, AbstractContextManager] = {
    "the rule": nullcontext(),
    "no tiles": mock.patch.object(rule, "fits", lambda name, g: name != "tiles" and _fits(name, g)),
    "tiles on 2x2 maps alone": mock.patch.object(rule, "MANY", math.inf),
    "tiles wherever they fit": mock.patch.object(rule, "MANY", 0),
    "small inputs like others": mock.patch.object(rule, "FEW", 0),
    "narrow layers like others": mock.patch.object(rule, "NARROW", ()),
    "few colours like others": mock.patch.object(rule, "COLOURS", 0),
    "gradients' copies made on the way forward": mock.patch.object(cpu, "after", lambda x, _: x),
}


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int, times: int) -> dict[str, float]:
    """Median milliseconds of each call; the first of each turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for number in range(times + 1):
                start = time.perf_counter()
                jax.block_until_ready(call())
                if number:
                    seconds[name].append(time.perf_counter() - start)
    return {name: round(1e3 * statistics.median(s), 3) for name, s in seconds.items()}


def alone(name: str, batch: int, shape: tuple[int, int, int, int, int]) -> list[dict]:
    """A row for each face of one convolution."""
    side, kernel, stride, channels, features = shape
    pad = kernel // 2
    geometry = Geometry.of((side, side), (kernel, kernel), (stride, stride), (pad, pad))
    live = geometry.trimmed()
    draw = np.random.default_rng(0).standard_normal
    x = jnp.asarray(draw((batch, side, side, channels), np.float32))
    grad = jnp.asarray(draw((batch, *geometry.out, features), np.float32))
    weights = jnp.asarray(draw((*live.kernel, channels, features), np.float32))
    rows = []
    for face, formulations in cpu.FORMULATIONS.items():
        a, b = {
            "forward": (x, weights),
            "input_grad": (grad, weights),
            "kernel_grad": (x, grad),
        }[face]
        calls = {}
        for choice, formulation in formulations.items():
            # A dense matrix of a large map has more entries than memory holds.
            if rule.fits(choice, live) and (choice != "dense" or side <= 4):
                program = jax.jit(formulation, static_argnums=2).lower(a, b, live).compile()
                calls[choice] = lambda program=program, a=a, b=b: program(a, b)
        rows.append(
            {
                "network": name,
                "batch": batch,
                "convolution": f"{side}x{side}x{channels}, {kernel}x{kernel}/{stride}, {features}",
                "face": face,
                "chosen": rule.choose(face, live, (channels, features), a.size),
                "ms": in_turns(calls, rounds=5, times=3),
            }
        )
    return rows


def within(name: str, network: Network, batch: int, what: str) -> list[dict]:
    """A row for each variant with a program of its own."""
    model = rj.ResNet18(num_classes=10, width=network.width, stem=network.stem)
    images = jnp.ones((batch, network.side, network.side, 1))
    state = rj.TrainState.create(model, optax.sgd(0.01, 0.9), jax.random.key(0), images[:1])
    examples = rj.Batch(images, jnp.zeros(batch, jnp.int32))
    step = rj.train_step if what == "training" else rj.eval_step
    rows, calls, seen = [], {}, set()
    for choice, patched in VARIANTS.items():
        jax.clear_caches()
        with patched:
            lowered = jax.jit(step).lower(state, examples)
        text = lowered.as_text()
        if text in seen:
            continue
        seen.add(text)
        start = time.perf_counter()
        program = lowered.compile()
        seconds = time.perf_counter() - start
        calls[choice] = lambda program=program: program(state, examples)
        rows.append(
            {
                "network": name,
                "batch": batch,
                "what": what,
                "rule": choice,
                "compile_s": round(seconds, 1),
                "kernels": program.as_text().count(" fusion("),
                "temporaries_mib": round(program.memory_analysis().temp_size_in_bytes / 2**20),
            }
        )
    times = in_turns(calls, rounds=10, times=4)
    return [row | {"ms": times[row["rule"]]} for row in rows]


def main() -> None:
    """Writes formulations.json, keeping the rows that were not asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options = parser.parse_args()

    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"within": [], "alone": []}
    for name, network in NETWORKS.items():
        for batch in options.batches if options.only in name else ():
            new = {
                "within": [
                    row
                    for what in ("training", "inference")
                    for row in within(name, network, batch, what)
                ],
                "alone": [row for shape in network.shapes() for row in alone(name, batch, shape)],
            }
            for part, rows in new.items():
                found[part] = [
                    row for row in found[part] if (row["network"], row["batch"]) != (name, batch)
                ] + rows
            print(json.dumps(new["within"]), flush=True)
            parts = (
                f'"{part}": [\n' + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]"
                for part, rows in found.items()
            )
            RESULTS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    restart_tuned()
    main()
