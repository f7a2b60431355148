"""Train in PyTorch by a recipe of this package.

Command:   pip install torch==2.13.0; python -m experiments.pytorch PRESET [OPTIONS]
           with the options of `resnet-jax train`; `experiments.presets.measure` and
           `experiments.cifar10` run it
Result:    updates and test accuracy of the last parameters, as JSON

Images and their order, network, initialisation, loss, optimiser, learning rate by step, evaluations
and stop are the same; the layout is channels_last (experiments/cpu_speed compares the settings).
Padded crops with flips are PyTorch's own random draws. A recipe with more than this is refused.
"""

import json
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
import tyro

import resnet_jax as rj
from experiments.measuring import Row
from resnet_jax.config import differences
from resnet_jax.data.dataset import Split
from resnet_jax.data.load import load_splits
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.models import make_model
from resnet_jax.training.optim import make_schedule
from tests.interop.torch_twin import ResNet, sgd


def crops(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Crop padded images to their old size, each at a random place, and mirror half of them."""
    count, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    down, right = torch.randint(2 * pixels + 1, (2, count, 1), device=images.device)
    columns = right + torch.arange(width, device=images.device)
    mirrored = torch.rand(count, 1, device=images.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)[:, None]
    rows = (down + torch.arange(height, device=images.device))[:, :, None]
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows, columns].permute(0, 3, 1, 2)


SUPPORTED = """
    seed epochs batch-size label-smoothing target eval-every log-every tensorboard compilation-cache
    model.name model.width model.stem model.residual model.shortcut model.initializer
    augment.crop augment.flip
    optim.learning-rate optim.momentum optim.nesterov optim.weight-decay optim.schedule optim.warmup
    optim.boundaries matmul-precision model.lowering
"""


def check(config: rj.TrainConfig) -> None:
    """Exit with a message if a recipe has settings that are not implemented here."""
    changed = differences(rj.TrainConfig(), config)
    missing = [n for n in changed if n not in SUPPORTED.split() and not n.startswith("data.")]
    network, augment = make_model(config, 1), config.augment
    unlike = {
        "augment.flip": augment.flip != bool(augment.crop),
        "data.mean": config.data.mean is None,
        "data.image-size": config.data.image_size and (augment.crop or config.data.center_crop),
        "model.name": network.unit is not rj.BasicUnit,
        "model.shortcut": network.shortcut not in ("projection", "pad"),
        "model.stem": network.stem == "deep",
    }
    missing += [name for name, differs in unlike.items() if differs]
    if missing:
        sys.exit(f"not written in PyTorch here: {', '.join(f'--{name}' for name in missing)}")


def network(config: rj.TrainConfig, data: rj.Dataset) -> torch.nn.Module:
    ours, default = make_model(config, data.num_classes), config.model.initializer == "torch"
    model = ResNet(
        ours.stage_sizes, num_classes=data.num_classes, width=ours.width,
        channels=data.image_shape[-1], residual=ours.residual, stem=ours.stem, stem_bias=default,
        pad=ours.shortcut == "pad",
    )  # fmt: skip
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d) and not default:
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model


def train(config: rj.TrainConfig, data: rj.Dataset | None = None) -> Row:
    check(config)
    data, splits = load_splits(config.data, data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    model = network(config, data).to(device, memory_format=torch.channels_last)
    optimizer = sgd(model, config.optim)
    mean, std = (
        torch.tensor(v, device=device)[:, None, None] for v in (config.data.mean, config.data.std)
    )

    def as_input(images: np.ndarray, crop: int = 0) -> torch.Tensor:
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
        if size := config.data.image_size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        pixels = crops(pixels, crop) if crop else pixels
        return ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def accuracy(split: Split) -> float:
        model.eval()
        parts = np.array_split(np.arange(len(split)), math.ceil(len(split) / config.batch_size))
        right = 0
        for images, labels in map(split.batch, parts):
            with torch.inference_mode():
                right += int((model(as_input(images)).argmax(1).cpu().numpy() == labels).sum())
        model.train()
        return right / len(split)

    sampler = EpochSampler(len(data.train), config.batch_size, config.seed)
    total = sampler.steps(config.epochs)
    schedule = make_schedule(config.optim, total)
    rates = [float(schedule(step)) for step in range(total)]
    for step, rate in enumerate(rates):
        images, labels = data.train.batch(sampler.batch(step))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        logits, labels = model(as_input(images, config.augment.crop)), torch.from_numpy(labels)
        smoothing = config.label_smoothing
        F.cross_entropy(logits, labels.to(device).long(), label_smoothing=smoothing).backward()
        optimizer.step()
        evaluates = config.target and (step + 1) % (config.eval_every or sampler.steps(1)) == 0
        if evaluates and accuracy(data.validation) >= config.target:
            break
    tested = accuracy(splits.get("test_all", data.test))
    return {"step": step + 1, "accuracy": tested, "torch": torch.__version__}


def main(arguments: list[str]) -> Row:
    preset, *options = arguments
    return train(tyro.cli(rj.TrainConfig, args=options, default=rj.PRESETS[preset]))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
