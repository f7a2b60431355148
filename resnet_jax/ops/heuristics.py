"""Which algorithm of convolution is fastest on a CPU, by its instruction set and by static shapes.

The bounds are measured by `experiments/cpu_speed/algorithms.py`; its tables are on the page beside
it. Instruction sets without measurements use the column of the nearest that has some: ARM's NEON,
with vectors of half the width, that of AVX2.
"""

import math
from functools import cache
from typing import NamedTuple, Self

import jax
import numpy as np

from resnet_jax.ops.algorithms import im2col, supports
from resnet_jax.ops.geometry import Geometry

INSTRUCTION_SETS = ("avx2", "avx512")

# Up to this many elements of the input there is more of the kernel than of the input, and im2col
# alone does not rearrange the kernel. ResNet-18's 2x2 maps at batch 16.
IM2COL_MAX_ELEMENTS = 2**14
# Channels summed over for which XLA's own convolution is fastest, from a number of pairs of an
# input and an output position (10x10 at stride 1): copying the operands of so narrow a product
# takes longer than the product. On AVX2 not so for weight gradients and strided input gradients.
XLA_CHANNELS, XLA_MIN_PAIRS = range(8, 32), 100**2
# Pairs of an input and an output position up to which the convolution's whole matrix is small.
TOEPLITZ_MAX_PAIRS = 4**2
# AVX2: minimum number of elements of the input for Winograd, which is ResNet-18's first stage at
# batch 128, its second at 256. Below it a step gains a few percent, and compiles more kernels.
WINOGRAD_MIN_ELEMENTS = 2**19
# AVX-512: channels on both sides from which Winograd is fastest, and XLA's own convolution for the
# weight gradients of large strided layers.
MIN_WIDE_CHANNELS = 32
# AVX-512: as many times more of the kernel than of the input, and transforming the kernel takes
# longer than the larger tiles save. ResNet-18's last stage at 224x224 and batch 8.
TWO_TILES_MIN_RATIO = 8
# AVX-512: elements of the input from which the columns of a strided convolution's weight gradient,
# or of an image, take longer to copy than XLA's own convolution takes.
XLA_MIN_ELEMENTS, XLA_MIN_IMAGE_ELEMENTS = 2**19, 2**20


@cache
def instruction_set() -> str:
    """Return the instruction set, of `INSTRUCTION_SETS`, whose column this machine uses."""
    # NumPy leaves out what is empty: a CPU with no more than it was built for.
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return "avx512" if "X86_V4" in found else "avx2"


class Problem(NamedTuple):
    """One pass of a convolution whose kernel is cut to the taps that touch the image."""

    pass_: str
    geometry: Geometry
    channels: tuple[int, int]  # of the convolution's input and output
    elements: float  # of the pass's first operand; infinite for a symbolic batch

    @classmethod
    def of(cls, pass_: str, a: jax.Array, b: jax.Array, geometry: Geometry) -> Self:
        """Return the problem of a pass with these operands."""
        inputs = a.shape[-1] if pass_ == "weight_grad" else b.shape[-2]
        elements = a.size if isinstance(a.shape[0], int) else math.inf
        return cls(pass_, geometry, (inputs, b.shape[-1]), elements)

    @property
    def pairs(self) -> int:
        """Number of pairs of an input and an output position."""
        return math.prod(self.geometry.size) * math.prod(self.geometry.out)

    @property
    def strided(self) -> bool:
        return self.geometry.stride != (1, 1)


def choose(problem: Problem, instructions: str) -> str:
    """Return the name of the algorithm that is fastest with an instruction set."""
    if problem.geometry.kernel == (1, 1):  # a strided slice and a product
        return "im2col"
    if problem.elements <= IM2COL_MAX_ELEMENTS:
        return "im2col"
    if problem.geometry.size == (2, 2) and supports("winograd_2", problem.geometry):
        return "winograd_2"  # nine products where Toeplitz has sixteen
    return {"avx2": _avx2, "avx512": _avx512}[instructions](problem)


def _avx2(problem: Problem) -> str:
    pass_, geometry, channels, elements = problem
    summed = {"forward": channels[0], "input_grad": channels[1]}.get(pass_)
    if channels[0] <= im2col.MAX_IMAGE_CHANNELS:
        return "im2col"
    narrow = summed in XLA_CHANNELS and problem.pairs >= XLA_MIN_PAIRS
    if narrow and (pass_ == "forward" or not problem.strided):
        return "xla"
    if supports("winograd_2", geometry):
        wide = pass_ != "weight_grad" and elements >= WINOGRAD_MIN_ELEMENTS
        return "winograd_2" if wide else "shift_add"
    return _by_products(problem)


def _avx512(problem: Problem) -> str:
    pass_, geometry, channels, elements = problem
    if channels[0] <= im2col.MAX_IMAGE_CHANNELS:
        return "xla" if elements >= XLA_MIN_IMAGE_ELEMENTS else "im2col"
    if min(channels) in XLA_CHANNELS and problem.pairs >= XLA_MIN_PAIRS and not problem.strided:
        return "xla"
    if supports("winograd_4", geometry) and min(channels) >= MIN_WIDE_CHANNELS:
        kernel = math.prod((*geometry.kernel, *channels))
        return "winograd_2" if kernel > TWO_TILES_MIN_RATIO * elements else "winograd_4"
    large = elements >= XLA_MIN_ELEMENTS and min(channels) >= MIN_WIDE_CHANNELS
    if pass_ == "weight_grad" and problem.strided and large:
        return "xla"
    return _by_products(problem)


def _by_products(problem: Problem) -> str:
    if problem.geometry.stride == (1, 1) and problem.pairs > TOEPLITZ_MAX_PAIRS:
        return "shift_add"
    return "toeplitz" if problem.pairs <= TOEPLITZ_MAX_PAIRS else "im2col"
