"""Which saliency map means something on digits: Grad-CAM, Grad-CAM++ or LayerCAM, of which stage?

    resnet-jax train quickstart --run-dir runs/quickstart-seed0
    python -m experiments.saliency.measure runs/quickstart-seed0

For 200 test digits and the predicted class:

- *empty*: share of the maps that are zero everywhere, so that there is nothing to draw;
- *on ink*: share of the others whose peak is on the digit or next to it;
- *deletion*: mean probability of the class while the pixels are blackened, the map's highest
  first (arXiv 1806.07421): lower is better; *insertion*: the same while they are put in.

Empty maps take part in the curves with pixels in random order, the order that means nothing.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import maximum_filter

import resnet_jax as rj
from resnet_jax.inspection.saliency import forward, map_names

HERE = Path(__file__).parent
COUNT = 200
STEPS = 28  # of the curves, as many pixels each
METHODS = ("Grad-CAM", "Grad-CAM++", "LayerCAM")
PAGE = """# Which saliency map means something

*Written by `measure.py`, which says what is measured; not by hand.*

{count} test digits, one run of `quickstart` with {epochs} epochs (accuracy {accuracy:.1%}). The
largest insertion less deletion: **{best[method]} of {best[stage]}**, the default: the deepest stage
whose map is at least 7x7. A digit's ink is all that there is to delete, so that a map of the ink
alone would do well too; photographs were not measured.

| stage | map | method | empty | on ink | deletion | insertion |
| --- | --- | --- | --- | --- | --- | --- |
{lines}
"""


def maps_by_method(model, variables, stage: int, pixels: jax.Array) -> dict[str, jax.Array]:
    """Compute the three maps of a stage for the predicted classes, float32[N, h, w]."""

    def top_logits(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        passed = forward(model, variables, pixels, stage, shift)
        return passed.logits.max(-1).sum(), passed.maps[stage]

    shape = jax.eval_shape(partial(forward, model), variables, pixels).maps[stage].shape
    gradient, activation = jax.grad(top_logits, has_aux=True)(jnp.zeros(shape))
    positive = jax.nn.relu(gradient)
    # arXiv 1710.11063, equation 19, for the exponential of the logit.
    total = activation.sum((1, 2), keepdims=True)
    below = 2 * gradient**2 + total * gradient**3
    alpha = jnp.where(below != 0, gradient**2 / jnp.where(below != 0, below, 1), 0)
    weights = {
        "Grad-CAM": gradient.mean((1, 2), keepdims=True),
        "Grad-CAM++": (alpha * positive).sum((1, 2), keepdims=True),
        "LayerCAM": positive,  # doi 10.1109/TIP.2021.3089943, equation 3
    }
    return {name: jax.nn.relu((w * activation).sum(-1)) for name, w in weights.items()}


def main() -> None:
    run = rj.Run.open(sys.argv[1])
    images = run.split("test").images[:COUNT]
    pixels, variables, random = run.preprocess(images), run.variables(), np.random.default_rng(0)
    count, height, width, _ = images.shape
    everyone = np.arange(count)[:, None]
    classes = run.predict(images).argmax(-1)
    near_ink = maximum_filter(images[..., 0] > 64, size=(1, 3, 3)).reshape(count, -1)

    def curve(order: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
        """Return the mean probability while pixels of ``start`` become those of ``end``."""
        found, now = [], start.reshape(count, -1).copy()
        for part in np.array_split(order, STEPS, axis=1):
            now[everyone, part] = end.reshape(count, -1)[everyone, part]
            found.append(run.predict(now.reshape(images.shape))[everyone[:, 0], classes].mean())
        return round(float(np.mean(found)), 3)

    rows = []
    for stage, name in enumerate(map_names(run.model)[1:], start=1):
        maps = jax.jit(partial(maps_by_method, run.model), static_argnums=1)(
            variables, stage, pixels
        )
        for method in METHODS:
            enlarged = jax.image.resize(maps[method], (count, height, width), "bilinear")
            flat = np.asarray(enlarged).reshape(count, -1)
            drawn = flat.max(1) > 0
            # Where the map is flat, pixels come in random order.
            order = np.lexsort((random.random(flat.shape), -flat))
            rows.append(
                {
                    "stage": name,
                    "size": f"{maps[method].shape[1]}x{maps[method].shape[2]}",
                    "method": method,
                    "empty": round(float(1 - drawn.mean()), 3),
                    "on_ink": round(float(near_ink[everyone, order[:, :1]][drawn].mean()), 3),
                    "deletion": curve(order, images, np.zeros_like(images)),
                    "insertion": curve(order, np.zeros_like(images), images),
                }
            )
            print(rows[-1], flush=True)
    order = random.random((count, height * width)).argsort(1)
    rows.append(
        {
            "stage": "-",
            "size": "-",
            "method": "random order",
            "empty": 0.0,
            "on_ink": round(float(near_ink.mean()), 3),
            "deletion": curve(order, images, np.zeros_like(images)),
            "insertion": curve(order, np.zeros_like(images), images),
        }
    )
    facts = {"accuracy": run.evaluate("test").accuracy, "epochs": run.config.epochs}
    (HERE / "results.json").write_text(json.dumps({"rows": rows, **facts}, indent=1) + "\n")
    write_page({"rows": rows, **facts})


def write_page(results: dict) -> None:
    named = [row for row in results["rows"] if row["method"] in METHODS]
    best = max(named, key=lambda row: row["insertion"] - row["deletion"])
    lines = [f"| {' | '.join(map(str, row.values()))} |" for row in results["rows"]]
    page = PAGE.format(**results, lines="\n".join(lines), count=COUNT, best=best)
    (HERE / "README.md").write_text(page)


if __name__ == "__main__":
    main()
