"""The rule that chooses a convolution's formulation, on both sides of each of its bounds."""

import pytest

from resnet_jax.ops import rule
from resnet_jax.ops.geometry import Geometry

SOME, MOST = 2**14 + 1, 2**19 - 1  # elements between the two bounds

CASES = [
    # face, side, kernel, stride, padding, channels, elements, formulation
    ("forward", 8, 1, 1, 0, (64, 64), SOME, "patches"),
    ("input_grad", 8, 1, 2, 0, (64, 64), SOME, "patches"),
    # Little input.
    ("forward", 8, 3, 1, 1, (64, 64), SOME - 1, "patches"),
    ("forward", 8, 3, 1, 1, (64, 64), SOME, "columns"),
    # Few colours.
    ("forward", 8, 3, 1, 1, (3, 64), SOME, "patches"),
    ("kernel_grad", 8, 3, 1, 1, (3, 64), SOME, "patches"),
    ("forward", 8, 3, 1, 1, (4, 64), SOME, "columns"),
    # Narrow layers: what counts is what a product sums over, and the pairs of positions.
    ("forward", 10, 3, 1, 1, (7, 64), SOME, "columns"),
    ("forward", 10, 3, 1, 1, (8, 64), SOME, "native"),
    ("forward", 10, 3, 1, 1, (31, 64), SOME, "native"),
    ("forward", 10, 3, 1, 1, (32, 64), SOME, "columns"),
    ("forward", 9, 3, 1, 1, (8, 64), SOME, "columns"),
    ("input_grad", 10, 3, 1, 1, (64, 7), SOME, "columns"),
    ("input_grad", 10, 3, 1, 1, (64, 8), SOME, "native"),
    ("input_grad", 10, 3, 1, 1, (8, 32), SOME, "columns"),
    ("kernel_grad", 10, 3, 1, 1, (8, 8), SOME, "columns"),
    ("forward", 15, 3, 2, 1, (16, 32), SOME, "native"),  # 225 x 64 pairs
    ("forward", 14, 3, 2, 1, (16, 32), SOME, "patches"),  # 196 x 49
    ("input_grad", 15, 3, 2, 1, (32, 16), SOME, "patches"),
    # Tiles: on 2x2 maps, and where there is much input.
    *((face, 2, 3, 1, 1, (64, 64), SOME, "tiles") for face in ("forward", "input_grad")),
    ("kernel_grad", 2, 3, 1, 1, (64, 64), SOME, "tiles"),
    *((face, 8, 3, 1, 1, (64, 64), MOST, "columns") for face in ("forward", "input_grad")),
    *((face, 8, 3, 1, 1, (64, 64), MOST + 1, "tiles") for face in ("forward", "input_grad")),
    ("kernel_grad", 8, 3, 1, 1, (64, 64), MOST + 1, "columns"),
    ("forward", 8, 3, 1, 1, (64, 64), None, "tiles"),  # a symbolic batch counts as many
    # Tiny maps, but for what tiles would fit.
    ("forward", 2, 3, 2, 1, (64, 64), SOME, "dense"),
    ("forward", 4, 4, 1, 0, (64, 64), SOME, "dense"),  # 16 x 1 pairs
    ("forward", 5, 5, 1, 0, (64, 64), SOME, "columns"),  # 25 x 1
    ("forward", 3, 3, 1, 0, (64, 64), SOME, "columns"),
    # The others: by their stride.
    ("kernel_grad", 8, 5, 1, 2, (64, 64), SOME, "columns"),
    ("kernel_grad", 8, 3, 2, 1, (64, 64), SOME, "patches"),
]


@pytest.mark.parametrize(
    ("face", "side", "kernel", "stride", "padding", "channels", "elements", "expected"), CASES
)
def test_choice(face, side, kernel, stride, padding, channels, elements, expected) -> None:
    geometry = Geometry.of((side, side), (kernel, kernel), (stride, stride), (padding, padding))
    assert rule.choose(face, geometry.trimmed(), channels, elements) == expected
