"""Does PyTorch reach the same accuracy on the very images of the preset `book`?

Command:   pip install torch==2.13.0; python -m experiments.presets.book_pytorch
Needs:     the full MNIST prepared ($TFDS_DATA_DIR), and PyTorch
Result:    book_pytorch.jsonl, a line for each run: residual 91.98 % and plain 91.85 % at 18 layers
           (1 seed), residual 92.95 ± 0.36 % at 34 (5 seeds)
Machine:   any

The protocol of `resnet-jax train book`: the same 1,000 images, 32x32 bilinear, [-1, 1], plain SGD
at 0.005, batch 64, 79 steps, PyTorch's default initialisation; last parameters, 10,000 test images;
18 and 34 layers.
Another sample than that of "the first 1,000" has another accuracy: this tells the two apart.
"""

from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import resnet_jax as rj
from experiments.cpu_speed.torch_resnet import UNITS, accuracy, resnet
from experiments.measuring import append_row, read_rows
from resnet_jax.data.dataset import ArraySplit, sample
from resnet_jax.data.load import load_dataset
from resnet_jax.data.sampler import EpochSampler

RESULTS = Path(__file__).with_suffix(".jsonl")
BOOK = rj.PRESETS["book"]


def as_input(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False)
    return (resized / 255 - 0.5) / 0.5


def train(layers: int, residual: bool, seed: int, data: rj.Dataset, test: ArraySplit) -> float:
    torch.manual_seed(seed)
    model = resnet(1, 10, layers=layers, residual=residual, stem_bias=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=BOOK.optim.learning_rate)
    images, labels = as_input(data.train.images), torch.from_numpy(data.train.labels).long()
    sampler = EpochSampler(len(data.train), BOOK.batch_size, seed)
    for step in range(sampler.steps(BOOK.epochs)):
        indices = torch.from_numpy(sampler.batch(step)).long()
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices]), labels[indices]).backward()
        optimizer.step()
    return accuracy(model, as_input(test.images).split(500), test.labels)


def main() -> None:
    whole = load_dataset("mnist")
    train, validation, test = BOOK.data.subset
    data = sample(whole, train=train, validation=validation, test=test, seed=BOOK.data.subset_seed)
    done = read_rows(RESULTS)
    for layers, seed, residual in product(UNITS, range(10), (True, False)):
        what = {"layers": layers, "residual": residual, "seed": seed}
        if any(what.items() <= row.items() for row in done):
            continue
        row = {**what, "accuracy": train(layers, residual, seed, data, whole.test)}
        append_row(RESULTS, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
