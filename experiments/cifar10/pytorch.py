"""What does PyTorch reach by the recipe of the preset `cifar10_fast`?

Command:   python -m experiments.cifar10.pytorch FOLDER     (PyTorch, for a GPU where there is one)
Needs:     FOLDER as `python -m experiments.cifar10` does
Result:    a row of results.jsonl, `fast-pytorch-20-seed0`

The same network, images in the same order, initialisation, rate by step and loss; the crops and
flips are drawn anew.
"""

import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import resnet_jax as rj
from experiments.cifar10.__main__ import RESULTS, load
from experiments.cpu_speed.torch_resnet import accuracy, resnet
from experiments.measuring import append_row, machine
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.training.optim import make_schedule


def crops(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Cut each image's size out of the padded image anywhere, and mirror half of them."""
    count, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    down, right = torch.randint(2 * pixels + 1, (2, count, 1), device=images.device)
    columns = right + torch.arange(width, device=images.device)
    mirrored = torch.rand(count, 1, device=images.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)[:, None]
    rows = (down + torch.arange(height, device=images.device))[:, :, None]
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows, columns].permute(0, 3, 1, 2)


def train(folder: str, seed: int) -> dict[str, object]:
    config, data = rj.PRESETS["cifar10_fast"], load(folder, quick=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    model = resnet(3, 10, 16, "small", layers=20, pad=True)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    model = model.to(device, memory_format=torch.channels_last)
    settings = config.optim
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, 1.0, settings.momentum, nesterov=settings.nesterov)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (
        config.data.mean, config.data.std))  # fmt: skip

    def on_device(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()

    sampler = EpochSampler(len(data.train), config.batch_size, seed)
    total = sampler.steps(config.epochs)
    schedule = make_schedule(settings, total)
    rates = [float(schedule(step)) for step in range(total)]
    for step, rate in enumerate(rates):
        indices = sampler.batch(step)
        images, labels = data.train.batch(indices)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels = (crops(on_device(images), config.augment.crop) / 255 - mean) / std
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(pixels), torch.from_numpy(labels).to(device).long()).backward()
        optimizer.step()
    parts = np.array_split(data.test.images, 100)
    tested = ((on_device(part) / 255 - mean) / std for part in parts)
    return {"test_error": round(1 - accuracy(model, tested, data.test.labels), 4), "steps": total}


if __name__ == "__main__":
    began = time.monotonic()
    found = train(sys.argv[1], 0)
    row = {"name": "fast-pytorch-20-seed0", "recipe": "cifar10_fast", "seed": 0, **found}
    row |= {"seconds": round(time.monotonic() - began, 1), "machine": machine("torch")}
    append_row(RESULTS, row)
    print(row)
