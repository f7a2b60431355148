"""What meshes of 1, 2, 4 and 8 devices compute; prints JSON. Run with eight virtual devices.

``python on_devices.py numbers|communication|platforms``: what is compiled here once for all tests
of `test_devices.py`, which say what must hold.
"""

import dataclasses
import json
import math
import re
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import resnet_jax as rj
from resnet_jax.data import IndexStream
from resnet_jax.training.loop import load_splits
from resnet_jax.training.program import Program, configure_jax

COUNTS = (1, 2, 4, 8)
CONFIG = rj.TrainConfig(
    model=rj.ModelConfig(width=4, lowering="reference"),
    data=rj.DataConfig(name="mnist_5k", subset=(120, 50, 30)),
    augment=rj.AugmentConfig(shift=2, rotation=10),
    optim=rj.OptimConfig(learning_rate=0.05),
    batch_size=16,
    ema=0.9,
)


def with_model(**changes: Any) -> rj.TrainConfig:
    return dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **changes))


def program_on(count: int, config: rj.TrainConfig) -> Program:
    configure_jax(config)
    names = tuple("0123456789")
    return Program(config, names, (28, 28, 1), 20, jax.devices()[:count])


def trained(count: int, config: rj.TrainConfig, steps: int) -> tuple[Program, Any, list[float]]:
    program, (data, _) = program_on(count, config), load_splits(config)
    stream = IndexStream(len(data.train), config.batch_size, config.seed)
    state, examples, losses = program.init(), program.put(data.train), []
    for step in range(steps):
        before = jax.tree.leaves(state)
        state, metrics = program.train(state, examples, stream.batch(step))
        losses.append(float(metrics.loss))
        assert all(leaf.is_deleted() for leaf in before), "the old state was not donated"
    return program, state, losses


def apart(one: Any, other: Any) -> float:
    """The largest difference of two arrays of the same name, relative to its largest value."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)


def compared(config: rj.TrainConfig, steps: int, counts: tuple[int, ...]) -> dict[str, Any]:
    found = {count: trained(count, config, steps) for count in counts}
    states = {count: jax.device_get(state) for count, (_, state, _) in found.items()}
    one = states[1]
    return {
        "losses": [losses for _, _, losses in found.values()],
        "parameters_apart": [apart(one.params, state.params) for state in states.values()],
        "statistics_apart": [apart(one.batch_stats, s.batch_stats) for s in states.values()],
    }


def evaluated(config: rj.TrainConfig) -> list[Any]:
    """The confusions of the same weights, of 500 images, which no batch divides."""
    _, splits = load_splits(config)
    _, state, _ = trained(1, config, 8)
    weights, found = jax.device_get(state), []
    for count in (*COUNTS, 3):
        program = program_on(count, config)
        state = jax.device_put(weights, program.replicated)
        found.append(program.evaluate(state, program.put(splits["test_all"])).confusion.tolist())
    return found


def collectives(config: rj.TrainConfig) -> dict[str, Any]:
    """Kinds of communication in a compiled step on eight devices, and the largest array in it."""
    program, size = program_on(8, config), config.batch_size
    state = program.init()
    images = jax.ShapeDtypeStruct((size, 28, 28, 1), np.uint8)
    labels = jax.ShapeDtypeStruct((size,), np.int32)
    text = program._train.lower(state, program._augment_key, images, labels).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
    shapes = re.findall(r"\w\d+\[([\d,]*)\]", " ".join(shape for shape, _ in found))
    return {
        "kinds": sorted({kind for _, kind in found}),
        "largest": max(math.prod(map(int, shape.split(","))) if shape else 1 for shape in shapes),
        "largest_parameter": max(leaf.size for leaf in jax.tree.leaves(state.params)),
    }


def exported(name: str, count: int) -> dict[str, Any]:
    """The whole train step of a network of full width, for platforms that are not here."""
    model = rj.ModelConfig(name=name)
    program = program_on(count, dataclasses.replace(CONFIG, model=model))
    image = jnp.zeros((1, 28, 28, 1))
    variables = jax.eval_shape(partial(program.model.init, train=False), jax.random.key(0), image)
    number = jax.ShapeDtypeStruct((), np.int32)
    state = rj.TrainState(
        **variables,
        step=number,
        opt_state=jax.eval_shape(program.tx.init, variables["params"]),
        ema=variables,
        first_bad_step=number,
        apply_fn=program.model.apply,
        tx=program.tx,
    )
    arguments = (
        state,
        program._augment_key,
        jax.ShapeDtypeStruct((16, 28, 28, 1), np.uint8),
        jax.ShapeDtypeStruct((16,), np.int32),
    )
    found = jax.export.export(program._train, platforms=("cpu", "cuda", "tpu"))(*arguments)
    return {"platforms": found.platforms, "devices": found.nr_devices}


def numbers() -> dict[str, Any]:
    found = {
        "float32": [trained(n, CONFIG, 1)[2] for n in COUNTS],
        "auto": trained(8, with_model(lowering="auto"), 1)[2],
        "bfloat16": [trained(n, with_model(dtype="bfloat16"), 1)[2] for n in (1, 8)],
        "confusions": evaluated(CONFIG),
    }
    # Last: it switches to float64 for good.
    double = with_model(dtype="float64")
    return found | {
        "float64": compared(double, 20, COUNTS),
        "parts": compared(dataclasses.replace(double, accumulate=2), 5, (1, 2, 8)),
    }


def communication() -> dict[str, Any]:
    return {
        "auto": collectives(with_model(lowering="auto")),
        "reference": collectives(CONFIG),
        "parts": collectives(dataclasses.replace(CONFIG, accumulate=2)),
    }


def platforms() -> dict[str, Any]:
    networks = ("resnet18", "resnet50")
    return {name: {count: exported(name, count) for count in (1, 8)} for name in networks}


if __name__ == "__main__":
    what = {"numbers": numbers, "communication": communication, "platforms": platforms}
    print(json.dumps(what[sys.argv[1]]()))
