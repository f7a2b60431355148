"""Where does the time of a warm start go, from the start of Python to the end of the first step?

Command:   python -m experiments.cpu_speed.start     (a minute)
Result:    start.json: seconds of a start with a cold compilation cache and of seven with a warm
           one, and seconds of each phase of these seven

The network is ResNet-18 at 32x32, batch 64. Here one phase follows the other; in the command the
parameters are drawn while a thread compiles the step.
"""

import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from experiments.measuring import in_process, of_processor, with_cache, write_json
from resnet_jax.memory import tuned

RESULTS = of_processor(Path(__file__).parent, "start")
STARTS = 7


def start(began: float) -> dict[str, float]:
    ends = {}
    import jax
    import jax.numpy as jnp
    import optax

    import resnet_jax as rj

    model, tx = rj.ResNet18(num_classes=10), optax.sgd(0.01, 0.9)
    create, train_step = rj.TrainState.create, rj.train_step
    ends["Python and imports"] = time.time()
    batch = rj.Batch(jnp.ones((64, 32, 32, 1)), jnp.zeros(64, jnp.int32))
    drawn = model.clone(lowering="reference")
    state = create(drawn, tx, jax.random.key(0), batch.images[:1])
    state = jax.block_until_ready(state.replace(apply_fn=model.apply))
    ends["parameters: trace, load, draw"] = time.time()
    traced = jax.jit(train_step, donate_argnums=0).trace(state, batch)
    ends["step: trace"] = time.time()
    lowered = traced.lower()
    ends["step: lower"] = time.time()
    step = lowered.compile()
    ends["step: load"] = time.time()
    jax.block_until_ready(step(state, batch))
    ends["step: run for the first time"] = time.time()
    lasting = (end - start for start, end in pairwise([began, *ends.values()]))
    return {name: round(seconds, 3) for name, seconds in zip(ends, lasting, strict=True)}


if __name__ == "__main__":
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        environment = tuned(os.environ) | with_cache(cache)
        for _ in range(1 + STARTS):
            rows.append(in_process("cpu_speed.start", "start", time.time(), **environment))
            print(rows[-1], flush=True)
    seconds = [round(sum(row.values()), 2) for row in rows]
    starts = {"cold": seconds[:1], "warm": seconds[1:]}
    write_json(RESULTS, {"starts": starts, "phases": rows[1:]})
