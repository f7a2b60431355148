"""Does reading from disk keep up with the training step, and does its memory stay flat?

Command:   python experiments/input_pipeline/measure.py      (4 minutes; --report: the tables alone;
           --readers: only the threads beside Grain, which `pip install grain` brings)
           TFDS_DATA_DIR must hold the full MNIST, else it is downloaded; the JPEGs are made here.
Result:    results.json and the tables of README.md beside this file: images a second, median and
           quartiles over blocks of steps; resident memory while data ten times the limit are read
Machine:   written into results.json
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import resnet_jax as rj
from resnet_jax.data.dataset import ArraySplit, Split
from resnet_jax.data.load import load_dataset, load_splits
from resnet_jax.data.prefetch import read_batches
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.training.program import Program, configured_jax

HERE = Path(__file__).parent
BLOCKS, WARM = 5, 2  # measured, and not measured before them
JPEGS = 1000
LIMIT = 0.1  # of the decoded images, in the memory run
MIB = 2**20

JPEG = rj.TrainConfig(
    data=dataclasses.replace(
        rj.PRESETS["imagenet"].data, name="folder", read_size=None, center_crop=False
    ),
    augment=rj.PRESETS["imagenet"].augment,
    batch_size=16,
)
# Title, settings, and batches in a block: of the pipeline alone, and with the step.
CASES: dict[str, tuple[str, rj.TrainConfig, int, int]] = {
    "mnist": (
        "MNIST, preset `mnist`: ResNet-18 at 32x32, batch 64",
        rj.PRESETS["mnist"],
        100,
        10,
    ),
    "jpeg_resnet18": (
        "224x224 JPEG, ResNet-18 with the augmentation of `imagenet`, batch 16",
        JPEG,
        10,
        1,
    ),
    "jpeg_resnet50": (
        "224x224 JPEG, ResNet-50 with the same augmentation, batch 16",
        dataclasses.replace(JPEG, model=rj.PRESETS["imagenet"].model),
        10,
        1,
    ),
}


def make_jpegs(folder: Path) -> None:
    """Photograph-like files, 224x224 in two classes: coarse colours with fine grain, quality 90."""
    rng = np.random.default_rng(0)
    for number in range(JPEGS):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
        smooth = np.asarray(coarse.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.jpg", quality=90)


def images_a_second(step: Callable[[], None], steps: int, images: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * images / (time.perf_counter() - began)


def rates(config: rj.TrainConfig, alone: int, with_step: int) -> dict[str, list[float]]:
    """Images a second of the pipeline, of the step on images in memory, and of both together."""
    size = config.batch_size
    splits = {}
    for how in ("never", "always"):
        data = dataclasses.replace(config.data, streaming=how)
        dataset, of_run = load_splits(data)
        splits[how] = of_run["train"]
    sampler = EpochSampler(len(dataset.train), size, seed=0)
    program = Program(config, dataset.class_names, dataset.image_shape, total_steps=1000)
    blocks = range(BLOCKS + WARM)
    batches = read_batches(splits["always"], map(sampler.batch, itertools.count()))
    found = {"pipeline": [images_a_second(lambda: next(batches), alone, size) for _ in blocks]}
    batches.close()
    state = program.init()

    def training(batches: Iterator[tuple[jax.Array, jax.Array]]) -> float:
        def train() -> None:
            nonlocal state
            state, metrics = program.train(state, *next(batches))
            metrics.loss.block_until_ready()

        return images_a_second(train, with_step, size)

    held, streamed = (
        program.batches(splits[how], map(sampler.batch, itertools.count()))
        for how in ("never", "always")
    )
    # In turns, so that whatever else the machine does slows both.
    for _ in blocks:
        found.setdefault("step", []).append(training(held))
        found.setdefault("together", []).append(training(streamed))
    return {kind: measured[WARM:] for kind, measured in found.items()}


class Batches:
    """Whole batches as a random-access source of Grain."""

    def __init__(self, split: Split, sampler: EpochSampler, count: int) -> None:
        self.split, self.sampler, self.count = split, sampler, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self.split.batch(self.sampler.batch(step))


def readers(folder: Path) -> dict[str, list[float]]:
    """Images a second of the JPEGs read by the package's threads and by Grain, in turns."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read them
    split = load_dataset("folder", folder, size=224, streaming="always").train
    size, steps, cores = JPEG.batch_size, 60, os.cpu_count() or 1
    sampler = EpochSampler(len(split), size, seed=0)
    source = grain.MapDataset.source(Batches(split, sampler, 10**6))
    options = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=2 * cores)
    in_process = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    contenders = {
        "threads": read_batches(split, map(sampler.batch, itertools.count())),
        "grain_threads": iter(source.to_iter_dataset(options)),
        "grain_processes": iter(
            source.to_iter_dataset(in_process).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=cores, per_worker_buffer_size=2)
            )
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(BLOCKS + WARM):
        for name, batches in contenders.items():
            found[name].append(images_a_second(lambda b=batches: next(b), steps, size))
    return {name: measured[WARM:] for name, measured in found.items()}


