"""Writes `torchvision_logits.npz`: torchvision's own logits, which the tests compare ours with.

Run where torchvision is installed, in an environment of its own (no resnet_jax needed):

    python -m venv /somewhere && /somewhere/bin/pip install torch==2.14.1 torchvision==0.29.1
    /somewhere/bin/python tests/interop/make_expectations.py

Weights come from `random_weights.py`; logits are computed in float64, in eval mode. Also compares
the tests' own torch network with torchvision's, and prints the parameter counts.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from random_weights import NUM_CLASSES, SIZES, digest, random_images, random_weights
from torch_twin import twin

EXPECTED = Path(__file__).with_name("torchvision_logits.npz")


def logits_of(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2)).double()).numpy()


def main() -> None:
    torch.set_num_threads(2)
    expected = {"versions": np.array([torch.__version__, torchvision.__version__])}
    for seed, name in enumerate(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")):
        count = sum(p.numel() for p in getattr(torchvision.models, name)().parameters())
        print(name, f"{count:,} parameters with 1000 classes")
        model = getattr(torchvision.models, name)(num_classes=NUM_CLASSES)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        weights = {k: torch.from_numpy(v) for k, v in random_weights(shapes, seed).items()}
        model.load_state_dict(weights)
        model.double().eval()
        written_here = twin(name, num_classes=NUM_CLASSES)
        written_here.load_state_dict(weights)
        written_here.double().eval()
        expected[f"{name} digest"] = np.array(digest(shapes))
        expected[f"{name} parameters"] = np.array(count)
        for height, width in SIZES:
            images = random_images((height, width))
            logits = logits_of(model, images)
            twins = logits_of(written_here, images)
            assert np.abs(logits - twins).max() <= 1e-12 * np.abs(logits).max()
            expected[f"{name} {height}x{width}"] = logits
            print(name, height, width, "largest logit", np.abs(logits).max())
    np.savez_compressed(EXPECTED, **expected)


if __name__ == "__main__":
    main()
