"""Which algorithm of a convolution is fastest on a CPU, alone and within the network?

Command:   python -m experiments.cpu_speed.algorithms                     (all, twenty minutes)
           python -m experiments.cpu_speed.algorithms --only "width 16" --batches 64
Result:    algorithms.json: every algorithm in every pass of convolutions of two networks,
           medians of 15 calls, and the networks under several heuristics, medians of 40

Within the network XLA fuses an algorithm's shifts and sums with the operations around them, which
is why both are measured.
"""

import time
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import resnet_jax as rj
from experiments.cpu_speed.where_time_goes import convolutions
from experiments.measuring import Row, command, milliseconds, of_processor, read_json, write_json
from resnet_jax.memory import restart_tuned
from resnet_jax.ops import conv, heuristics, pool
from resnet_jax.ops.algorithms import ALGORITHMS, im2col, shift_add, supports, winograd
from resnet_jax.ops.geometry import Geometry

RESULTS = of_processor(Path(__file__).parent, "algorithms")
BATCHES = (64, 256)
# Stem, width and side of ResNet-18 for images of one channel.
NETWORKS = {"width 64, 32x32": ("imagenet", 64, 32), "width 16, 28x28": ("small", 16, 28)}


def but_winograd(name: str, geometry: Geometry) -> bool:
    return not name.startswith("winograd") and supports(name, geometry)


# Patches that replace parts of the heuristics, or undo the delay of the gradients' copies.
patch = mock.patch.object
VARIANTS: dict[str, list[AbstractContextManager]] = {
    "the heuristics": [],
    **{
        f"those of {name}": [patch(conv, "instruction_set", lambda name=name: name)]
        for name in heuristics.INSTRUCTION_SETS
    },
    "no Winograd": [patch(heuristics, "supports", but_winograd)],
    "Winograd by tiles of two alone": [patch(heuristics, "TWO_TILES_MIN_RATIO", 0)],
    "small inputs like others": [patch(heuristics, "IM2COL_MAX_ELEMENTS", 0)],
    "narrow layers like others": [patch(heuristics, "XLA_CHANNELS", ())],
    "images like others": [patch(im2col, "MAX_IMAGE_CHANNELS", 0)],
    "copies for gradients kept from the forward pass": [
        patch(module, "depends_on", lambda x, _: x)
        for module in (im2col, shift_add, winograd, pool)
    ],
}


def alone(name: str, batch: int, shape: tuple[int, int, int, int, int]) -> list[Row]:
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
            if supports(choice, live):
                program = jax.jit(algorithm, static_argnums=2).lower(a, b, live).compile()
                calls[choice] = partial(program, a, b)
        row = {"network": name, "batch": batch, "pass": pass_}
        row |= {"convolution": f"{side}x{side}x{channels}, {kernel}x{kernel}/{stride}, {features}"}
        here = heuristics.instruction_set()
        row |= {"chosen": heuristics.choose(pass_, live, (channels, features), a.size, here)}
        rows.append(row | {"ms": milliseconds(calls, rounds=5, times=3, warm_calls=1)})
    return rows


def within(name: str, batch: int, what: str) -> list[Row]:
    """Return a row for each variant whose program differs from those of the variants before it."""
    stem, width, side = NETWORKS[name]
    model = rj.ResNet18(num_classes=10, width=width, stem=stem)
    images = jnp.ones((batch, side, side, 1))
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
        if lowered.as_text() in seen:
            continue
        seen.add(lowered.as_text())
        start = time.perf_counter()
        program = lowered.compile()
        seconds = time.perf_counter() - start
        calls[choice] = partial(program, state, examples)
        row = {"network": name, "batch": batch, "what": what, "heuristics": choice}
        row |= {"compile_s": round(seconds, 1), "kernels": program.as_text().count(" fusion(")}
        temporaries = program.memory_analysis().temp_size_in_bytes
        rows.append(row | {"temporaries_mib": round(temporaries / 2**20)})
    times = milliseconds(calls, rounds=10, times=4, warm_calls=1)
    return [row | {"ms": times[row["heuristics"]]} for row in rows]


def main(only: str = "", batches: tuple[int, ...] = BATCHES) -> None:
    """Measure the networks whose name contains ``only``."""
    found = read_json(RESULTS, missing={"within": [], "alone": []})
    chosen = {name: of for name, of in NETWORKS.items() if only in name}
    for (name, (stem, width, side)), batch in product(chosen.items(), batches):
        # Each shape once, without 1x1 kernels and the last shape, whose map is the smallest.
        shapes = dict.fromkeys(s for s in convolutions(side, stem, width) if s[1] > 1)
        new = {
            "within": within(name, batch, "training") + within(name, batch, "inference"),
            "alone": [row for shape in list(shapes)[:-1] for row in alone(name, batch, shape)],
        }
        for part, rows in new.items():
            others = (r for r in found[part] if (r["network"], r["batch"]) != (name, batch))
            found[part] = [*others, *rows]
        print(*new["within"], sep="\n", flush=True)
        write_json(RESULTS, found)


if __name__ == "__main__":
    restart_tuned()
    command(main)