def memory(folder: Path) -> dict[str, float]:
    """Resident memory over two epochs, in MiB; in a process of its own."""
    gigabytes = JPEGS * 224 * 224 * 3 / 2**30
    limit = LIMIT * gigabytes
    data = load_dataset("folder", folder, size=224, streaming="auto", memory_limit=limit)
    assert not isinstance(data.train, ArraySplit)
    sampler = EpochSampler(len(data.train), 16, seed=0)
    steps = sampler.steps(2)
    resident = []
    for _ in read_batches(data.train, map(sampler.batch, range(steps))):
        status = Path("/proc/self/status").read_text()
        resident.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    quarter = steps // 4
    return {
        "decoded": gigabytes * 1024,
        "limit": limit * 1024,
        "first_quarter": max(resident[:quarter]),
        "last_quarter": max(resident[-quarter:]),
    }


def measure() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_jpegs(folder)
        command = [sys.executable, __file__, "--memory", str(folder)]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, object] = {
            "machine": {
                "cores": os.cpu_count(),
                "processor": processor(),
                "platform": platform.platform(),
                "devices": [device.device_kind for device in jax.devices()],
                "versions": {name: metadata.version(name) for name in ("jax", "pillow")},
            },
            "memory": json.loads(child.stdout.splitlines()[-1]),
            "rates": (measured := {}),
        }
        for name, (_, config, alone, with_step) in CASES.items():
            if config.data.name == "folder":
                data = dataclasses.replace(config.data, dir=str(folder))
                config = dataclasses.replace(config, data=data)
            with configured_jax(config):
                measured[name] = rates(config, alone, with_step)
            print(name, {k: round(statistics.median(v), 1) for k, v in measured[name].items()})
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def tables(found: dict) -> dict[str, str]:
    """The tables of README.md by the names of their marks."""
    lines = [
        "| images/s, median (quartiles) | pipeline alone | step alone | both | both / step |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (title, *_) in CASES.items():
        of_case = found["rates"][name]
        cells = []
        for kind in ("pipeline", "step", "together"):
            low, middle, high = statistics.quantiles(of_case[kind], n=4)
            digits = 0 if middle > 100 else 1
            cells.append(f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})")
        ratio = statistics.median(of_case["together"]) / statistics.median(of_case["step"])
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio:.2f} |")
    machine, used = found["machine"], found["memory"]
    flat = [
        "| MiB | |",
        "| --- | --- |",
        f"| {JPEGS:,} images, decoded | {used['decoded']:.0f} |",
        f"| `--data.memory-limit` | {used['limit']:.1f} |",
        f"| the process at most, first quarter of two epochs | {used['first_quarter']:.0f} |",
        f"| the process at most, last quarter | {used['last_quarter']:.0f} |",
    ]
    where = f"{machine['cores']} cores of an {machine['processor']}"
    return {"rates": "\n".join(lines), "memory": "\n".join(flat), "machine": where}


def write_tables(page: Path) -> None:
    """Puts each table between its marks."""
    text = page.read_text()
    for name, table in tables(json.loads((HERE / "results.json").read_text())).items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        text = before + begin + table + "\n" + end + rest.split(end)[1]
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="only rewrite the tables")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--readers", action="store_true", help="only threads beside Grain")
    arguments = parser.parse_args()
    if arguments.readers:
        with tempfile.TemporaryDirectory() as scratch:
            make_jpegs(Path(scratch))
            for name, rates_of_reader in readers(Path(scratch)).items():
                low, middle, high = statistics.quantiles(rates_of_reader, n=4)
                print(f"{name}: {middle:,.0f} images/s ({low:,.0f} to {high:,.0f})")
        return
    if arguments.memory:
        print(json.dumps(memory(arguments.memory)))
        return
    if not arguments.report:
        measure()
    write_tables(HERE / "README.md")


if __name__ == "__main__":
    main()
