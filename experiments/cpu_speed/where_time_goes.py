"""Where does the time of a training step go on a CPU, with either lowering, and what is its floor?

Command:   python -m experiments.cpu_speed.where_time_goes     (three minutes)
Result:    where_time_goes.json: milliseconds a step by kind of work, mean of ten steps, for XLA's
           convolutions (lowering="reference") and the algorithms of resnet_jax.ops ("auto")

The profiler names the instruction behind each event, and the compiled program's metadata names the
layer that the instruction comes from.
"""

import json
import re
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import resnet_jax as rj
from experiments.cpu_speed.benchmark import case
from experiments.cpu_speed.contenders import examples
from experiments.measuring import in_turns, milliseconds, of_processor, write_json
from resnet_jax.memory import restart_tuned

RESULTS = of_processor(Path(__file__).parent, "where_time_goes")
PRODUCTS = "products and convolutions"
PARTS = (
    PRODUCTS,
    "shifts, tiles and sums around them",
    "batch norm",
    "ReLU, addition, pooling",
    "optimiser, loss, metrics",
)
STEPS = 10


def part(name: str, op: str, kinds: dict[str, str]) -> str:
    """Return the kind of work of an instruction, from its name and the layer in its metadata."""
    if re.match(r"dot|conv|ynn|custom-call", kinds.get(name, name)) or op.endswith(
        ("dot_general", "conv_general_dilated")
    ):
        return PRODUCTS
    if re.search(r"/(\w+_)?conv\d?(/|$)", op):
        return PARTS[1]
    if re.search(r"/(\w+_)?norm\d?(/|$)", op):
        return PARTS[2]
    return PARTS[3] if "ResNet" in op else PARTS[4]


def convolutions(
    side: int, stem: str = "imagenet", width: int = 64
) -> list[tuple[int, int, int, int, int]]:
    """List ResNet-18's convolutions of grey images: (side, kernel, stride, channels, features)."""
    found = [(side, 7, 2, 1, width)] if stem == "imagenet" else [(side, 3, 1, 1, width)]
    side = -(-side // 4) if stem == "imagenet" else side  # the stem's stride and its pool's
    for channels, features in pairwise(width * k for k in (1, 1, 1, 2, 2, 4, 4, 8, 8)):
        stride = features // channels
        found.append((side, 3, stride, channels, features))
        if stride == 2:
            found.append((side, 1, stride, channels, features))
            side = -(-side // 2)
        found.append((side, 3, 1, features, features))
    return found


def floor_ms(batch: int, parameters: int, flops_s: float, bytes_s: float) -> float:
    """Return the ms of a step's multiply-adds that meet the image plus those of its memory traffic.

    A step computes every convolution three times (the stem's input has no gradient). The output is
    written, read for its statistics, and read and written by the normalisation; on the way back the
    output and its gradient are read twice and the gradient is written: nine times 4 bytes. The
    optimiser reads parameters, momentum and gradient, and writes all three. `rates` has the rates.
    """
    adds = values = 0
    for number, (side, kernel, stride, channels, features) in enumerate(convolutions(32)):
        outputs, low = -(-side // stride), kernel // 2
        reads = [o * stride + tap - low for o in range(outputs) for tap in range(kernel)]
        hits = sum(0 <= position < side for position in reads) ** 2
        adds += (3 if number else 2) * hits * channels * features
        values += outputs**2 * features
    products = 2 * adds * batch / flops_s
    return 1e3 * (products + (9 * 4 * values * batch + 6 * 4 * parameters) / bytes_s)


def rates() -> tuple[float, float]:
    """Measure operations a second of a product of 2048^3, and bytes read and written a second."""
    a, long = jnp.ones((2048, 2048)), jnp.ones(2**26)
    product, increment = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1, donate_argnums=0)

    def add() -> None:
        nonlocal long
        long = increment(long).block_until_ready()

    calls = {"product": lambda: product(a, a).block_until_ready(), "add": add}
    best = {name: min(seconds) for name, seconds in in_turns(calls, rounds=8).items()}
    return 2 * 2048**3 / best["product"], 2 * long.nbytes / best["add"]


def measure(batch: int, lowering: str, flops_s: float, bytes_s: float) -> dict:
    model = rj.ResNet18(num_classes=10, lowering=lowering)
    data = rj.Batch(*jax.device_put(examples(case("", "training", batch))))
    state = rj.TrainState.create(model, optax.sgd(0.01, 0.9), jax.random.key(0), data.images[:1])
    step = jax.jit(rj.train_step, donate_argnums=0).lower(state, data).compile()
    text = step.as_text()
    ops = dict(re.findall(r'^\s*(?:ROOT )?%([\w.-]+) = .*op_name="([^"]*)"', text, re.M))
    kinds = dict(re.findall(r"^\s*(?:ROOT )?%([\w.-]+) = \S+ ([\w-]+)\(", text, re.M))

    def train() -> None:
        nonlocal state
        state, _ = step(state, data)
        jax.block_until_ready(state.params)

    row = {"batch": batch, "lowering": lowering}
    row |= {"step_ms": milliseconds({"step": train}, rounds=STEPS, warm_rounds=STEPS)["step"]}
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                train()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op")
                    # The time of a call includes that of the instructions that it calls.
                    if name and kinds.get(name) not in ("call", "while", "conditional"):
                        spent[part(name, ops.get(name, ""), kinds)] += event.duration_ns
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    row["parts_ms"] = {name: round(spent[name] / STEPS / 1e6, 2) for name in PARTS}
    row["floor_ms"] = round(floor_ms(batch, parameters, flops_s, bytes_s), 2)
    return row | {"gflop_s": round(flops_s / 1e9, 1), "gbyte_s": round(bytes_s / 1e9, 1)}


if __name__ == "__main__":
    restart_tuned()
    flops_s, bytes_s = rates()
    rows = []
    for batch in (64, 256):
        for lowering in ("reference", "auto"):
            rows.append(measure(batch, lowering, flops_s, bytes_s))
            print(json.dumps(rows[-1]), flush=True)
    write_json(RESULTS, rows)
