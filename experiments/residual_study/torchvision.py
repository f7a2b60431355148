"""Our ResNet-18 and torchvision's: the same weights, the same logits? (the book's section 5.4.4)

Command:   python -m experiments.residual_study.torchvision
Result:    torchvision.json; the largest difference is 6e-07 of the largest logit
Machine:   any

Weights are drawn by numpy, so that both can have them without a download, running statistics
included. torchvision's logits are computed here where torchvision is installed; elsewhere they are
those that `tests/interop/make_expectations.py` stored.
"""

import json
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np

import resnet_jax as rj
from experiments.measuring import Row
from experiments.tables import ROOT, table
from resnet_jax.interop import from_torchvision, to_torchvision
from tests.interop.random_weights import NUM_CLASSES, SIZES, random_images, random_weights

RESULTS = Path(__file__).with_name("torchvision.json")
SEED = 0  # of the stored weights of resnet18


def compare() -> Row:
    """Logits of the same images for several sizes."""
    stored = np.load(ROOT / "tests/interop/torchvision_logits.npz")
    model = rj.ResNet18(num_classes=NUM_CLASSES)
    images = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.jit(lambda k: model.init(k, images, train=False))(jax.random.key(0))
    shapes = {name: value.shape for name, value in to_torchvision(variables).items()}
    weights = random_weights(shapes, SEED)
    ours_of = jax.jit(lambda x: model.apply(from_torchvision(weights), x, train=False))
    fresh = find_spec("torchvision") is not None
    rows = []
    for size in SIZES:
        images = random_images(size)
        ours = np.asarray(ours_of(images), np.float64)
        key = f"resnet18 {size[0]}x{size[1]}"
        theirs = _torchvision(weights, images, NUM_CLASSES) if fresh else stored[key]
        rows.append(
            {
                "size": f"{size[0]}x{size[1]}",
                "ours": ours[0, :3].round(6).tolist(),
                "torchvision": theirs[0, :3].round(6).tolist(),
                "largest_difference": float(f"{np.abs(ours - theirs).max():.2g}"),
                "largest_logit": float(f"{np.abs(theirs).max():.4g}"),
                "same_class": bool((ours.argmax(1) == theirs.argmax(1)).all()),
            }
        )
    version = metadata.version("torchvision") if fresh else str(stored["versions"][1])
    return {"torchvision": version, "computed": "here" if fresh else "stored", "rows": rows}


def _torchvision(weights: dict[str, np.ndarray], images: np.ndarray, classes: int) -> np.ndarray:
    import torch
    import torchvision

    model = torchvision.models.resnet18(num_classes=classes)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    model.double().eval()
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2)).double()).numpy()


def table_of_torchvision() -> str:
    found = json.loads(RESULTS.read_text())
    lines = []
    for row in found["rows"]:
        logits = [" ".join(f"{v:.5f}" for v in row[side]) for side in ("ours", "torchvision")]
        relative = f"{row['largest_difference'] / row['largest_logit']:.1e}"
        same = "yes" if row["same_class"] else "no"
        lines.append([row["size"], *logits, f"{row['largest_difference']:.1e}", relative, same])
    release = found["torchvision"].split("+")[0]
    logits = ("first logits, here (float32)", f"torchvision {release} (float64)")
    return table(
        ["image", *logits, "largest difference", "of the largest logit", "same class"], lines
    )


def torchvision_difference() -> str:
    """The largest difference of logits, relative to the largest logit of an image's size."""
    rows = json.loads(RESULTS.read_text())["rows"]
    return f"{max(row['largest_difference'] / row['largest_logit'] for row in rows):.1e}"


def values() -> dict:
    functions = (table_of_torchvision, torchvision_difference)
    return {function.__name__: function for function in functions}


if __name__ == "__main__":
    RESULTS.write_text(json.dumps(compare(), indent=1) + "\n")
    print(table_of_torchvision())
