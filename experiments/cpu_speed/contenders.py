"""One contender in one process: told on stdin how many calls to time, it answers their seconds.

python contenders.py CONTENDER CASE    where CASE is a row of benchmark.CASES as JSON
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Call = Callable[[], object]  # does one step or one prediction and waits for the result


def examples(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """float32[N, H, W, C] images and int32[N] labels."""
    generator = np.random.default_rng(0)
    shape = case["batch"], case["size"], case["size"], case["channels"]
    labels = generator.integers(0, case["classes"], case["batch"])
    return generator.standard_normal(shape, np.float32), labels.astype(np.int32)


def with_jax(case: dict[str, Any], obvious: bool) -> Call:
    """This package as its command sets it up, or Flax written the obvious way."""
    import jax
    import optax
    from obvious_flax import ResNet18

    import resnet_jax as rj

    network = ResNet18 if obvious else rj.ResNet18
    model = network(num_classes=case["classes"], width=case["width"], stem=case["stem"])
    images, labels = (jax.device_put(a) for a in examples(case))
    # To predict takes no momentum.
    tx = optax.sgd(0.01, 0.9 if case["what"] == "training" else None)
    # Drawn by what is quickest to trace, as the command does.
    drawn = model if obvious else model.clone(lowering="reference")
    state = rj.TrainState.create(drawn, tx, jax.random.key(0), images[:1])
    state = state.replace(apply_fn=model.apply)
    if case["what"] == "inference":
        predict = jax.jit(partial(model.apply, train=False))
        return lambda: jax.block_until_ready(predict(state.variables, images))

    step = jax.jit(rj.train_step, donate_argnums=0)
    batch = rj.Batch(images, labels)

    def train() -> None:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state.params)

    return train


def with_torch(case: dict[str, Any], setting: str) -> Call:
    """The same network in PyTorch: eager, channels_last, bf16 (autocast) or compile."""
    import torch
    from torch_resnet import resnet18

    model = resnet18(case["channels"], case["classes"], case["width"], case["stem"])
    images, labels = (torch.from_numpy(a) for a in examples(case))
    images, labels = images.permute(0, 3, 1, 2).contiguous(), labels.long()
    if setting == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=setting == "bf16")
    run = torch.compile(model) if setting == "compile" else model
    if case["what"] == "inference":
        model.eval()

        def predict() -> object:
            with torch.inference_mode(), autocast():
                return run(images)

        return predict

    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()

    return train


CONTENDERS: dict[str, Callable[[dict[str, Any]], Call]] = {
    "resnet_jax": partial(with_jax, obvious=False),
    "flax": partial(with_jax, obvious=True),
    "torch eager": partial(with_torch, setting="eager"),
    "torch channels_last": partial(with_torch, setting="channels_last"),
    "torch bf16": partial(with_torch, setting="bf16"),
    "torch compile": partial(with_torch, setting="compile"),
}


def peak_mib() -> float:
    """Largest resident memory of this process so far (of this program alone, unlike ru_maxrss)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Answers each number on stdin with a line of JSON."""
    call = CONTENDERS[sys.argv[1]](json.loads(sys.argv[2]))
    call()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), flush=True)


if __name__ == "__main__":
    main()
