"""Which algorithm of a convolution is fastest on a CPU, alone and within the network?

Command:   python -m experiments.cpu_speed.algorithms                     (all, twenty minutes)
           python -m experiments.cpu_speed.algorithms --only "width 16" --batches 64
Result:    algorithms.json: milliseconds of every algorithm in every pass of every convolution of
           two networks, medians of 15 calls; and of the networks under several heuristics, medians
           of 40, also seconds to compile, kernels and MiB of temporaries. The heuristics are within
           7 % of the best of them
Machine:   2 cores of an AMD EPYC, idle

`resnet_jax/ops/heuristics.py` rests on it. Alone an algorithm shows its products; within the
network its shifts and sums fuse with what is around them, which is why both are measured. All
contenders of a row take turns in one process.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import resnet_jax as rj
from experiments.measuring import in_turns, write_json
from resnet_jax.memory import restart_tuned
from resnet_jax.ops import heuristics, pool
from resnet_jax.ops.algorithms import ALGORITHMS, im2col, shift_add, supports, winograd
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


def but_winograd(name: str, geometry: Geometry) -> bool:
    return name != "winograd" and supports(name, geometry)


# What to put in the place of the heuristics' parts, or of what delays the gradients' copies.
patch = mock.patch.object
VARIANTS: dict[str, list[AbstractContextManager]] = {
    "the heuristics": [],
    "no Winograd": [patch(heuristics, "supports", but_winograd)],
    "Winograd on 2x2 maps alone": [patch(heuristics, "WINOGRAD_MIN_ELEMENTS", math.inf)],
    "Winograd wherever it fits": [patch(heuristics, "WINOGRAD_MIN_ELEMENTS", 0)],
    "small inputs like others": [patch(heuristics, "IM2COL_MAX_ELEMENTS", 0)],
    "narrow layers like others": [patch(heuristics, "XLA_CHANNELS", ())],
    "images like others": [patch(im2col, "MAX_IMAGE_CHANNELS", 0)],
    "copies for gradients kept from the forward pass": [
        patch(module, "depends_on", lambda x, _: x)
        for module in (im2col, shift_add, winograd, pool)
    ],
}


def milliseconds(calls: dict[str, Callable], rounds: int, times: int) -> dict[str, float]:
    """Median milliseconds of each call; the first of each turn does not count."""
    waiting = {n: lambda call=call: jax.block_until_ready(call()) for n, call in calls.items()}
    seconds = in_turns(waiting, rounds, times, warm_calls=1)
    return {name: round(1e3 * statistics.median(s), 3) for name, s in seconds.items()}


def alone(name: str, batch: int, shape: tuple[int, int, int, int, int]) -> list[dict]:
    """A row for each pass of one convolution."""
    side, kernel, stride, channels, features = shape
    geometry = Geometry.of((side, side), kernel, stride, kernel // 2)
    live = geometry.trimmed()
    draw = np.random.default_rng(0).standard_normal
    x = jnp.asarray(draw((batch, side, side, channels), np.float32))
    grad = jnp.asarray(draw((batch, *geometry.out, features), np.float32))
    weights = jnp.asarray(draw((*live.kernel, channels, features), np.float32))
    operands = {"forward": (x, weights), "input_grad": (grad, weights), "weight_grad": (x, grad)}
    rows = []
    for pass_, (a, b) in operands.items():
        calls = {}
        for choice, algorithm in ALGORITHMS[pass_].items():
            # The Toeplitz matrix of a large map has more entries than memory holds.
            if supports(choice, live) and (choice != "toeplitz" or side <= 4):
                program = jax.jit(algorithm, static_argnums=2).lower(a, b, live).compile()
                calls[choice] = lambda program=program, a=a, b=b: program(a, b)
        rows.append(
            {
                "network": name,
                "batch": batch,
                "convolution": f"{side}x{side}x{channels}, {kernel}x{kernel}/{stride}, {features}",
                "pass": pass_,
                "chosen": heuristics.choose(heuristics.Problem.of(pass_, a, b, live)),
                "ms": milliseconds(calls, rounds=5, times=3),
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
    for choice, patches in VARIANTS.items():
        jax.clear_caches()
        with ExitStack() as stack:
            for patched in patches:
                stack.enter_context(patched)
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
                "heuristics": choice,
                "compile_s": round(seconds, 1),
                "kernels": program.as_text().count(" fusion("),
                "temporaries_mib": round(program.memory_analysis().temp_size_in_bytes / 2**20),
            }
        )
    times = milliseconds(calls, rounds=10, times=4)
    return [row | {"ms": times[row["heuristics"]]} for row in rows]


def main() -> None:
    """Writes algorithms.json, keeping the rows that were not asked for."""
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
            write_json(RESULTS, found)


if __name__ == "__main__":
    restart_tuned()
    main()
