"""Which formulation of a convolution is quickest on a CPU.

What the bounds rest on is measured by ``experiments/cpu_speed/formulations.py``; its tables are in
the page beside it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from resnet_jax.ops.geometry import Geometry

# Of an input, in elements, from which tiles are worth it: ResNet-18's first stage at batch 128, its
# second at 256. Below, a step gains a few hundredths at most, and each is some fifty kernels to
# compile and load where columns are a handful.
MANY = 2**19
# Of an input, in elements, up to which a kernel is best left as it lies: there is more of it than
# of the input, and patches alone do not rearrange it. ResNet-18's 2x2 maps at batch 16.
FEW = 2**14
# Of an image, in channels: so little is read at each position that one product over patches, which
# copies all of it, is quickest.
COLOURS = 3
# Channels summed over for which XLA's own convolution beats products, from LARGE pairs of an input
# and an output position (10x10 at stride 1): the copies around so narrow a product take longer than
# the product. The first stage of a network of width 16. Its gradients of the kernel, and those of
# a strided convolution's input, are no better there than elsewhere.
NARROW, LARGE = range(8, 32), 100**2
# Pairs of an input and an output position, up to which the convolution's whole matrix is small.
TINY = 4**2


class Case(NamedTuple):
    """What the rule looks at: one face of a convolution whose kernel is cut to its live taps."""

    face: str
    geometry: Geometry
    channels: tuple[int, int]  # of the convolution's input and output
    elements: float  # of the face's first array; infinite for a symbolic batch

    @property
    def plain(self) -> bool:
        """Whether the stride is 1."""
        return self.geometry.stride == (1, 1)

    @property
    def pairs(self) -> int:
        """Input positions times output positions."""
        return math.prod(self.geometry.size) * math.prod(self.geometry.out)

    @property
    def narrow(self) -> bool:
        """Whether few channels are summed over, for many positions."""
        summed = {"forward": self.channels[0], "input_grad": self.channels[1]}
        return summed.get(self.face) in NARROW and self.pairs >= LARGE


# The first line that applies. Tiles are for 3x3 kernels and, as columns are, for stride 1.
RULE: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    ("patches", lambda case: case.geometry.kernel == (1, 1)),  # a strided slice and a product
    ("patches", lambda case: case.elements <= FEW),
    ("patches", lambda case: case.channels[0] <= COLOURS),
    ("native", lambda case: case.narrow and (case.plain or case.face == "forward")),
    # Nine products where dense has sixteen.
    ("tiles", lambda case: fits("tiles", case.geometry) and case.geometry.size == (2, 2)),
    (
        "tiles",
        lambda case: (
            fits("tiles", case.geometry) and case.face != "kernel_grad" and case.elements >= MANY
        ),
    ),
    ("columns", lambda case: fits("tiles", case.geometry)),
    ("dense", lambda case: case.pairs <= TINY),
    ("columns", lambda case: case.plain),
    ("patches", lambda case: True),
)


def choose(face: str, geometry: Geometry, channels: tuple[int, int], elements: int | None) -> str:
    """The formulation of one face of a convolution, from static shapes.

    Args:
        face: ``forward``, ``input_grad`` or ``kernel_grad``.
        geometry: after trimming.
        channels: of the convolution's input and of its output.
        elements: of the face's first array. None for a symbolic batch, which counts as many.
    """
    case = Case(face, geometry, channels, math.inf if elements is None else elements)
    return next(name for name, applies in RULE if applies(case))


def fits(name: str, geometry: Geometry) -> bool:
    """Whether a formulation can compute a convolution."""
    if name == "tiles":
        return geometry.stride == (1, 1) and geometry.kernel == (3, 3)
    return name != "columns" or geometry.stride == (1, 1)
