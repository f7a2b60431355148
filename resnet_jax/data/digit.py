"""Find a digit in a photograph, or draw one from strokes, as MNIST's digits were made.

MNIST's digits are light ink on black, scaled to 20 pixels and centred by mass in 28x28 (LeCun et
al., Proc. IEEE 86(11), 1998, section III.A).
"""

from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from resnet_jax.data.image import Box, DecodeSpec, open_image, read_image
from resnet_jax.errors import ResNetJaxError

SIDE, BOX, OVERSAMPLING, FINE = 28, 20, 8, 16
MAX_POINTS = 10_000  # of all strokes together
PEN = 2.5  # pixels: the median width of the strokes of MNIST's digits
WORKING_SIDE = 320  # pixels of a photograph's longer side: shows strokes, but little noise
LEAST_CONTRAST = 0.1  # between ink and paper, as the logarithm of their ratio


class FoundDigit(NamedTuple):
    """A digit as ``uint8[28, 28, 1]``, light ink on 0, and words on its ink and where it was."""

    image: np.ndarray
    how: str
    box: Box | None = None  # where the 28x28 pixels lie in the picture; beside it without ink


def read_digit_or_image(
    source: Path | bytes, spec: DecodeSpec, *, find: bool, invert: bool = False, **limits: Any
) -> FoundDigit:
    """Read the digit in an image; without ``find``, or inverted, all of it by `read_image`."""
    if invert or not find:
        return FoundDigit(read_image(source, spec, invert=invert, **limits), "")
    return find_digit(open_image(source, background=spec.background, side=WORKING_SIDE, **limits))


def find_digit(picture: Image.Image) -> FoundDigit:
    """Find the digit in a picture; a picture of MNIST's kind stays as it is, bit for bit.

    Only the largest patch of ink and its neighbours are kept, in strokes of MNIST's width.
    """
    grey = np.asarray(picture.convert("L"))
    if grey.shape == (SIDE, SIDE) and np.mean(grey == 0) > 0.5:
        return FoundDigit(grey[..., None], "as it is")
    contrast = _contrast(picture)
    ink = _main_patch(np.abs(contrast))
    if not ink.any():
        return FoundDigit(np.zeros((SIDE, SIDE, 1), np.uint8), "no ink found", (1, 1, 2, 2))
    rows, columns = _bounds(ink)
    kind = "dark" if contrast[ink].mean() < 0 else "light"
    place = f"{columns.start}-{columns.stop}, {rows.start}-{rows.stop}"
    how = f"{kind} ink at {place} of {ink.shape[1]}x{ink.shape[0]}"
    image = centre(_as_mnist(ink[rows, columns]))
    found = np.array([(side.start, side.stop) for side in (rows, columns)])
    drawn = np.array([(side.start, side.stop) for side in _bounds(image)])
    scale = np.ptp(found, axis=1) / np.ptp(drawn, axis=1)
    start = found[:, 0] - drawn[:, 0] * scale
    (top, left), (bottom, right) = start / ink.shape, (start + SIDE * scale) / ink.shape
    return FoundDigit(image[..., None], how, (left, top, right, bottom))


def _bounds(ink: np.ndarray) -> tuple[slice, slice]:
    rows, columns = ndimage.find_objects((ink > 0).astype(int))[0]
    return rows, columns


def _contrast(picture: Image.Image) -> np.ndarray:
    """Return the log ratio of each pixel to the paper around it, in the clearest colour channel."""
    scale = WORKING_SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pixels = ndimage.gaussian_filter(np.asarray(picture, np.float32), (1, 1, 0))
    paper = np.reshape(picture.histogram(), (3, 256)).argmax(axis=1).astype(np.float32)
    if (np.asarray(picture) == paper).all(axis=2).mean() < 0.25:  # neither drawn nor scanned
        paper = _paper(pixels)
    # A shadow darkens ink and paper by one factor; adding 32 keeps noise on black from counting.
    ratio = np.log((pixels + 32) / (paper + 32))
    clearest = np.abs(ratio).argmax(axis=-1)
    return np.take_along_axis(ratio, clearest[..., None], axis=-1)[..., 0]


def _paper(pixels: np.ndarray) -> np.ndarray:
    """Return the colour of the paper under each pixel, which changes slowly, as light does."""
    few = pixels[::8, ::8]
    window = max(few.shape) // 2 | 1
    paper = ndimage.median_filter(few, (window, window, 1), mode="nearest")
    paper = ndimage.gaussian_filter(paper, (1, 1, 0), mode="nearest")
    size = pixels.shape[1::-1]
    colours = map(Image.fromarray, np.moveaxis(paper, 2, 0))
    return np.dstack([np.asarray(c.resize(size, Image.Resampling.BILINEAR)) for c in colours])


