"""ResNet in PyTorch, layer for layer the network of this package, for the comparisons."""

import torch
from torch import nn


class Pad(nn.Module):
    """Shortcut of option A (arXiv 1512.03385, section 4.1): fewer pixels, zeros as new features."""

    def __init__(self, features: int, stride: int) -> None:
        super().__init__()
        self.features, self.stride = features, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new = self.features - x.shape[1]
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, new))


class Unit(nn.Module):
    """Basic unit: two 3x3 convolutions, and the shortcut unless it is a plain one."""

    def __init__(
        self, inputs: int, features: int, stride: int, residual: bool, pad: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.residual = residual
        self.shortcut: nn.Module = nn.Identity()
        if pad:
            self.shortcut = Pad(features, stride)
        elif residual and (stride != 1 or inputs != features):
            projection = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(features))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu(y + self.shortcut(x) if self.residual else y)


def resnet(
    channels: int,
    num_classes: int,
    width: int = 64,
    stem: str = "imagenet",
    *,
    stages: tuple[int, ...] = (2, 2, 2, 2),
    residual: bool = True,
    stem_bias: bool = False,
    pad: bool = False,
) -> nn.Sequential:
    """float[N, channels, H, W] -> float[N, num_classes]."""
    kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
    first = nn.Conv2d(channels, width, kernel, stride, padding, bias=stem_bias)
    parts: list[nn.Module] = [first, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    if stem == "imagenet":
        parts.append(nn.MaxPool2d(3, 2, 1))
    inputs = width
    for stage, units in enumerate(stages):
        for number in range(units):
            features = width * 2**stage
            parts.append(Unit(inputs, features, 2 if stage and not number else 1, residual, pad))
            inputs = features
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return nn.Sequential(*parts)
