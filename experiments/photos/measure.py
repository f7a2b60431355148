"""How many digits on paper does a run of MNIST recognise in a photograph?

    resnet-jax train mnist
    python experiments/photos/measure.py runs/mnist-seed0

Of 100 photographs made from test digits (`photograph.py`): on papers of three colours under
uneven light, by pens of three widths and two colours, turned by up to 10 degrees. Every setting
of the finder was chosen on photographs of training digits (``--split train``) and of strokes.
Expected: PLACEHOLDER
"""

import argparse
import json
from pathlib import Path

import numpy as np
from photograph import photograph
from PIL import Image, ImageOps

import resnet_jax as rj
from resnet_jax.data.digit import find_digit

HERE = Path(__file__).parent


def plain(picture: Image.Image) -> np.ndarray:
    """The picture as it is read without the finder, ``uint8[28, 28, 1]``."""
    return np.asarray(ImageOps.pad(picture.convert("L"), (28, 28)))[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write the row into results.json")
    arguments = parser.parse_args()
    run, rng = rj.Run.open(arguments.run), np.random.default_rng(arguments.seed)
    split = run.split(arguments.split)
    chosen = rng.choice(len(split), arguments.count, replace=False)
    images, labels = split.batch(chosen)
    photographs = [photograph(image[..., 0], rng) for image in images]
    ways = {
        "found": [find_digit(picture).image for picture in photographs],
        "as it is": [plain(picture) for picture in photographs],
        "inverted": [255 - plain(picture) for picture in photographs],
        "the digits themselves": list(images),
    }
    right = {way: run.predict(np.stack(read)).argmax(1) == labels for way, read in ways.items()}
    row = {
        "run": arguments.run.name,
        "split": arguments.split,
        "count": arguments.count,
        "seed": arguments.seed,
        "accuracy": {way: float(np.mean(hits)) for way, hits in right.items()},
    }
    print(json.dumps(row, indent=1))
    print("not recognised:", chosen[~right["found"]].tolist())
    if arguments.save:
        (HERE / "results.json").write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
