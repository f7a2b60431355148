"""How many JPEGs a second does one core make arrays of?

Command:   python -m experiments.scaling.decode    (10 seconds; wants an idle machine)
Result:    decode.json
Machine:   one of 2 cores of an AMD EPYC

The pictures have the size of ImageNet's (500x375 pixels and about 110 kB: 138 GB are 1,281,167
training images); the reading is the package's own, `read_image`: decode, crop, resize to 224x224.
"""

import io
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_jax.data.image import DecodeSpec, read_image

DECODE = Path(__file__).with_name("decode.json")
WIDTH, HEIGHT, QUALITY = 500, 375, 95
SECONDS = 8.0


def photograph(seed: int) -> bytes:
    """A JPEG with detail at every scale, as photographs have it."""
    generator = np.random.default_rng(seed)
    picture = np.full((HEIGHT, WIDTH, 3), 128.0)
    for side in (3, 6, 12, 25, 50, 100, 200, 400):
        noise = generator.integers(0, 256, (side * HEIGHT // WIDTH + 1, side, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture += (np.asarray(layer, np.float64) - 128) * 0.6 * side**-0.25
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def main() -> None:
    """Measures and writes."""
    spec = DecodeSpec((224, 224, 3), "crop")
    files = [photograph(seed) for seed in range(16)]
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for file in files:
            began = time.perf_counter()
            read_image(file, spec)
            times.append(time.perf_counter() - began)
    low, middle, high = statistics.quantiles(times, n=4)
    result = {
        "images_per_s": round(1 / middle, 1),
        "quartiles": [round(1 / high, 1), round(1 / low, 1)],
        "images": len(times),
        "bytes": round(statistics.mean(map(len, files))),
        "cores": os.cpu_count(),
    }
    DECODE.write_text(json.dumps(result) + "\n")
    print(result)


if __name__ == "__main__":
    main()
