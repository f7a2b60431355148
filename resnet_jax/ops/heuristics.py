"""The choice of the fastest convolution algorithm on a CPU, by instruction set and static shapes.

The bounds are measured by `experiments/cpu_speed/algorithms.py`; its tables are on the page beside
it. An instruction set without measurements uses the bounds of the nearest one that has some: ARM's
NEON, with vectors half as wide, uses those of AVX2.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from resnet_jax.ops.algorithms import PASSES, im2col, supports
from resnet_jax.ops.geometry import Geometry

# Up to this many elements of a pass's first operand (ResNet-18's 2x2 maps at batch 16) the kernel
# is the larger of the two, and only im2col does not rearrange it.
IM2COL_MAX_ELEMENTS = 2**14
# XLA's own convolution is fastest where the narrower of input and output has 8 to 31 channels and
# H * W * OH * OW is at least 100^2 (10x10 maps at stride 1), because copying operands that narrow
# takes longer than the product.
XLA_CHANNELS, XLA_MIN_PAIRS = range(8, 32), 100**2
# Above this ratio of the kernel's elements to the first operand's, transforming the kernel takes
# longer than Winograd's larger tiles save, as in ResNet-18's last stage at 224x224 and batch 8.
TWO_TILES_MIN_RATIO = 8
# Elements of a pass's first operand from which XLA's convolution of images is faster than im2col.
XLA_MIN_IMAGE_ELEMENTS = 2**20


class Bounds(NamedTuple):
    """The bounds that depend on the instruction set."""

    images: tuple[str, ...]  # passes that use XLA's convolution for large images
    narrow: tuple[str, ...]  # passes that use XLA's convolution for few channels, at stride 1
    narrow_strided: tuple[str, ...]  # the same at other strides
    wide: dict[str, int]  # by pass, fewest channels on both sides for Winograd and `strided`
    strided: float = math.inf  # elements from which strided weight gradients use XLA's convolution


BOUNDS = {
    "avx2": Bounds(
        images=("forward",),
        narrow=("forward", "input_grad"),
        narrow_strided=("forward",),
        wide={"forward": 48, "input_grad": 48, "weight_grad": 16},
    ),
    "avx512": Bounds(
        images=PASSES,
        narrow=PASSES,
        narrow_strided=(),
        wide=dict.fromkeys(PASSES, 32),
        strided=2**19,
    ),
}
INSTRUCTION_SETS = tuple(BOUNDS)


@cache
def instruction_set() -> str:
    """Return the instruction set, of `INSTRUCTION_SETS`, whose bounds this machine uses."""
    # NumPy reports the features it was built for and those it found besides; it omits empty lists.
    known = np.show_config(mode="dicts").get("SIMD Extensions", {})
    found = (*known.get("baseline", ()), *known.get("found", ()))
    return "avx512" if "X86_V4" in found else "avx2"


def choose(
    pass_: str, geometry: Geometry, channels: tuple[int, int], elements: float, instructions: str
) -> str:
    """Return the name of the algorithm that is fastest with an instruction set.

    The geometry's kernel is cut to the taps that touch the image; ``channels`` are the numbers of
    input and output channels; ``elements`` is the first operand's size, infinite for a symbolic N.
    """
    bounds, strided = BOUNDS[instructions], geometry.stride != (1, 1)
    wide = min(channels) >= bounds.wide[pass_]
    if geometry.kernel == (1, 1) or elements <= IM2COL_MAX_ELEMENTS:
        return "im2col"
    if geometry.size == (2, 2) and supports("winograd_2", geometry):
        return "winograd_2"  # nine products; im2col has 36, those with padding included
    if channels[0] <= im2col.MAX_IMAGE_CHANNELS:
        large = elements >= XLA_MIN_IMAGE_ELEMENTS
        return "xla" if large and pass_ in bounds.images else "im2col"
    pairs = math.prod((*geometry.size, *geometry.out))
    narrow = min(channels) in XLA_CHANNELS and pairs >= XLA_MIN_PAIRS
    if narrow and pass_ in (bounds.narrow_strided if strided else bounds.narrow):
        return "xla"
    if supports("winograd_4", geometry) and wide:
        kernel = math.prod((*geometry.kernel, *channels))
        return "winograd_2" if kernel > TWO_TILES_MIN_RATIO * elements else "winograd_4"
    if strided and wide and pass_ == "weight_grad" and elements >= bounds.strided:
        return "xla"
    # For a single output position im2col is one product over the image as it lies in memory.
    return "im2col" if strided or math.prod(geometry.out) == 1 else "shift_add"
