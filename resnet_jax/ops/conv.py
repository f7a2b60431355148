"""Two-dimensional convolution that picks its lowering by platform inside ``jit``.

A convolution is linear in its input and in its kernel, and so are its two gradients: the three are
the faces of one form, ``sum(conv2d(x, kernel) * grad)``, and the gradients of each face are the
other two. Here each face has the platform's fastest formulation, and gradients of any order follow.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.ops import cpu, rule
from resnet_jax.ops.geometry import Geometry

_LOWERINGS = ("auto", "reference")


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    lowering: str = "auto",
) -> jax.Array:
    """Cross-correlate images with a kernel, as ``torch.nn.functional.conv2d`` does.

    Args:
      x: float[N, H, W, C]. N may be symbolic.
      kernel: float[kh, kw, C, K]; cast to ``x.dtype``.
      stride: of rows and columns.
      padding: zeros added on both sides of rows and of columns.
      lowering: ``"auto"`` uses the formulations of :mod:`resnet_jax.ops.cpu` on a CPU and XLA's
        convolution elsewhere; ``"reference"`` uses XLA's convolution everywhere. Forward-mode
        differentiation (``jax.jvp``) needs ``"reference"``; ``jax.grad`` works with both.

    Returns:
      ``x.dtype``[N, OH, OW, K] with ``OH = (H + 2 * padding - kh) // stride + 1``.

    Raises:
      ValueError: shapes that do not fit, a stride below 1, a negative padding, or a kernel larger
        than the padded image.
    """
    _check(x, kernel, lowering)
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    kernel = kernel.astype(x.dtype)
    size = x.shape[1], x.shape[2]
    static = all(isinstance(n, int) for n in size)
    geometry = Geometry.of(size, (kernel.shape[0], kernel.shape[1]), stride, padding)
    if static and min(geometry.out) < 1:
        raise ValueError(
            f"a {geometry.kernel} kernel does not fit in a {size} image padded by {padding}"
        )
    if lowering == "reference" or not static:
        return cpu.FORMULATIONS["forward"]["native"](x, kernel, geometry)
    return _forward(x, kernel, geometry)


def _check(x: jax.Array, kernel: jax.Array, lowering: str) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"conv2d takes x [N, H, W, C] and kernel [kh, kw, C, K], not {x.shape}, {kernel.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"conv2d takes floating-point images, not {x.dtype}")
    check_lowering(lowering)


def check_lowering(lowering: str) -> None:
    """Raise ValueError unless ``lowering`` is one of the two that exist."""
    if lowering not in _LOWERINGS:
        raise ValueError(f"lowering is one of {', '.join(_LOWERINGS)}, not {lowering!r}")


def pair(value: int | tuple[int, int], name: str, least: int) -> tuple[int, int]:
    """Rows and columns from one number or two, each at least ``least``."""
    rows, columns = (value, value) if isinstance(value, int) else value
    if min(rows, columns) < least:
        raise ValueError(f"{name} is at least {least}, not {value}")
    return rows, columns


# --- the three faces: each one's gradients are the other two -------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return _by_platform("forward", x, kernel, geometry)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_grad(grad: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return _by_platform("input_grad", grad, kernel, geometry)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_grad(x: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    return _by_platform("kernel_grad", x, grad, geometry)


def _keep_both(face: Callable[..., jax.Array]) -> Callable[..., Any]:
    return lambda a, b, geometry: (face(a, b, geometry), (a, b))


_forward.defvjp(
    _keep_both(_forward),
    lambda geometry, kept, grad: (
        _input_grad(grad, kept[1], geometry),
        _kernel_grad(kept[0], grad, geometry),
    ),
)
_input_grad.defvjp(
    _keep_both(_input_grad),
    lambda geometry, kept, x: (
        _forward(x, kept[1], geometry),
        _kernel_grad(x, kept[0], geometry),
    ),
)
_kernel_grad.defvjp(
    _keep_both(_kernel_grad),
    lambda geometry, kept, kernel: (
        _input_grad(kept[1], kernel, geometry),
        _forward(kept[0], kernel, geometry),
    ),
)


# --- the lowering --------------------------------------------------------------------------------


# Jitted in itself, so that convolutions of one shape are traced and lowered once in a network.
@partial(jax.jit, static_argnums=(0, 3))
def _by_platform(face: str, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: _on_cpu(face, a, b, geometry),
        default=lambda a, b: cpu.FORMULATIONS[face]["native"](a, b, geometry),
    )


def _on_cpu(face: str, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """One face, for the kernel cut to the taps that touch the image."""
    rows, columns = geometry.rows.taps(), geometry.columns.taps()
    formulations = cpu.FORMULATIONS[face]
    if not rows or not columns:  # only padding is ever read
        return formulations["native"](a, b, geometry)
    live = geometry.trimmed()
    if face == "kernel_grad":
        channels = a.shape[-1], b.shape[-1]
    else:
        channels = b.shape[-2], b.shape[-1]
        b = b[rows.start : rows.stop, columns.start : columns.stop]
    elements = a.size if isinstance(a.shape[0], int) else None  # the batch is symbolic
    out = formulations[rule.choose(face, live, channels, elements)](a, b, live).astype(a.dtype)
    if face == "kernel_grad":
        # Zeros for the taps that never touch the image.
        out = cpu.pad(out, 0, rows.start, geometry.rows.kernel - rows.stop)
        out = cpu.pad(out, 1, columns.start, geometry.columns.kernel - columns.stop)
    return out
