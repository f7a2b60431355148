"""How long does PyTorch take for the recipe of the preset `fast`?

Command:   pip install torch==2.13.0; python -m experiments.presets.fast_pytorch
Needs:     the full MNIST prepared ($TFDS_DATA_DIR), and PyTorch
Result:    fast_pytorch.jsonl, a line for each of 5 seeds: 99.22 ± 0.09 % in 479 s (457 to 608),
           where `fast` takes 194 s (167 to 235). It also makes the lines of `fast` that
           results.jsonl lacks: the two take turns, so that a slow hour falls on both
Machine:   2 cores, idle; each line of results.jsonl names its processor

The same images in the same order, network, initialisation, loss, optimiser, rate by step,
evaluations and stop, with PyTorch's channels_last (see experiments/cpu_speed for its settings).
Each seed is a process of its own, timed from its start to its exit like the command's.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import resnet_jax as rj
from experiments.cpu_speed.torch_resnet import accuracy, resnet
from experiments.measuring import append_row, in_process, read_rows
from experiments.presets.measure import QUESTIONS, RUNS, measure
from resnet_jax.data.dataset import ArraySplit
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.training.optim import make_schedule

RESULTS = Path(__file__).with_suffix(".jsonl")


def train(seed: int) -> dict:
    config = rj.PRESETS["fast"]
    data = rj.load_dataset(config.data.name)
    torch.manual_seed(seed)
    model = resnet(1, 10, config.model.width, config.model.stem)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    model = model.to(memory_format=torch.channels_last)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    settings = config.optim
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(
        groups, settings.learning_rate, settings.momentum, nesterov=settings.nesterov
    )
    (mean,), (std,) = config.data.mean, config.data.std

    def as_input(images: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        return ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def accuracy_on(split: ArraySplit) -> float:
        parts = np.array_split(split.images, -(-len(split) // config.batch_size))
        return accuracy(model, map(as_input, parts), split.labels)

    sampler = EpochSampler(len(data.train), config.batch_size, seed)
    total = sampler.steps(config.epochs)
    rates = np.asarray([make_schedule(settings, total)(step) for step in range(total)])
    for step in range(total):
        indices = sampler.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        optimizer.zero_grad(set_to_none=True)
        labels = torch.from_numpy(data.train.labels[indices]).long()
        logits = model(as_input(data.train.images[indices]))
        F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing).backward()
        optimizer.step()
        if (step + 1) % config.eval_every == 0 and accuracy_on(data.validation) >= config.target:
            break
    return {"steps": step + 1, "accuracy": accuracy_on(data.test)}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(train(int(sys.argv[1]))))
        return
    done = [row["seed"] for row in read_rows(RESULTS)]
    for seed in range(QUESTIONS["fast"].seeds):
        measure("fast", [seed], RUNS)
        if seed in done:
            continue
        began = time.perf_counter()
        found = in_process("presets.fast_pytorch", seed)
        row = {"seed": seed, "seconds": round(time.perf_counter() - began, 1), **found}
        append_row(RESULTS, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
