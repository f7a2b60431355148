"""Write `torchvision_logits.npz` and, for other networks of torchvision and timm,
`relatives_logits.npz`: the networks' own logits, with which the tests compare ours.

Run this where torchvision is installed, in an environment of its own (no resnet_jax needed):

    python -m venv /somewhere && /somewhere/bin/pip install torch==2.13.0 pyyaml safetensors
    /somewhere/bin/pip install --no-deps torchvision==0.28.0 timm==1.0.31 huggingface_hub
    /somewhere/bin/python tests/interop/make_expectations.py

Weights come from `random_weights.py`; logits are computed in float64, in eval mode. This also
compares the tests' own torch network with torchvision's, and prints the parameter counts.
"""

from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from random_weights import NUM_CLASSES, RELATIVES, SIZES, digest, random_images, random_weights
from torch_twin import twin

FOLDER = Path(__file__).parent
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def logits_of(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2)).double()).numpy()


def main() -> None:
    torch.set_num_threads(2)
    seeds = {name: seed for seed, name in enumerate((*RESNETS, *RELATIVES))}
    versions = [module.__version__ for module in (torch, torchvision, timm)]
    write("torchvision_logits", RESNETS, seeds, versions[:2])
    write("relatives_logits", RELATIVES, seeds, versions)


def write(file: str, names: tuple[str, ...], seeds: dict[str, int], versions: list[str]) -> None:
    expected = {"versions": np.array(versions)}
    for name in names:
        make = getattr(torchvision.models, name, None) or getattr(timm.models, name)
        count = sum(p.numel() for p in make().parameters())
        print(name, f"{count:,} parameters with 1000 classes")
        model = make(num_classes=NUM_CLASSES)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        weights = {k: torch.from_numpy(v) for k, v in random_weights(shapes, seeds[name]).items()}
        model.load_state_dict(weights)
        model.double().eval()
        expected[f"{name} digest"] = np.array(digest(shapes))
        expected[f"{name} parameters"] = np.array(count)
        written_here = twin(name, num_classes=NUM_CLASSES) if name in RESNETS else model
        written_here.load_state_dict(weights)
        written_here.double().eval()
        for height, width in SIZES if name in RESNETS else SIZES[1:2]:
            images = random_images((height, width))
            logits = logits_of(model, images)
            twins = logits_of(written_here, images)
            assert np.abs(logits - twins).max() <= 1e-12 * np.abs(logits).max()
            expected[f"{name} {height}x{width}"] = logits
            print(name, height, width, "largest logit", np.abs(logits).max())
    np.savez_compressed(FOLDER / f"{file}.npz", **expected)


if __name__ == "__main__":
    main()
