"""How do the time and the memory of a training step grow with depth and with the image's size?

Command:   python -m experiments.scaling.cost                  (half an hour; --list, --quick)
           python -m experiments.scaling.cost --only compile   (fills the cache in --runs)
           python -m experiments.scaling.cost --only steps
Result:    costs.jsonl, two lines for each cell, medians of 3 to 20 steps

One process compiles a cell's step. Another loads it from the cache, as every start of a program but
the first does, makes one step, and times the next ones.
"""

import statistics
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

import resnet_jax as rj
from experiments import units
from experiments.cpu_speed.contenders import examples
from experiments.measuring import Row, in_process, resident_mib, with_cache
from resnet_jax.models import VARIANTS, summarize

COSTS = Path(__file__).with_name("costs.jsonl")
DEPTHS = (18, 34, 50, 101, 152)
SIZES = (28, 56, 112, 224)
PARTS = ("compile", "steps")
LONG_ENOUGH = 2.0  # seconds of timed steps, of which there are 3 to 20


@dataclass(frozen=True)
class Cell:
    """One of `PARTS` of the measurement of a network, at an image size and a batch size."""

    part: str
    depth: int
    size: int
    batch: int = 8
    width: int = 64
    lowering: str = "auto"

    def __str__(self) -> str:
        return f"{self.part}-{self.depth}x{self.size}"


# A step is compiled first, so that it is in the cache when it is timed.
CELLS = [Cell(part, depth, size) for size in SIZES for depth in DEPTHS for part in PARTS]
QUICK = [Cell(part, 18, 28, batch=2, width=2, lowering="reference") for part in PARTS]


def measure(values: Row) -> Row:
    """Measure a cell in this process; ``program_mib`` is from XLA's memory analysis."""
    cell = Cell(**values)
    variant = VARIANTS[f"resnet{cell.depth}"]
    model = variant(num_classes=1000, width=cell.width, lowering=cell.lowering)
    case = {"batch": cell.batch, "size": cell.size, "channels": 3, "classes": 1000}
    batch = rj.Batch(*examples(case))
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    key, tx = jax.random.key(0), optax.sgd(0.01, 0.9)
    create = partial(rj.TrainState.create, model, tx)
    shapes = jax.eval_shape(create, key, batch.images[:1])
    lowered = jax.jit(rj.train_step, donate_argnums=0).lower(shapes, batch)
    events.clear()
    began = time.process_time()
    step = lowered.compile()
    seconds = time.process_time() - began
    found = "/jax/compilation_cache/cache_hits" in events
    if cell.part == "compile":
        if found:
            sys.exit(f"{cell}: the cache holds this step: give other --runs to time compiling")
        return {"compile_cpu_s": round(seconds, 1), "peak_mib": round(resident_mib())}
    if not found:
        sys.exit(f"{cell}: the cache does not hold this step: remove its line, to compile again")

    # Any numbers take the same time, and drawing them as the model does would compile the draws.
    draw = np.random.default_rng(0).standard_normal
    drawn = jax.tree.map(lambda leaf: (0.05 * draw(leaf.shape)).astype(leaf.dtype), shapes)
    state, batch = jax.device_put((drawn, batch))
    times: list[float] = []
    while len(times) < 4 or (sum(times[1:]) < LONG_ENOUGH and len(times) < 21):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state.params, metrics))
        times.append(time.perf_counter() - began)
    low, middle, high = statistics.quantiles(times[1:], n=4)
    memory, layers = step.memory_analysis(), summarize(model, (cell.size, cell.size, 3))
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    held += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "parameters": sum(layer.parameters for layer in layers),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "step_ms": round(middle * 1e3, 2),
        "quartiles_ms": [round(low * 1e3, 2), round(high * 1e3, 2)],
        "steps": len(times) - 1,
        "program_mib": round(held / 2**20),
        "peak_mib": round(resident_mib()),
    }


if __name__ == "__main__":
    options = units.parsed(__doc__, COSTS)
    cache = with_cache(options.runs.absolute())

    def work(cell: Cell, _: Path) -> Row:
        return in_process("scaling.cost", "measure", asdict(cell), **cache)

    units.carry_out(QUICK if options.quick else CELLS, options, work)
