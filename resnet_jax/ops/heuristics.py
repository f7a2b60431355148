"""Which algorithm of convolution is fastest on a CPU.

The bounds are measured by `experiments/cpu_speed/algorithms.py`; its tables are on the page beside
it.
"""

import math
from typing import NamedTuple, Self

import jax

from resnet_jax.ops.algorithms import im2col, supports
from resnet_jax.ops.geometry import Geometry

# Minimum number of elements of the input for Winograd: ResNet-18's first stage at batch 128, its
# second at 256. Below it a step gains a few percent, and compiles and loads ten times the kernels.
WINOGRAD_MIN_ELEMENTS = 2**19
# Up to this many elements of the input there is more of the kernel than of the input, and im2col
# alone does not rearrange the kernel. ResNet-18's 2x2 maps at batch 16.
IM2COL_MAX_ELEMENTS = 2**14
# Channels summed over for which XLA's own convolution is fastest, from a number of pairs of an
# input and an output position (10x10 at stride 1): copying the operands of so narrow a product
# takes longer than the product. Not so for weight gradients and strided input gradients.
XLA_CHANNELS, XLA_MIN_PAIRS = range(8, 32), 100**2
# Pairs of an input and an output position up to which the convolution's whole matrix is small.
TOEPLITZ_MAX_PAIRS = 4**2


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


def choose(problem: Problem) -> str:
    """Return the name of the fastest algorithm."""
    pass_, geometry, channels, elements = problem
    strided = geometry.stride != (1, 1)
    pairs = math.prod(geometry.size) * math.prod(geometry.out)
    summed = {"forward": channels[0], "input_grad": channels[1]}.get(pass_)

    if geometry.kernel == (1, 1):  # a strided slice and a product
        return "im2col"
    if elements <= IM2COL_MAX_ELEMENTS or channels[0] <= im2col.MAX_IMAGE_CHANNELS:
        return "im2col"
    narrow = summed in XLA_CHANNELS and pairs >= XLA_MIN_PAIRS
    if narrow and (pass_ == "forward" or not strided):
        return "xla"
    if supports("winograd", geometry):
        if geometry.size == (2, 2):  # nine products where Toeplitz has sixteen
            return "winograd"
        if pass_ != "weight_grad" and elements >= WINOGRAD_MIN_ELEMENTS:
            return "winograd"
        return "shift_add"
    if pairs <= TOEPLITZ_MAX_PAIRS:
        return "toeplitz"
    return "im2col" if strided else "shift_add"
