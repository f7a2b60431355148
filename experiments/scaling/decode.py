"""How many JPEGs a second does one core decode to arrays?

Command:   python -m experiments.scaling.decode    (10 seconds)
Result:    decode.json

The images have the size of ImageNet's: 500x375 pixels and about 110 kB.
"""

import io
import itertools
import statistics
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.measuring import in_turns, read_json, write_json
from resnet_jax.data.image import DecodeSpec, read_image

DECODE = Path(__file__).with_name("decode.json")
ROUNDS = 150


def photograph(seed: int, width: int = 500, height: int = 375) -> bytes:
    """Return a JPEG with detail at every scale, as photographs have."""
    generator = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0)
    for side in (3, 6, 12, 25, 50, 100, 200, 400):
        noise = generator.integers(0, 256, (side * height // width + 1, side, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        picture += (np.asarray(layer, np.float64) - 128) * 0.6 * side**-0.25
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def decoded_per_s() -> float:
    return read_json(DECODE)["images_per_s"]


def decoded() -> str:
    return f"{decoded_per_s():.0f} images/s"


if __name__ == "__main__":
    spec = DecodeSpec((224, 224, 3), "crop")
    files = [photograph(seed) for seed in range(16)]
    calls = {str(number): partial(read_image, file, spec) for number, file in enumerate(files)}
    seconds = in_turns(calls, ROUNDS)
    low, middle, high = statistics.quantiles(itertools.chain(*seconds.values()), n=4)
    rates = [round(1 / seconds, 1) for seconds in (middle, high, low)]
    write_json(DECODE, {"images_per_s": rates[0], "quartiles": rates[1:]})
