"""Does PyTorch reach the same accuracy on the very images of the preset `book`?

Command:   pip install torch==2.13.0; python experiments/presets/book_pytorch.py
Needs:     the full MNIST prepared ($TFDS_DATA_DIR), and PyTorch
Result:    book_pytorch.jsonl, a line for each run

The protocol of `resnet-jax train book`: the same 1,000 images, 32x32 bilinear, [-1, 1], plain SGD
at 0.005, batch 64, 79 steps, PyTorch's default initialisation; last parameters, 10,000 test images;
18 and 34 layers.
Another sample than that of "the first 1,000" has another accuracy: this tells the two apart.
"""

import json
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import resnet_jax as rj
from resnet_jax.data.dataset import ArraySplit, sample
from resnet_jax.data.load import load_dataset
from resnet_jax.data.sampler import EpochSampler

RESULTS = Path(__file__).with_suffix(".jsonl")
BOOK = rj.PRESETS["book"]
UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Unit(nn.Module):
    def __init__(self, channels: int, features: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.residual = residual
        self.project = channels != features and residual
        if self.project:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.residual:
            y = y + (self.shortcut(x) if self.project else x)
        return F.relu(y)


def resnet(layers: int, residual: bool) -> nn.Sequential:
    stem = [nn.Conv2d(1, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [64]
    for stage, units in enumerate(UNITS[layers]):
        widths += [64 * 2**stage] * units
    units = [Unit(a, b, 1 if a == b else 2, residual) for a, b in pairwise(widths)]
    return nn.Sequential(*stem, *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def as_input(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False)
    return (resized / 255 - 0.5) / 0.5


def accuracy(layers: int, residual: bool, seed: int, data: rj.Dataset, test: ArraySplit) -> float:
    torch.manual_seed(seed)
    model = resnet(layers, residual)
    optimizer = torch.optim.SGD(model.parameters(), lr=BOOK.optim.learning_rate)
    images, labels = as_input(data.train.images), torch.from_numpy(data.train.labels).long()
    sampler = EpochSampler(len(data.train), BOOK.batch_size, seed)
    for step in range(sampler.steps(BOOK.epochs)):
        indices = torch.from_numpy(sampler.batch(step)).long()
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices]), labels[indices]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        parts = as_input(test.images).split(500)
        guesses = torch.cat([model(part).argmax(1) for part in parts])
    return float((guesses.numpy() == test.labels).mean())


def main() -> None:
    whole = load_dataset("mnist")
    train, validation, test = BOOK.data.subset
    data = sample(whole, train=train, validation=validation, test=test, seed=BOOK.data.subset_seed)
    done = [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []
    for layers, seed, residual in product(UNITS, range(10), (True, False)):
        what = {"layers": layers, "residual": residual, "seed": seed}
        if any(what.items() <= row.items() for row in done):
            continue
        row = {**what, "accuracy": accuracy(layers, residual, seed, data, whole.test)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
