"""Strokes of a pen, turned into an image as MNIST's digits were.

MNIST's authors scaled each digit into a box of 20x20 pixels with its proportions kept, which made
its edges grey, and moved it so that its centre of mass is in the middle of 28x28 pixels
(http://yann.lecun.com/exdb/mnist). A network that learnt such digits expects them.
"""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from resnet_jax.errors import ResNetJaxError

SIDE = 28
BOX = 20
# Pixels; the median width of the strokes of MNIST's digits.
PEN = 2.5
# Pixels drawn, along each axis, for one of the result.
_FINE = 16

MAX_POINTS = 10_000


def read_strokes(value: Any) -> list[np.ndarray]:
    """Strokes from what JSON holds: a list of strokes, each a list of points ``[x, y]``.

    Returns:
        ``float64[n, 2]`` for each stroke, n being at least 1.

    Raises:
        ResNetJaxError: it is something else, has no point, more than `MAX_POINTS`, or a number
            that is not finite or too large to calculate with.
    """
    expected = "expected a list of strokes, each a list of points [x, y]"
    if not isinstance(value, list):
        raise ResNetJaxError(f"strokes are a {type(value).__name__}: {expected}")
    count = sum(len(stroke) if isinstance(stroke, list) else 1 for stroke in value)
    if not 1 <= count <= MAX_POINTS:
        raise ResNetJaxError(f"strokes have {count:,} points: give 1 to {MAX_POINTS:,}")
    strokes = []
    for number, stroke in enumerate(value):
        try:
            points = np.asarray(stroke)
        except ValueError:  # points of several lengths
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "iuf":
            raise ResNetJaxError(f"stroke {number} is malformed: {expected}")
        if not (np.abs(points.astype(np.float64)) < 1e6).all():
            raise ResNetJaxError(f"stroke {number} leaves the page: give numbers within a million")
        strokes.append(points.astype(np.float64))
    return strokes


def draw(strokes: list[np.ndarray]) -> np.ndarray:
    """Draws strokes as a digit of MNIST, whatever their size and place.

    The pen is as wide as MNIST's strokes are after they were scaled, so that a small digit does
    not become a fat one.

    Args:
        strokes: ``float[n, 2]`` each: x to the right and y downwards, in any unit. A stroke of
            one point is a dot.

    Returns:
        ``uint8[28, 28]``: the ink, 255 where the pen was, on 0.
    """
    points = np.concatenate(strokes)
    low = points.min(axis=0)
    extent = (points.max(axis=0) - low).max()
    # The ink reaches half a pen's width beyond the points. Dots alone have no size to scale.
    scale = (BOX - PEN) / extent if extent > 0 else 0.0
    radius = PEN / 2 * _FINE
    picture = Image.new("L", (BOX * _FINE, BOX * _FINE))
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        # Pillow's coordinates are those of the pixels' centres.
        line = [tuple(point) for point in (stroke - low) * scale * _FINE + radius - 0.5]
        pen.line(line, fill=255, width=round(2 * radius))
        for x, y in line:  # round ends and joints
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return centre(np.asarray(picture.reduce(_FINE)))


def centre(ink: np.ndarray) -> np.ndarray:
    """Moves ink, by whole pixels, so that its centre of mass is in the middle of 28x28 pixels.

    Ink that would leave the image stays at its edge.

    Args:
        ink: ``uint8[h, w]``; what is not 0 fits into 28x28.

    Returns:
        ``uint8[28, 28]``.
    """
    image = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return image
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    mass = ink.sum(dtype=np.int64)
    start = []
    for size, weights in zip(ink.shape, (ink.sum(axis=1), ink.sum(axis=0)), strict=True):
        middle = (np.arange(size) * weights.astype(np.int64)).sum() / mass
        # MNIST's middle is the centre of pixel 14, counted from 0.
        start.append(min(max(math.floor(SIDE / 2 - middle + 0.5), 0), SIDE - size))
    top, left = start
    image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image
