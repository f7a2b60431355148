"""What is measured: the settings, the networks, and the list of runs, the most telling first."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import resnet_jax as rj
from resnet_jax.models import Affine, BatchNorm

Norm = Literal["batch", "none"]
# Units in each stage; a basic unit has two layers, the stem and the head are two more.
STAGE_SIZES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (6, 6, 6, 6)}


@dataclass(frozen=True)
class Network:
    """One architecture: all its runs share the compiled programs.

    Attributes:
        layers: convolutions and the head, without projections.
        residual: with shortcuts; without, a plain network.
        norm: batch norm, or its scale and bias alone.
        width: features of the stem and of the first stage.
    """

    layers: int
    residual: bool
    norm: Norm = "batch"
    width: int = 64

    def __str__(self) -> str:
        kind = "residual" if self.residual else "plain"
        return f"{kind}-{self.layers}" + ("" if self.norm == "batch" else "-without-norm")

    @property
    def units(self) -> list[str]:
        """Names of the units, in order."""
        sizes = enumerate(STAGE_SIZES[self.layers], 1)
        return [f"stage{s}_unit{u + 1}" for s, size in sizes for u in range(size)]

    @property
    def kernels(self) -> list[tuple[str, ...]]:
        """Paths of the layers that ``layers`` counts, from the image to the logits."""
        inner = [(unit, conv) for unit in self.units for conv in ("conv1", "conv2")]
        return [("stem", "conv"), *inner, ("head",)]

    def module(self, config: rj.TrainConfig) -> rj.ResNet:
        """The network as a Linen module."""
        return rj.ResNet(
            stage_sizes=STAGE_SIZES[self.layers],
            unit=rj.BasicUnit,
            width=self.width,
            residual=self.residual,
            norm=BatchNorm if self.norm == "batch" else Affine,
            initializer=config.model.initializer,
            lowering=config.model.lowering,
        )


def keeps_shape(unit: str) -> bool:
    """Whether a unit of that name has the identity for its shortcut, and no projection."""
    return unit.startswith("stage1_") or not unit.endswith("_unit1")


@dataclass(frozen=True)
class Run:
    """One training: what makes it different from all others.

    Attributes:
        setting: name of a row of `SETTINGS`, or of `QUICK_SETTINGS`.
        rate: the (highest) learning rate.
        seed: of the parameters and of the order of the images.
        removal: whether to measure what the trained network is without one of its units.
        quick: part of the miniature.
    """

    setting: str
    network: Network
    rate: float
    seed: int
    removal: bool = False
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.setting}/{self.network}/{self.rate:g}/seed{self.seed}"

    @property
    def key(self) -> dict[str, Any]:
        """What names the run in the results."""
        network = dataclasses.asdict(self.network)
        return {"setting": self.setting, **network, "rate": self.rate, "seed": self.seed}

    @property
    def config(self) -> rj.TrainConfig:
        """The setting, but for network, rate and seed."""
        return (QUICK_SETTINGS if self.quick else SETTINGS)[self.setting]

    @property
    def cost(self) -> float:
        """Seconds on two idle cores, roughly."""
        assert self.config.data.subset
        images, _, tested = self.config.data.subset
        passes = 3 * images * self.config.epochs + tested  # backward costs twice the way forward
        passes += 1000 * len(self.network.units) * self.removal
        return passes * self.network.layers * (self.network.width / 64) ** 2 * 2.8e-5


_BOOK = rj.PRESETS["book"]
SETTINGS: dict[str, rj.TrainConfig] = {
    # The preset, tested on all 10,000 images.
    "book": dataclasses.replace(
        _BOOK, data=dataclasses.replace(_BOOK.data, subset=(1000, 200, 10_000)), eval_every=8
    ),
    # More images, He's initialisation, momentum, and a rate that rises and falls.
    "stronger": dataclasses.replace(
        _BOOK,
        model=rj.ModelConfig(initializer="he"),
        data=dataclasses.replace(_BOOK.data, subset=(10_000, 400, 10_000)),
        optim=rj.OptimConfig(momentum=0.9, schedule="cosine", warmup=0.1),
        epochs=2,
        eval_every=32,
    ),
}
# Both in miniature: images that come with the packages, programs that compile fast.
QUICK_SETTINGS: dict[str, rj.TrainConfig] = {
    name: dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, lowering="reference"),
        data=dataclasses.replace(config.data, name="mnist_5k", subset=(320, 100, 400)),
        epochs=2,
        eval_every=5,
        batch_size=32,
    )
    for name, config in SETTINGS.items()
}
BOOK_RATES = (0.005, 0.01)
SWEEP_RATES = (0.001, 0.02, 0.05, 0.1)
STRONGER_RATE: dict[Norm, float] = {"batch": 0.02, "none": 0.005}


def runs() -> list[Run]:
    """The study, each run once, the most telling first."""
    return list(dict.fromkeys(_in_order()))


def _in_order() -> Iterator[Run]:
    stronger = partial(_grid, "stronger", seeds=range(3))
    yield from _grid("book", (18, 34), "batch", BOOK_RATES, range(5))
    yield from _grid("book", (50,), "batch", BOOK_RATES, range(5))
    yield from _grid("book", (18, 34), "batch", BOOK_RATES[:1], range(5, 10))
    norms: tuple[Norm, ...] = ("none", "batch")
    for norm in norms:
        yield from stronger((18, 34), norm, (STRONGER_RATE[norm],))
    yield from _grid("book", (18, 34), "batch", SWEEP_RATES, range(3), removal=0)
    yield from _grid("book", (18, 34, 50), "none", BOOK_RATES, range(5))
    for norm in reversed(norms):
        yield from stronger((50,), norm, (STRONGER_RATE[norm],))
    yield from _grid("book", (18,), "none", SWEEP_RATES, range(3), removal=0)


def quick_runs() -> list[Run]:
    """The same questions asked of networks of width 8 on a few images: numbers without meaning."""
    return list(dict.fromkeys(_quick_in_order()))


def _quick_in_order() -> Iterator[Run]:
    quick = partial(_grid, width=8, quick=True)
    yield from quick("book", (10, 18), "batch", BOOK_RATES, range(2), removal=1)
    yield from quick("book", (10,), "batch", SWEEP_RATES, range(2), removal=0)
    yield from quick("stronger", (10,), "batch", (STRONGER_RATE["batch"],), range(1), removal=1)
    yield from quick("book", (10,), "none", BOOK_RATES, range(2), removal=1)
    yield from quick("stronger", (10,), "none", (STRONGER_RATE["none"],), range(1), removal=1)


def _grid(
    setting: str,
    layers: tuple[int, ...],
    norm: Norm,
    rates: tuple[float, ...],
    seeds: range,
    *,
    removal: int = 3,
    width: int = 64,
    quick: bool = False,
) -> Iterator[Run]:
    """All combinations, network by network; ``removal``: how many seeds get that measurement."""
    for depth in layers:
        for residual in (True, False):
            network = Network(depth, residual, norm, width)
            for seed in seeds:
                for rate in rates:
                    yield Run(setting, network, rate, seed, removal=seed < removal, quick=quick)
