"""Which saliency map means something, on digits and on photographs?

Command:   python -m experiments.saliency.measure RUN [RUN] [--cifar10 FOLDER]
           python -m experiments.tables
Needs:     runs of `quickstart` or `mnist` and of `folder` (or of experiments/cifar10, together with
           its FOLDER of images), with test images
Result:    results.json, in half an hour on 2 cores for two runs; README.md says what is measured
"""

from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import maximum_filter
from tyro.conf import Positional

import resnet_jax as rj
from experiments.cifar10.__main__ import load
from experiments.measuring import Row, command, read_json, write_json
from experiments.tables import table
from resnet_jax.inspection import grad_cam
from resnet_jax.inspection.saliency import DEFAULT_METHOD, Method, default_stage, forward

RESULTS = Path(__file__).with_name("results.json")
STEPS = 28  # of each curve; all steps change equally many pixels
BATCH = 50  # images explained at a time
SAMPLES = 32  # noisy images of integrated gradients


def maps_by_method(model, stage: int, variables, pixels: jax.Array) -> dict[str, Any]:
    """Compute the three maps of a stage for the predicted classes, float32[N, h, w]."""
    maps = {m: grad_cam(model, variables, pixels, stage=stage, method=m) for m in get_args(Method)}

    def top_logits(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        passed = forward(model, variables, pixels, stage, shift)
        return passed.logits.max(-1).sum(), passed.maps[f"stage{stage}"]

    nothing = jnp.zeros_like(forward(model, variables, pixels).maps[f"stage{stage}"])
    gradient, activation = jax.grad(top_logits, has_aux=True)(nothing)
    # doi 10.1109/TIP.2021.3089943, equation 3
    maps["layer-cam"] = jax.nn.relu((jax.nn.relu(gradient) * activation).sum(-1))
    return maps


def smoothed_integrated_gradients(model, blank, variables, pixels: jax.Array) -> dict[str, Any]:
    """Integrate gradients (arXiv 1703.01365) up to noisy images (1706.03825): float32[N, h, w].

    Each of ``SAMPLES`` ways from ``blank`` to a noisy image takes the gradient at a random place.
    """
    classes = model.apply(variables, pixels, train=False).argmax(-1)[:, None]
    noise = 0.15 * jnp.ptp(pixels, (1, 2, 3), keepdims=True)

    def logits(images: jax.Array) -> jax.Array:
        found = model.apply(variables, images, train=False)
        return jnp.take_along_axis(found, classes, 1).sum()

    def one_way(key: jax.Array) -> jax.Array:
        end, place = jax.random.split(key)
        way = pixels + noise * jax.random.normal(end, pixels.shape) - blank
        share = jax.random.uniform(place, (len(pixels), 1, 1, 1))
        return way * jax.grad(logits)(blank + share * way)

    ways = jax.lax.map(one_way, jax.random.split(jax.random.key(0), SAMPLES))
    return {"smoothed integrated gradients": jax.nn.relu(ways.mean(0).sum(-1))}


def measure(run: rj.Run, most: int) -> tuple[Row, list[Row]]:
    rng, test = np.random.default_rng(0), run.split("test")
    images, _ = test.batch(np.sort(rng.permutation(len(test))[:most]))
    count, height, width, channels = images.shape
    everyone, grey = np.arange(count)[:, None], channels == 1
    classes = run.predict(images).argmax(-1)
    blank = np.broadcast_to(0 if grey else images.mean((0, 1, 2)), images.shape).astype(np.uint8)
    near_ink = maximum_filter(images[..., 0] > 64, size=(1, 3, 3)).reshape(count, -1)

    def curve(order: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
        """Return the mean probability while pixels of ``start`` become those of ``end``."""
        found, now = [], start.reshape(count, -1, channels).copy()
        for part in np.array_split(order, STEPS, axis=1):
            now[everyone, part] = end.reshape(now.shape)[everyone, part]
            found.append(run.predict(now.reshape(images.shape))[everyone[:, 0], classes].mean())
        return round(float(np.mean(found)), 3)

    def row(stage: str, method: str, maps: np.ndarray) -> Row:
        enlarged = jax.image.resize(maps, (count, height, width), "bilinear")
        flat = np.asarray(enlarged).reshape(count, -1)
        drawn = flat.max(1) > 0
        # Where the map is flat, pixels come in random order.
        order = np.lexsort((rng.random(flat.shape), -flat))
        peaks = near_ink[everyone, order[:, :1]][drawn]
        deletion, insertion = curve(order, images, blank), curve(order, blank, images)
        found = {"run": run.path.name, "stage": stage, "map": "x".join(map(str, maps.shape[1:]))}
        found |= {"method": method, "empty": round(float(1 - drawn.mean()), 3)}
        found |= {"on ink": round(float(peaks.mean()), 3) if grey else "-"}
        found |= {"deletion": deletion, "insertion": insertion}
        found["difference"] = round(insertion - deletion, 3)
        print(found, flush=True)
        return found

    variables, pixels = run.variables(), run.preprocess(images)
    stages = range(1, len(run.model.stage_sizes) + 1)
    ways = [(f"stage{k}", partial(maps_by_method, run.model, k)) for k in stages]
    empty = run.preprocess(blank[:1])
    ways.append(("input", partial(smoothed_integrated_gradients, run.model, empty)))
    rows = []
    for name, way in ways:
        parts = np.array_split(pixels, -(-count // BATCH))
        found = [jax.device_get(jax.jit(way)(variables, part)) for part in parts]
        for method in found[0]:
            whole = np.concatenate([maps[method] for maps in found])
            rows.append(row(name, method, run.preprocessing.uncrop(whole)))
    facts = facts_of(run, images, pixels, rows)
    # Baselines without a network: the distance to the deleted colour, and a random order.
    far = np.abs(images.astype(np.float32) - blank).mean(-1)
    rows.append(row("-", "the image itself", far))
    rows.append(row("-", "random order", np.ones_like(far)))
    return facts, rows


def facts_of(run: rj.Run, images: np.ndarray, pixels: jax.Array, rows: list[Row]) -> Row:
    """Return facts of the run, and the difference of its default map beside the largest ones."""
    shapes = jax.eval_shape(partial(forward, run.model), run.variables(), pixels).maps
    differences = {f"{r['method']} of {r['stage']}": r["difference"] for r in rows}
    ranked = sorted(differences, key=differences.__getitem__, reverse=True)
    named = {"best": ranked[0], "best of a stage": next(n for n in ranked if "of stage" in n)}
    named["default"] = f"{DEFAULT_METHOD} of stage{default_stage(shapes)}"
    return {
        "run": run.path.name,
        "network": f"{run.model_name} at {pixels.shape[1]}x{pixels.shape[2]}",
        "epochs": f"{run.config.epochs:g}",
        "accuracy": round(run.evaluate("test").accuracy, 4),
        "images": len(images),
        "deleted pixels are": "black" if images.shape[-1] == 1 else "the mean colour",
        **{what: f"{name}: {differences[name]}" for what, name in named.items()},
    }


def table_of(part: str) -> str:
    rows = read_json(RESULTS)[part]
    return table(rows[0], [row.values() for row in rows])


def main(
    first: Positional[Path],
    others: Positional[tuple[Path, ...]] = (),
    cifar10: Path | None = None,
    count: int = 500,
) -> None:
    """Measure runs on ``count`` images; ``cifar10``: the images of runs of experiments/cifar10."""
    results: Row = read_json(RESULTS, missing={"runs": [], "maps": []})
    for path in (first, *others):
        run = rj.Run.open(path)
        if cifar10 and run.config.data.name.startswith("cifar10"):
            run = rj.Run.open(path, data=load(cifar10, quick=False))
        with run.jax_settings():
            facts, rows = measure(run, count)
        for part, new in {"runs": [facts], "maps": rows}.items():
            results[part] = [r for r in results[part] if r["run"] != run.path.name] + new
        write_json(RESULTS, results)


if __name__ == "__main__":
    command(main)
