"""How many digits on paper does a run of MNIST recognise in a photograph?

Command:   python -m experiments.photos.measure RUN [--save]
Result:    results.json (with --save): how many of 100 photographs, drawn by a seed
"""

import json
from pathlib import Path

import numpy as np
from PIL import ImageOps
from tyro.conf import Positional

import resnet_jax as rj
from experiments.measuring import command, read_json, write_json
from experiments.photos.photograph import photograph
from experiments.tables import table
from resnet_jax.data.digit import find_digit

RESULTS = Path(__file__).with_name("results.json")
COUNT, SEED = 100, 0


def recognised() -> str:
    row = read_json(RESULTS)
    cells = [(name, f"{right} of {row['count']}") for name, right in row["right"].items()]
    return table(("what the network gets", f"right, by a run of `{row['preset']}`"), cells)


def main(run: Positional[Path], save: bool = False) -> None:
    """Count the digits that a run recognises; ``save`` writes the counts to results.json."""
    opened = rj.Run.open(run)
    rng, digits = np.random.default_rng(SEED), opened.split("test")
    images, labels = digits.batch(rng.choice(len(digits), COUNT, replace=False))
    photographs = [photograph(image[..., 0], rng) for image in images]
    # As the network would get them without the finder.
    whole = [np.asarray(ImageOps.pad(p.convert("L"), (28, 28)))[..., None] for p in photographs]
    ways = {
        "the digit is found": [find_digit(picture).image for picture in photographs],
        "the whole picture": whole,
        "the whole picture, inverted": [255 - picture for picture in whole],
        "MNIST's own image": list(images),
    }
    row = {"preset": opened.path.name, "split": "test", "count": COUNT, "seed": SEED}
    row["right"] = {
        name: int((opened.predict(np.stack(read)).argmax(1) == labels).sum())
        for name, read in ways.items()
    }
    print(json.dumps(row, indent=1))
    if save:
        write_json(RESULTS, row)


if __name__ == "__main__":
    command(main)
