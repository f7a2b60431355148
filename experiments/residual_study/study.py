"""The settings, the networks, and the list of runs."""

import dataclasses
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import resnet_jax as rj
from resnet_jax.config import replaced
from resnet_jax.models import Affine, BatchNorm, make_model

RESULTS = Path(__file__).with_name("results.jsonl")
Norm = Literal["batch", "none"]
# Units in each stage; a basic unit has two layers, the stem and the head are two more.
STAGE_SIZES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (6, 6, 6, 6)}


def units_of(layers: int) -> list[str]:
    sizes = enumerate(STAGE_SIZES[layers], 1)
    return [f"stage{s}_unit{u + 1}" for s, size in sizes for u in range(size)]


def keeps_shape(unit: str) -> bool:
    """Return whether the unit of this name has the identity, not a projection, as its shortcut."""
    return unit.startswith("stage1_") or not unit.endswith("_unit1")


@dataclass(frozen=True)
class Run:
    """One training, by the settings that tell it from all others."""

    setting: str  # name of a row of `SETTINGS`
    layers: int  # convolutions and the head, without projections
    residual: bool  # with shortcuts
    norm: Norm  # "none" keeps its scale and bias alone
    width: int  # features of the stem and of the first stage
    rate: float  # the (highest) learning rate
    seed: int  # of the parameters and of the order of the images

    def __str__(self) -> str:
        kind = "residual" if self.residual else "plain"
        network = f"{kind}-{self.layers}" + ("" if self.norm == "batch" else "-without-norm")
        return f"{self.setting}/{network}/{self.rate:g}/seed{self.seed}"

    @property
    def units(self) -> list[str]:
        return units_of(self.layers)

    @property
    def kernels(self) -> list[tuple[str, ...]]:
        """Paths of the layers that ``layers`` counts, from the image to the logits."""
        inner = [(unit, conv) for unit in self.units for conv in ("conv1", "conv2")]
        return [("stem", "conv"), *inner, ("head",)]

    @property
    def without_units(self) -> bool:
        """Whether the trained network is also measured with each of its units left out."""
        swept = self.setting == "book" and self.rate in SWEEP_RATES
        return self.seed < 3 and not swept

    def module(self, config: rj.TrainConfig) -> rj.ResNet:
        norm = BatchNorm if self.norm == "batch" else Affine
        sizes, model = STAGE_SIZES[self.layers], make_model(config, num_classes=10)
        return model.clone(stage_sizes=sizes, width=self.width, residual=self.residual, norm=norm)


BOOK = rj.PRESETS["book"]
SETTINGS = {
    # The preset, tested on all 10,000 images.
    "book": replaced(BOOK, {"data.subset": (1000, 200, 10_000), "eval-every": 8}),
    # More images, He's initialisation, momentum, and a rate that rises and falls.
    "stronger": dataclasses.replace(
        replaced(BOOK, {"data.subset": (10_000, 400, 10_000), "eval-every": 32, "epochs": 2}),
        model=rj.ModelConfig(initializer="he"),
        optim=rj.OptimConfig(momentum=0.9, schedule="cosine", warmup=0.1),
    ),
}
# Both settings in miniature: images that come with the packages, programs that compile fast.
SMALL = {"data.name": "mnist_5k", "data.subset": (320, 100, 400), "model.lowering": "reference"}
SMALL |= {"epochs": 2, "eval-every": 5, "batch-size": 32}
QUICK_SETTINGS = {name: replaced(config, SMALL) for name, config in SETTINGS.items()}
BOOK_RATES = (0.005, 0.01)
SWEEP_RATES = (0.001, 0.02, 0.05, 0.1)
# Setting, layers, norm, rates and seeds.
Grid = tuple[str, tuple[int, ...], Norm, tuple[float, ...], range]
GRIDS: list[Grid] = [
    ("book", (18, 34, 50), "batch", BOOK_RATES, range(5)),
    ("book", (18, 34), "batch", BOOK_RATES[:1], range(5, 10)),
    ("stronger", (18, 34), "none", (0.005,), range(3)),
    ("stronger", (18, 34), "batch", (0.02,), range(3)),
    ("book", (18, 34), "batch", SWEEP_RATES, range(3)),
    ("book", (18, 34, 50), "none", BOOK_RATES, range(5)),
    ("stronger", (50,), "batch", (0.02,), range(3)),
    ("stronger", (50,), "none", (0.005,), range(3)),
    ("book", (18,), "none", SWEEP_RATES, range(3)),
]
# The same questions asked of small networks, on a few images: the numbers mean nothing.
QUICK_GRIDS: list[Grid] = [(s, (10,), norm, rates[:2], range(2)) for s, _, norm, rates, _ in GRIDS]


def runs(quick: bool = False) -> list[Run]:
    """Return the runs of the study, or of its miniature, each once, the most telling first."""
    found = (
        Run(setting, depth, residual, norm, 8 if quick else 64, rate, seed)
        for setting, layers, norm, rates, seeds in (QUICK_GRIDS if quick else GRIDS)
        for depth, residual, seed, rate in product(layers, (True, False), seeds, rates)
    )
    return list(dict.fromkeys(found))
