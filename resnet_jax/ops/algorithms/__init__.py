"""Algorithms of convolution, each with its three passes.

    forward      x, kernel -> y
    input_grad   grad, kernel -> gradient of x (dgrad)
    weight_grad  x, grad -> gradient of kernel (wgrad)

on float[N, H, W, C], float[kh, kw, C, K] and float[N, OH, OW, K], for a `Geometry` whose kernel is
cut to the taps that touch the image. The batch may be symbolic. On a CPU, XLA's own convolution is
slow, extremely so on small maps, but its matrix product is fast, so the others are such products.
"""

from collections.abc import Callable
from functools import partial

import jax

from resnet_jax.ops.algorithms import im2col, shift_add, winograd, xla
from resnet_jax.ops.geometry import Geometry

PASSES = ("forward", "input_grad", "weight_grad")
_MODULES = {"xla": xla, "im2col": im2col, "shift_add": shift_add}
Algorithm = Callable[[jax.Array, jax.Array, Geometry], jax.Array]
# The algorithms by pass, then by name.
ALGORITHMS: dict[str, dict[str, Algorithm]] = {
    pass_: {name: getattr(module, pass_) for name, module in _MODULES.items()}
    | {f"winograd_{m}": partial(getattr(winograd, pass_), m=m) for m in (2, 4)}
    for pass_ in PASSES
}


def supports(algorithm: str, geometry: Geometry) -> bool:
    """Return whether an algorithm can compute a convolution."""
    if algorithm.startswith("winograd"):
        return geometry.stride == (1, 1) and geometry.kernel == (3, 3)
    return algorithm != "shift_add" or geometry.stride == (1, 1)
