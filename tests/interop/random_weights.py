"""Weights that any NumPy draws alike, so that expected logits are stored without them."""

import hashlib
from collections.abc import Mapping

import numpy as np

SIZES = ((32, 32), (33, 47), (64, 64), (224, 224))
NUM_CLASSES = 100
# Networks of torchvision, then of timm.
RELATIVES = ("resnext50_32x4d", "wide_resnet50_2", "resnet26", "resnet18d", "resnet50d")


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return a float32 state_dict of these shapes, with random running statistics too.

    Arrays are drawn by sorted name, and scaled so that activations neither vanish nor explode.
    """
    random = np.random.RandomState(seed)
    weights = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        if name.endswith("num_batches_tracked"):
            weights[name] = np.zeros((), np.int64)
        elif len(shape) > 1:
            fan_in = np.prod(shape[1:])
            weights[name] = random.standard_normal(shape) * np.sqrt(1 / fan_in)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            weights[name] = random.uniform(0.5, 1.5, shape)
        else:
            weights[name] = random.standard_normal(shape) * 0.1
    return {n: w if w.dtype == np.int64 else w.astype(np.float32) for n, w in weights.items()}


def random_images(size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """Return two random images, ``float32[2, H, W, C]``."""
    return np.random.RandomState(sum(size)).standard_normal((2, *size, channels)).astype(np.float32)


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the SHA-256 of names and shapes."""
    lines = [f"{name} {list(shapes[name])}" for name in sorted(shapes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
