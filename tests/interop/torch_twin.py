"""The package's networks in torch, written out here so that nothing needs torchvision.

Tests compare forward passes and training with them, and experiments train and time them. Names,
mathematics and in-place ReLUs are torchvision's; `make_expectations.py` compares the logits.
"""

from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

SIZES = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


class Unit(nn.Module):
    def __init__(self, channels, features, stride, bottleneck, residual=True, pad=False):
        super().__init__()
        out = features * 4 if bottleneck else features
        layout = ((1, features), (3, features), (1, out)) if bottleneck else ((3, out), (3, out))
        self.layers, self.residual, before = len(layout), residual, channels
        for number, (side, width) in enumerate(layout, start=1):
            step = stride if number == self.layers - 1 else 1
            conv = nn.Conv2d(before, width, side, step, side // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
            before = width
        self.downsample = None
        if pad:  # option A of the paper: every second pixel, zeros for the new channels
            zeros = (0, 0, 0, 0, 0, out - channels)
            self.downsample = lambda x: F.pad(x[:, :, ::stride, ::stride], zeros)
        elif residual and (stride != 1 or channels != out):
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for number in range(1, self.layers + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.layers:
                y = F.relu(y, inplace=True)
        if self.residual:
            y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """float[N, channels, H, W] -> float[N, num_classes]; as in table 1 of the paper by default.

    With three stages, the small stem and ``pad`` it is the network of the paper's section 4.2.
    """

    def __init__(
        self, sizes, bottleneck=False, num_classes=10, width=64, channels=3, residual=True,
        stem="imagenet", stem_bias=False, pad=False,
    ):  # fmt: skip
        super().__init__()
        side, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(channels, width, side, stride, side // 2, bias=stem_bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.pools = stem == "imagenet"
        before, self.stages = width, len(sizes)
        for stage, size in enumerate(sizes):
            units = []
            for index in range(size):
                stride = 2 if stage and not index else 1
                units.append(Unit(before, width * 2**stage, stride, bottleneck, residual, pad))
                before = width * 2**stage * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*units))
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1) if self.pools else x
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def twin(name, **options):
    """Return the twin of one of the networks in `SIZES`."""
    return ResNet(SIZES[name], bottleneck=int(name.removeprefix("resnet")) >= 50, **options)


def sgd(model, settings):
    """Return SGD with the settings of an `OptimConfig`; only kernels have weight decay."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others}]
    return SGD(groups, settings.learning_rate, settings.momentum, nesterov=settings.nesterov)


class BookUnit(nn.Module):
    """The book's residual unit, which projects where the number of channels changes."""

    def __init__(self, channels, features, stride=1, use_residual=True):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        if channels != features:
            self.shortcut = nn.Conv2d(channels, features, 1, stride, bias=False)
            self.bn3 = nn.BatchNorm2d(features)
        self.use_residual = use_residual

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.use_residual:
            y = y + (self.bn3(self.shortcut(x)) if hasattr(self, "shortcut") else x)
        return F.relu(y)


class BookNet(nn.Module):
    """The network of NNDL: Practice, 5.4: its stem has a bias, a plain one has unused shortcuts."""

    def __init__(self, channels=1, num_classes=10, width=64, use_residual=True):
        super().__init__()
        conv = nn.Conv2d(channels, width, 7, 2, 3)
        stem = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        stages, before = [], width
        for stage in range(4):
            features = width * 2**stage
            first = BookUnit(before, features, 2 if stage else 1, use_residual)
            stages.append(
                nn.Sequential(first, BookUnit(features, features, use_residual=use_residual))
            )
            before = features
        ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)
        self.net = nn.Sequential(stem, *stages, *ends)

    def forward(self, x):
        return self.net(x)
