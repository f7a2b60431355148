"""Do our ResNet-18 and torchvision's give equal logits for the same weights (the book's 5.4.4)?

Command:   python -m experiments.residual_study.torchvision
Result:    torchvision.json

NumPy draws the weights and running statistics, so that both networks can have them without a
download. torchvision's logits are those that `tests/interop/make_expectations.py` stored.
"""

from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

import resnet_jax as rj
from experiments.measuring import Row, read_json, write_json
from experiments.tables import ROOT, table
from resnet_jax.interop import from_torchvision, to_torchvision
from resnet_jax.models import shapes_of
from tests.interop.random_weights import NUM_CLASSES, SIZES, random_images, random_weights

RESULTS = Path(__file__).with_name("torchvision.json")
SEED = 0  # of the weights that gave resnet18's stored logits


def compare() -> Row:
    stored = np.load(ROOT / "tests/interop/torchvision_logits.npz")
    model = rj.ResNet18(num_classes=NUM_CLASSES)
    zeros = {path: np.zeros(shape) for path, shape in shapes_of(model, (32, 32, 3)).items()}
    shapes = {name: value.shape for name, value in to_torchvision(unflatten_dict(zeros)).items()}
    variables = from_torchvision(random_weights(shapes, SEED))
    logits = jax.jit(lambda images: model.apply(variables, images, train=False))
    rows = []
    for size in SIZES:
        name = f"{size[0]}x{size[1]}"
        ours = np.asarray(logits(random_images(size)), np.float64)
        theirs = stored[f"resnet18 {name}"]
        rows.append(
            {
                "size": name,
                "ours": ours[0, :3].round(6).tolist(),
                "torchvision": theirs[0, :3].round(6).tolist(),
                "largest_difference": float(f"{np.abs(ours - theirs).max():.2g}"),
                "largest_logit": float(f"{np.abs(theirs).max():.4g}"),
                "same_class": bool((ours.argmax(1) == theirs.argmax(1)).all()),
            }
        )
    return {"torchvision": str(stored["versions"][1]), "rows": rows}


def relative(row: Row) -> str:
    return f"{row['largest_difference'] / row['largest_logit']:.1e}"


def table_of_torchvision() -> str:
    found = read_json(RESULTS)
    lines = []
    for row in found["rows"]:
        logits = [" ".join(f"{v:.5f}" for v in row[side]) for side in ("ours", "torchvision")]
        same = "yes" if row["same_class"] else "no"
        difference = f"{row['largest_difference']:.1e}"
        lines.append([row["size"], *logits, difference, relative(row), same])
    release = found["torchvision"].split("+")[0]
    head = ["image", "first logits, here (float32)", f"torchvision {release} (float64)"]
    return table([*head, "largest difference", "of the largest logit", "same class"], lines)


def torchvision_difference() -> str:
    return max(map(relative, read_json(RESULTS)["rows"]), key=float)


if __name__ == "__main__":
    with jax.default_matmul_precision("highest"):
        write_json(RESULTS, compare())
    print(table_of_torchvision())
