"""Results on any number of virtual devices, to be compared with each other.

``python on_devices.py numbers|communication|platforms FOLDER`` prints what was found as JSON, and
keeps its runs in FOLDER. `test_devices.py` says what must hold.
"""

import dataclasses
import json
import math
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import worker
from flax import traverse_util

import resnet_jax as rj
from resnet_jax.models import make_model
from resnet_jax.training.engine import Engine

IMAGES = 120
CONFIG = rj.TrainConfig(
    model=rj.ModelConfig(width=4, lowering="reference"),
    data=rj.DataConfig(name="mnist_5k", subset=(IMAGES, 50, 30)),
    augment=rj.AugmentConfig(shift=2, rotation=10),
    optim=rj.OptimConfig(learning_rate=0.05),
    batch_size=16,
    log_every=1,
    ema=0.9,
)


def config(steps: int, accumulate: int = 1, **model: Any) -> rj.TrainConfig:
    return dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, **model),
        epochs=(steps - 0.5) * CONFIG.batch_size / IMAGES,
        accumulate=accumulate,
    )


def trained(settings: rj.TrainConfig, run_dir: Path) -> dict[str, Any]:
    """Train; return the losses of the steps, and averaged parameters and statistics, as lists."""
    run = rj.train(settings, run_dir, quiet=True)
    metrics = run.metrics()
    variables = traverse_util.flatten_dict(jax.device_get(run.variables("latest")), sep="/")
    return {
        "losses": metrics[metrics["kind"] == "train"]["loss"].tolist(),
        "variables": {name: value.ravel().tolist() for name, value in variables.items()},
    }


def numbers(folder: Path) -> dict[str, Any]:
    """Return the results of this number of devices; one device trains what the others evaluate."""
    count, shared = jax.device_count(), folder / "evaluated"
    first = trained(config(8), shared)["losses"][:1] if count == 1 else []
    run, images = rj.Run.open(shared), rj.load_dataset("mnist_5k").test.images
    # `Run.variables` returns copies on one device; deleting them must not harm the run.
    handed_out = jax.tree.leaves(run.variables())
    assert {len(leaf.devices()) for leaf in handed_out} == {1}
    for leaf in handed_out:
        leaf.delete()
    found: dict[str, Any] = {
        "confusion": run.evaluate("test_all").confusion.tolist(),
        "probabilities": run.predict(images[:7]).tolist(),
    }
    if count == 3:
        try:
            rj.train(config(1), folder / "refused", quiet=True)
        except rj.ResNetJaxError as error:
            return found | {"refusal": str(error)}
    runs = {"float64": config(20, dtype="float64")}
    if count == 1:
        found["float32"] = {"losses": first}
    if count == 2:
        runs["float32"] = config(1)
    if count in (1, 8):
        runs["bfloat16"] = config(1, dtype="bfloat16")
        runs["parts"] = config(5, accumulate=2, dtype="float64")
    return found | {n: trained(c, folder / f"{n}-on-{count}") for n, c in runs.items()}


def communication(folder: Path) -> dict[str, Any]:
    """Return what XLA made of a run's programs, from the texts that it dumps into the folder."""
    found = {}
    for name, settings in {
        "auto": config(1, lowering="auto"),
        "reference": config(1),
        "parts": config(1, accumulate=2),
    }.items():
        before = set(folder.glob("*.txt"))
        run = rj.train(settings, folder / name, quiet=True)
        new = set(folder.glob("*after_optimizations.txt")) - before
        texts = {path.name: path.read_text() for path in new}
        (step,) = (text for program, text in texts.items() if "train" in program)
        found[name] = {
            "losses": run.metrics().query("kind == 'train'")["loss"].tolist(),
            "of_the_step": collectives([step]),
            "of_all": collectives(texts.values()),
            # The arrays of the state whose memory the step may reuse for its result.
            "donated": len(re.findall("(?:may|must)-alias", step.partition("\n")[0])),
            "arrays": 3 * len(jax.tree.leaves(run.variables("latest")["params"])),
            "largest_parameter": max(a.size for a in jax.tree.leaves(run.variables("latest"))),
        }
    return found


def collectives(texts: Any) -> dict[str, Any]:
    """Return the kinds of collectives in compiled programs, and the largest array they move."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = [
        pair for text in texts for pair in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
    ]
    shapes = re.findall(r"\w\d+\[([\d,]*)\]", " ".join(shape for shape, _ in found))
    sizes = [math.prod(map(int, shape.split(","))) if shape else 1 for shape in shapes]
    return {"kinds": sorted({kind for _, kind in found}), "largest": max(sizes, default=0)}


def platforms(folder: Path) -> dict[str, Any]:
    """Export the train step of full-width networks, also for platforms that are not here."""
    found, key, image = {}, jax.random.key(0), jnp.zeros((1, 28, 28, 1))
    for name, count in (("resnet18", 8), ("resnet50", 1)):
        settings = dataclasses.replace(CONFIG, model=rj.ModelConfig(name))
        engine = Engine(settings, tuple("0123456789"), (28, 28, 1), jax.devices()[:count])
        create = partial(rj.TrainState.create, make_model(settings, 10), optax.sgd(0.1), ema=True)
        examples = jax.ShapeDtypeStruct((16, 28, 28, 1), "u1"), jax.ShapeDtypeStruct((16,), "i4")
        export = jax.export.export(engine._train, platforms=("cpu", "cuda", "tpu"))
        exported = export(jax.eval_shape(create, key, image), key, rj.Batch(*examples))
        found[name] = {"platforms": exported.platforms, "devices": exported.nr_devices}
    return found


if __name__ == "__main__":
    what = {"numbers": numbers, "communication": communication, "platforms": platforms}
    if sys.argv[1] != "platforms":
        worker.shrink((1, 1))  # one identity shortcut, and one projection
    print(json.dumps(what[sys.argv[1]](Path(sys.argv[2]))))
