"""Pictures of digits on paper as a phone takes them.

No code is shared with `resnet_jax.data.digit`, which has to find the digit again.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PAPERS = ((248, 247, 242), (240, 224, 185), (196, 212, 232))
PENS = ((25, 25, 30), (25, 45, 130))
WIDTHS = (-1, 0, 1)  # thin, as written, thick
SIZES = (0.3, 0.45, 0.6, 0.8)  # of the shorter side
PLACES = ((0.5, 0.5), (0.35, 0.4), (0.6, 0.42), (0.45, 0.62))
WIDTH, HEIGHT = 640, 480


def photograph(digit: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Return an RGB photograph, in uneven light, of ``uint8[28, 28]`` (light ink on 0) on paper."""
    size = int(HEIGHT * rng.choice(SIZES))
    ink = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    ink = ink.filter(ImageFilter.GaussianBlur(size / 60)).point(lambda v: 255 * (v > 110))
    step = max(1, size // 80)
    if width := rng.choice(WIDTHS):
        rank = ImageFilter.MaxFilter if width > 0 else ImageFilter.MinFilter
        ink = ink.filter(rank(2 * step + 1))
    ink = ink.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    x, y = PLACES[rng.integers(len(PLACES))]
    mask = Image.new("L", (WIDTH, HEIGHT))
    left = int(np.clip(x * WIDTH - ink.width / 2, 4, max(4, WIDTH - ink.width - 4)))
    top = int(np.clip(y * HEIGHT - ink.height / 2, 4, max(4, HEIGHT - ink.height - 4)))
    mask.paste(ink, (left, top))
    alpha = np.asarray(mask, float)[..., None] / 255 * rng.uniform(0.75, 0.95)
    paper = np.array(PAPERS[rng.integers(len(PAPERS))], float)
    pen = np.array(PENS[rng.integers(len(PENS))], float)
    scene = paper * (1 - alpha) + pen * alpha
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    angle = rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * columns / WIDTH + np.sin(angle) * rows / HEIGHT + 1) / 2
    light = 1 - rng.uniform(0, 0.4) * along
    shadow = Image.new("L", (WIDTH, HEIGHT), 255)
    corner = rng.uniform(0, 1, 2) * (WIDTH, HEIGHT)
    far = [tuple(corner + rng.normal(0, 400, 2)) for _ in range(2)]
    ImageDraw.Draw(shadow).polygon([tuple(corner), *far], fill=int(rng.uniform(150, 230)))
    soft = shadow.filter(ImageFilter.GaussianBlur(rng.uniform(15, 40)))
    scene *= light[..., None] * np.asarray(soft, float)[..., None] / 255
    scene += rng.normal(0, rng.uniform(2, 8), scene.shape)
    picture = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(rng.integers(60, 95)))
    return Image.open(io.BytesIO(file.getvalue()))
