"""Strokes of a pen as an image of MNIST's kind: in a box of 20x20, centred by mass in 28x28."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from resnet_jax.data.digit import BOX, PEN, centre
from resnet_jax.errors import ResNetJaxError

OVERSAMPLING = 16
MAX_POINTS = 10_000


def parse_strokes(value: Any) -> list[np.ndarray]:
    """Check strokes that came as JSON: a list of strokes, each a list of points ``[x, y]``."""
    try:
        strokes = [np.asarray(stroke) for stroke in value]
        points = np.concatenate(strokes)
    except (TypeError, ValueError):  # no lists, or points of several lengths
        points = np.empty(0)
    whole = points.ndim == 2 and points.shape[1] == 2 and points.dtype.kind in "iuf"
    if not whole or len(points) > MAX_POINTS or not (abs(points.astype(float)) < 1e6).all():
        raise ResNetJaxError(
            f"strokes must be lists of [x, y] below 1e6, {MAX_POINTS:,} points at most"
        )
    return strokes


def draw(strokes: list[np.ndarray]) -> np.ndarray:
    """Draw strokes as ``uint8[28, 28]``, light ink on 0; their size and place do not matter."""
    points = np.concatenate(strokes)
    low, extent = points.min(axis=0), np.ptp(points, axis=0).max()
    # The ink reaches half a pen's width beyond the points. Dots alone have no size to scale.
    scale = (BOX - PEN) / extent if extent > 0 else 0.0
    radius = PEN / 2 * OVERSAMPLING
    picture = Image.new("L", (BOX * OVERSAMPLING, BOX * OVERSAMPLING))
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        # Pillow's coordinates are those of the pixels' centres.
        line = [tuple(xy) for xy in (stroke - low) * scale * OVERSAMPLING + radius - 0.5]
        pen.line(line, fill=255, width=round(2 * radius))
        for x, y in line:  # round ends and joints
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return centre(np.asarray(picture.reduce(OVERSAMPLING)))
