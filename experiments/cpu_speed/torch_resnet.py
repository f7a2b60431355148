"""ResNet-18 in PyTorch, layer for layer the network of this package, for the comparison."""

import torch
from torch import nn


class Unit(nn.Module):
    """Basic unit: two 3x3 convolutions and the shortcut."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != features:
            projection = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(features))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


def resnet18(channels: int, num_classes: int, width: int, stem: str) -> nn.Sequential:
    """float[N, channels, H, W] -> float[N, num_classes]."""
    if stem == "imagenet":
        first = [nn.Conv2d(channels, width, 7, 2, 3, bias=False)]
    else:
        first = [nn.Conv2d(channels, width, 3, 1, 1, bias=False)]
    layers: list[nn.Module] = [*first, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    if stem == "imagenet":
        layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = width
    for stage in range(4):
        for number in range(2):
            features = width * 2**stage
            layers.append(Unit(inputs, features, 2 if stage and not number else 1))
            inputs = features
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return nn.Sequential(*layers)
