"""How long do calls of one contender take, in a process of its own?

Command:   python -m experiments.cpu_speed.contenders CONTENDER CASE     (`benchmark.py` runs it)
Result:    for each number N read from stdin, the seconds of N calls; CASE is one of the CASES of
           `benchmark.py` or of gpu_speed, as JSON
"""

import json
import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from experiments.measuring import Row, in_turns, resident_mib

# Makes one step or prediction, and may return before its result is ready.
Call = Callable[[], object]


def examples(case: Row) -> tuple[np.ndarray, np.ndarray]:
    """Return images, float32[N, H, W, C], and labels, int32[N]."""
    generator = np.random.default_rng(0)
    shape = case["batch"], case["size"], case["size"], case["channels"]
    labels = generator.integers(0, case["classes"], case["batch"])
    return generator.standard_normal(shape, np.float32), labels.astype(np.int32)


def with_jax(case: Row, obvious: bool) -> Call:
    """Return a call of this package, set up as its command does it, or of `obvious_flax`."""
    import jax
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import resnet_jax as rj
    from experiments.cpu_speed.obvious_flax import ResNet18

    network = ResNet18 if obvious else rj.ResNet18
    kind = case.get("dtype", "float32")
    if case.get("device"):
        jax.config.update(
            "jax_default_matmul_precision", "tensorfloat32" if kind == "tf32" else "highest"
        )
    dtype = {} if obvious else {"dtype": "bfloat16" if kind == "bfloat16" else "float32"}
    model = network(num_classes=case["classes"], width=case["width"], stem=case["stem"], **dtype)
    mesh = Mesh(jax.devices(), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    images, labels = jax.device_put(examples(case), split)
    # Prediction needs no momentum.
    tx = optax.sgd(0.01, 0.9 if case["what"] == "training" else None)
    # The lowering that is quickest to trace draws the parameters, as in the command.
    drawn = model if obvious else model.clone(lowering="reference")
    state = rj.TrainState.create(drawn, tx, jax.random.key(0), examples(case)[0][:1])
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(state.replace(apply_fn=model.apply), everywhere)
    if case["what"] == "inference":
        predict = jax.jit(partial(model.apply, train=False))
        return lambda: predict(state.variables, images)

    step = jax.jit(rj.train_step, donate_argnums=0)
    batch = rj.Batch(images, labels)

    def train() -> object:
        nonlocal state
        state, _ = step(state, batch)
        return state.params

    return train


def with_torch(case: Row, setting: str) -> Call:
    """Return a call of the network in PyTorch: eager, channels_last, bf16 (autocast) or compile."""
    import torch

    from tests.interop.torch_twin import twin

    device, kind = case.get("device", "cpu"), case.get("dtype")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    settings = {name: case[name] for name in ("channels", "width", "stem")}
    model = twin("resnet18", num_classes=case["classes"], **settings).to(device)
    images, labels = (torch.from_numpy(a).to(device) for a in examples(case))
    images, labels = images.permute(0, 3, 1, 2).contiguous(), labels.long()
    if setting == "channels_last" or (setting, device) == ("compile", "cuda"):
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    half = setting == "bf16" or (device == "cuda" and kind == "bfloat16")
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=half)
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


if __name__ == "__main__":
    name, case = sys.argv[1], json.loads(sys.argv[2])
    if name.startswith("torch "):
        import torch

        once = with_torch(case, name.removeprefix("torch "))
        on_gpu = case.get("device") == "cuda"
        wait = (lambda _: torch.cuda.synchronize()) if on_gpu else (lambda _: None)
    else:
        import jax

        once, wait = with_jax(case, obvious=name == "flax"), jax.block_until_ready
    steps = case.get("steps", 1)  # without waiting in between, as in training on a GPU

    def call() -> None:
        for _ in range(steps):
            result = once()
        wait(result)

    call()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seconds = [s / steps for s in in_turns({"call": call}, rounds=int(line))["call"]]
        print(json.dumps({"seconds": seconds, "peak_mib": resident_mib()}), flush=True)
