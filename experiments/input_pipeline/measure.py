"""Does reading from disk keep up with the training step, and does its memory stay flat?

Command:   python -m experiments.input_pipeline.measure     (four minutes)
Needs:     the full MNIST in TFDS_DATA_DIR, or it is downloaded; the script makes the JPEGs
Result:    results.json: images a second in five blocks of steps; resident memory while data of ten
           times the limit are read
"""

import dataclasses
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import resnet_jax as rj
from experiments import measuring
from experiments.scaling.decode import photograph
from experiments.tables import table
from resnet_jax.config import replaced
from resnet_jax.data.dataset import read_batches
from resnet_jax.data.load import load_dataset, load_splits
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.memory import restart_tuned
from resnet_jax.models import make_model
from resnet_jax.training.engine import Engine
from resnet_jax.training.jax_settings import configured_jax
from resnet_jax.training.optim import make_optimizer, make_schedule

RESULTS = Path(__file__).with_name("results.json")
BLOCKS, WARM = 5, 2  # measured blocks, and unmeasured ones before them
JPEGS = 1000
LIMIT = 0.1  # in the memory run, as a share of the size of the decoded images

IMAGENET = rj.PRESETS["imagenet"]
JPEG = replaced(
    rj.TrainConfig(data=IMAGENET.data, augment=IMAGENET.augment, batch_size=16),
    {"data.name": "folder", "data.read-size": None, "data.center-crop": False},
)
# Title, settings, and batches in a block of the pipeline alone; blocks with the step have a tenth.
CASES: dict[str, tuple[str, rj.TrainConfig, int]] = {
    "mnist": ("MNIST, preset `mnist`: ResNet-18 at 32x32, batch 64", rj.PRESETS["mnist"], 100),
    "jpeg_resnet18": (
        "224x224 JPEG, ResNet-18 with the augmentation of `imagenet`, batch 16", JPEG, 10
    ),
    "jpeg_resnet50": (
        "224x224 JPEG, ResNet-50 with the same augmentation, batch 16",
        dataclasses.replace(JPEG, model=IMAGENET.model), 10,
    ),
}  # fmt: skip


def images_a_second(
    steps: dict[str, Callable[[], object]], count: int, images: int
) -> dict[str, list[float]]:
    seconds = measuring.in_turns(steps, BLOCKS, times=count, warm_rounds=WARM)
    of_blocks = {name: np.reshape(s, (BLOCKS, count)).sum(1) for name, s in seconds.items()}
    return {name: (count * images / s).tolist() for name, s in of_blocks.items()}


def rates(config: rj.TrainConfig, count: int) -> dict[str, list[float]]:
    """Measure images a second of the pipeline, of the step on images in memory, and of both."""
    size, splits = config.batch_size, {}
    for how in ("never", "always"):
        dataset, of_run = load_splits(dataclasses.replace(config.data, streaming=how))
        splits[how] = of_run["train"]
    order = EpochSampler(len(dataset.train), size, seed=0)
    batches = read_batches(splits["always"], map(order.batch, itertools.count()))
    found = images_a_second({"pipeline": partial(next, batches)}, count, size)
    batches.close()
    engine = Engine(config, dataset.class_names, dataset.image_shape)
    params_key, augment_key = jax.random.split(jax.random.key(0))
    tx = make_optimizer(config.optim, make_schedule(config.optim, 1000))
    model, images = make_model(config, dataset.num_classes), jnp.zeros((1, *dataset.image_shape))
    averages = config.ema is not None
    state = engine.replicate(rj.TrainState.create(model, tx, params_key, images, ema=averages))

    def train(batches: Iterator[rj.Batch]) -> None:
        nonlocal state
        state, metrics = engine.train(state, augment_key, next(batches))
        metrics.loss.block_until_ready()

    steps = {
        name: partial(train, engine.batches(splits[how], map(order.batch, itertools.count())))
        for name, how in (("step", "never"), ("together", "always"))
    }
    return found | images_a_second(steps, count // 10, size)


def memory(folder: str) -> dict[str, float]:
    """Measure resident memory over two epochs, in MiB; to be called in a process of its own."""
    gigabytes = JPEGS * 224 * 224 * 3 / 2**30
    limit = LIMIT * gigabytes
    data = load_dataset("folder", folder, size=224, streaming="auto", memory_limit=limit)
    sampler = EpochSampler(len(data.train), 16, seed=0)
    steps = sampler.steps(2)
    resident = []
    for _ in read_batches(data.train, map(sampler.batch, range(steps))):
        resident.append(measuring.resident_mib("VmRSS"))
    quarter = steps // 4
    return {
        "decoded": gigabytes * 1024,
        "limit": limit * 1024,
        "first_quarter": max(resident[:quarter]),
        "last_quarter": max(resident[-quarter:]),
    }


def measure(folder: Path) -> None:
    for number in range(JPEGS):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        (place / f"{number}.jpg").write_bytes(photograph(number, 224, 224))
    used, measured = measuring.in_process("input_pipeline.measure", "memory", str(folder)), {}
    for name, (_, config, count) in CASES.items():
        if config.data.name == "folder":
            config = replaced(config, {"data.dir": str(folder)})
        with configured_jax(config):
            measured[name] = rates(config, count)
        print(name, {k: round(statistics.median(v), 1) for k, v in measured[name].items()})
    where = measuring.machine("jax", "pillow")
    measuring.write_json(RESULTS, {"machine": where, "memory": used, "rates": measured})


def table_of_rates() -> str:
    lines, rates = [], measuring.read_json(RESULTS)["rates"]
    for name, (title, *_) in CASES.items():
        kinds = [
            statistics.quantiles(rates[name][k], n=4) for k in ("pipeline", "step", "together")
        ]
        texts = ([f"{v:,.{0 if three[1] > 100 else 1}f}" for v in three] for three in kinds)
        cells = [f"{middle} ({low} to {high})" for low, middle, high in texts]
        lines.append([title, *cells, f"{kinds[2][1] / kinds[1][1]:.2f}"])
    head = ["images/s, median (quartiles)", "pipeline alone", "step alone", "both", "both / step"]
    return table(head, lines)


def table_of_memory() -> str:
    used = measuring.read_json(RESULTS)["memory"]
    titles = {
        "decoded": f"{JPEGS:,} images, decoded",
        "limit": "`--data.memory-limit`",
        "first_quarter": "the process at most, first quarter of two epochs",
        "last_quarter": "the process at most, last quarter",
    }
    return table(["MiB", ""], [[title, f"{used[key]:.0f}"] for key, title in titles.items()])


def where() -> str:
    return measuring.place(measuring.read_json(RESULTS)["machine"])


if __name__ == "__main__":
    restart_tuned()
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(scratch))