def _main_patch(contrast: np.ndarray) -> np.ndarray:
    """Return the mask of the largest connected patch of ink and of the patches near it."""
    # Ink has sharp edges, shadows soft ones, so the threshold is halfway up the sharpest edges.
    edges = ndimage.gaussian_gradient_magnitude(contrast, 1)
    halfway = np.average(contrast, weights=edges**2 + 1e-12)
    ink = contrast > max(halfway, LEAST_CONTRAST)
    patches, count = ndimage.label(ink, np.ones((3, 3)))
    if not count:
        return ink
    numbers = np.arange(count + 1)  # 0 is the paper
    sizes = np.bincount(patches.ravel(), weights=edges.ravel()) * (numbers > 0)
    rim = [0, *patches[[0, -1]].flat, *patches[:, [0, -1]].flat]
    inside = np.isin(numbers, rim, invert=True)
    if inside.any():  # what reaches the edge is a shadow, a table or a neighbour
        sizes = sizes * inside
    largest = sizes.argmax()
    near = ndimage.binary_dilation(patches == largest, iterations=max(1, max(ink.shape) // 20))
    kept = np.isin(numbers, patches[near]) & (sizes > sizes[largest] / 20)
    return kept[patches]


def _as_mnist(ink: np.ndarray) -> np.ndarray:
    """Redraw a mask in a box of 20 pixels, ``uint8[h, w]``, with strokes of MNIST's width."""
    margin = BOX * OVERSAMPLING // 4
    scale = (BOX - PEN) * OVERSAMPLING / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    picture = Image.fromarray(ink.astype(np.float32)).resize((width, height), 3)
    mask = np.pad(np.asarray(picture) > 0.5, margin)
    inside = ndimage.distance_transform_edt(mask)
    ridge = mask & (inside == ndimage.maximum_filter(inside, 2 * OVERSAMPLING + 1))
    pen = 2 * np.median(inside[ridge]) if ridge.any() else 1.0
    # The distance to the edge, positive inside, is shifted by half of the width that the pen lacks.
    distance = inside - ndimage.distance_transform_edt(~mask)
    grown = np.clip(distance + (PEN * OVERSAMPLING - pen) / 2 + 0.5, 0, 1)
    drawn = Image.fromarray((255 * grown[_bounds(grown)]).astype(np.uint8))
    scale = BOX / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    return np.asarray(drawn.resize(size, Image.Resampling.BOX))


def centre(ink: np.ndarray) -> np.ndarray:
    """Centre ink, ``uint8[h, w]``, by mass in 28x28 pixels, moving it by whole pixels."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    if ink.any():
        ink = ink[_bounds(ink)]
        # MNIST's middle is the centre of pixel 14, counted from 0.
        start = np.floor(SIDE / 2 + 0.5 - np.array(ndimage.center_of_mass(ink)))
        top, left = np.clip(start, 0, SIDE - np.array(ink.shape)).astype(int)
        image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image


def parse_strokes(value: Any) -> list[np.ndarray]:
    """Parse strokes decoded from JSON: a list of strokes, each a list of points ``[x, y]``."""
    try:
        # Checked before NumPy pads every string of a list to the size of the longest.
        lines = list(islice(value, MAX_POINTS + 1))
        if not {type(x) for line in lines for point in line for x in point} <= {int, float}:
            raise TypeError
        strokes = [np.asarray(line, float) for line in lines]
        points = np.concatenate(strokes)
    except (TypeError, ValueError, OverflowError):  # not lists, or points of different lengths
        points = np.empty(0)
    if points.shape[1:] != (2,) or len(points) > MAX_POINTS or not (abs(points) < 1e6).all():
        raise ResNetJaxError(
            f"strokes must be lists of [x, y] below 1e6, {MAX_POINTS:,} points at most"
        )
    return strokes


def draw_strokes(strokes: list[np.ndarray]) -> np.ndarray:
    """Draw strokes as ``uint8[28, 28]``, light ink on 0; their size and place do not matter."""
    points = np.concatenate(strokes)
    low, extent = points.min(axis=0), np.ptp(points, axis=0).max()
    # The ink reaches half a pen's width beyond the points. Dots alone have no size to scale.
    scale = (BOX - PEN) / extent if extent > 1e-9 else 0.0
    radius = PEN / 2 * FINE
    picture = Image.new("L", (BOX * FINE, BOX * FINE))
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        # Pillow's coordinates are those of the pixels' centres.
        line = [tuple(xy) for xy in (stroke - low) * scale * FINE + radius - 0.5]
        pen.line(line, fill=255, width=round(2 * radius))
        for x, y in line:  # round ends and joints
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return centre(np.asarray(picture.reduce(FINE)))
