"""Two-dimensional convolution that picks its algorithm by platform inside `jit`.

A convolution is bilinear. Its three passes are the contractions of one trilinear form,
`sum(conv2d(x, kernel) * grad)`, with two of x, kernel and grad, and the gradients of each pass are
the other two. Here each pass uses the platform's fastest algorithm, and so do gradients of any
order.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import dtypes, lax
from jax.sharding import AxisType
from jaxtyping import Array, Float

from resnet_jax.ops.algorithms import ALGORITHMS
from resnet_jax.ops.geometry import Geometry
from resnet_jax.ops.heuristics import INSTRUCTION_SETS, choose, instruction_set
from resnet_jax.ops.primitives import pad

LOWERINGS = ("auto", "reference", *INSTRUCTION_SETS)


def conv2d(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c_per_group k"],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
    lowering: str = "auto",
) -> Float[Array, "n oh ow k"]:
    """Cross-correlate images with a kernel, as ``torch.nn.functional.conv2d`` does.

    Args:
      x: float[N, H, W, C]. N may be symbolic.
      kernel: float[kh, kw, C / groups, K]; it is cast to ``x.dtype``, but its gradient has the
        kernel's type: on a CPU, products of narrow types are summed in float32 and rounded to that
        type. XLA's own convolution (``"reference"``, on GPU and TPU, and on a CPU where it is the
        fastest) rounds the gradient to ``x.dtype`` first.
      stride: step between windows, for rows and columns.
      padding: zeros added on both sides of rows and of columns.
      groups: number of groups of channels; more than one use XLA's convolution on every platform.
      lowering: ``"auto"`` uses the fastest of `resnet_jax.ops.algorithms` on a CPU, for this
        machine's instruction set, and XLA's convolution elsewhere; ``"avx2"`` or ``"avx512"`` does
        so for that instruction set; ``"reference"`` uses XLA's convolution everywhere, as all do
        for arrays with a sharding in their type (`jax.shard_map`, explicit axes). Forward-mode
        differentiation (``jax.jvp``) needs ``"reference"``; ``jax.grad`` works with all.

    Returns:
      ``x.dtype``[N, OH, OW, K] with ``OH = (H + 2 * padding - kh) // stride + 1``. On a CPU, a
      non-finite value in an image may reach outputs of that image that do not read it.

    Raises:
      ValueError: shapes that do not fit, images that are not floating-point, an unknown lowering, a
        kernel without taps or larger than the padded image, a stride below 1, a negative padding.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != groups * kernel.shape[2]:
        per_group = f" / {groups}" * (groups != 1)
        raise ValueError(
            f"conv2d takes x [N, H, W, C] and kernel [kh, kw, C{per_group}, K], got {x.shape}, "
            f"{kernel.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"conv2d takes floating-point images, got {x.dtype}")
    geometry = Geometry.of(x.shape[1:3], kernel.shape[:2], stride, padding)
    if left_to_xla(x, geometry, lowering) or groups > 1:  # the first checks the lowering
        return ALGORITHMS["forward"]["xla"](x, kernel.astype(x.dtype), geometry)
    instructions = instruction_set() if lowering == "auto" else lowering
    return _by_platform("forward", x, kernel, _Static(geometry, kernel.dtype, instructions))


def left_to_xla(x: jax.Array, geometry: Geometry, lowering: str) -> bool:
    """Return whether XLA's own operation is used everywhere; raise for an unknown lowering.

    Arrays whose type has a sharding, as in `jax.shard_map` or with the explicit axes of
    `jax.set_mesh`, use it, because JAX derives a gradient's sharding for its own operations alone.
    """
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}, got {lowering!r}")
    typed = any(kind != AxisType.Auto for kind in jax.typeof(x).sharding.mesh.axis_types)
    return typed or lowering == "reference" or not geometry.is_static


# Each pass takes two of the trilinear form's three arrays and returns the third, named last.
_ARRAYS = {
    "forward": ("x", "kernel", "grad"),
    "input_grad": ("grad", "kernel", "x"),
    "weight_grad": ("x", "grad", "kernel"),
}


class _Static(NamedTuple):
    """The static arguments of a convolution, the same for all passes."""

    geometry: Geometry
    kernel_dtype: jnp.dtype
    instructions: str  # one of `INSTRUCTION_SETS`


# Jitted separately, so that convolutions of one shape are traced and lowered once in a network.
@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
@partial(jax.jit, static_argnums=(0, 3))
def _by_platform(pass_: str, a: jax.Array, b: jax.Array, static: _Static) -> jax.Array:
    dtype = dtypes.canonicalize_dtype(static.kernel_dtype) if pass_ == "weight_grad" else a.dtype
    return lax.platform_dependent(
        a,
        b.astype(a.dtype),
        cpu=lambda a, b: _on_cpu(pass_, a, b, static).astype(dtype),
        default=lambda a, b: ALGORITHMS[pass_]["xla"](a, b, static.geometry).astype(dtype),
    )


def _bwd(
    pass_: str, static: _Static, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    arrays = dict(zip(_ARRAYS[pass_], (*kept, cotangent), strict=True))
    pass_of = {returned: name for name, (_, _, returned) in _ARRAYS.items()}
    gradients = (pass_of[operand] for operand in _ARRAYS[pass_][:2])
    return tuple(
        _by_platform(p, *(arrays[name] for name in _ARRAYS[p][:2]), static) for p in gradients
    )


_by_platform.defvjp(lambda pass_, a, b, static: (_by_platform(pass_, a, b, static), (a, b)), _bwd)


def _on_cpu(pass_: str, a: jax.Array, b: jax.Array, static: _Static) -> jax.Array:
    """Compute one pass on a CPU, with the kernel cut to the taps that touch the image."""
    geometry = static.geometry
    rows, columns = geometry.rows.taps(), geometry.columns.taps()
    if not rows or not columns or b.shape[-1] == 0:  # padding alone is read, or K is 0
        return ALGORITHMS[pass_]["xla"](a, b, geometry)
    live = geometry.trimmed()
    if pass_ != "weight_grad":
        b = b[rows.start : rows.stop, columns.start : columns.stop]
    channels = (a.shape[-1] if pass_ == "weight_grad" else b.shape[-2], b.shape[-1])
    elements = a.size if isinstance(a.shape[0], int) else math.inf
    algorithm = choose(pass_, live, channels, elements, static.instructions)
    out = ALGORITHMS[pass_][algorithm](a, b, live)
    if pass_ == "weight_grad":
        # The gradient is zero for taps that never touch the image.
        out = pad(out, 0, rows.start, geometry.rows.kernel - rows.stop)
        out = pad(out, 1, columns.start, geometry.columns.kernel - columns.stop)
    return out
