"""Max-pooling whose gradient is cheap on a CPU."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.ops.conv import left_to_xla
from resnet_jax.ops.geometry import Axis, Geometry
from resnet_jax.ops.primitives import COLUMNS, ROWS, depends_on, taps


def max_pool(
    x: Float[Array, "n h w c"],
    *,
    window: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    lowering: str = "auto",
) -> Float[Array, "n oh ow c"]:
    """Take the maximum of each window, as ``torch.nn.functional.max_pool2d`` does.

    The gradient of a window goes to the first of its largest values, row by row.

    Args:
      x: float[N, H, W, C]. N may be symbolic.
      window: height and width of the window.
      stride: step between windows, for rows and columns.
      padding: positions added on both sides, which are never the maximum; at most half a window.
      lowering: ``"auto"`` takes the maximum over strided slices on a CPU and ``lax.reduce_window``
        elsewhere; ``"reference"`` uses ``lax.reduce_window`` everywhere. Forward-mode
        differentiation (``jax.jvp``) needs ``"reference"``; ``jax.grad`` works with both.

    Returns:
      ``x.dtype``[N, OH, OW, C] with ``OH = (H + 2 * padding - window) // stride + 1``.

    Raises:
      ValueError: x is not floating-point [N, H, W, C], or window, stride or padding do not fit.
    """
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"max_pool takes floating-point [N, H, W, C], got {x.dtype}{x.shape}")
    geometry = Geometry.of(x.shape[1:3], window, stride, padding)
    if any(2 * axis.low > axis.kernel for axis in (geometry.rows, geometry.columns)):
        raise ValueError(f"padding must be at most half a window of {window}, got {padding}")
    if left_to_xla(x, geometry, lowering):
        return _reduce_window(x, geometry)
    return _max_pool(x, geometry)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.platform_dependent(
        x,
        cpu=lambda x: _axis_max(_axis_max(x, COLUMNS, geometry.columns), ROWS, geometry.rows),
        default=lambda x: _reduce_window(x, geometry),
    )


def _bwd(
    geometry: Geometry, kept: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array]:
    x_grad = lax.platform_dependent(
        *kept,
        grad,
        cpu=lambda x, y, grad: _shifts_max_grad(x, y, grad, geometry),
        default=lambda x, _, grad: jax.vjp(lambda x: _reduce_window(x, geometry), x)[1](grad)[0],
    )
    return (x_grad,)


_max_pool.defvjp(lambda x, geometry: (y := _max_pool(x, geometry), (x, y)), _bwd)


def _reduce_window(x: jax.Array, geometry: Geometry) -> jax.Array:
    window, stride = (1, *geometry.kernel, 1), (1, *geometry.stride, 1)
    padding = ((0, 0), *geometry.padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, stride, padding)


# A CPU pools one axis after the other: the maximum of a window is the maximum over rows of the
# maxima over columns, and its first position is the first column with it in the first row with it.


def _axis_max(x: jax.Array, dim: int, axis: Axis) -> jax.Array:
    return reduce(jnp.maximum, taps(x, dim, axis, -jnp.inf))


def _axis_max_grad(x: jax.Array, y: jax.Array, grad: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """Send each gradient to the first position that holds the maximum."""
    parts, undecided = [], jnp.ones(y.shape, bool)
    for tap in taps(x, dim, axis, -jnp.inf):
        here = tap == y
        parts.append(jnp.where(here & undecided, grad, 0))
        undecided = undecided & ~here
    return jax.linear_transpose(partial(taps, dim=dim, axis=axis), x)(parts)[0]


def _shifts_max_grad(x: jax.Array, y: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    x, y = lax.stop_gradient((x, y))
    x = depends_on(x, grad)  # otherwise XLA keeps `by_row` from the forward pass
    by_row = _axis_max(x, COLUMNS, geometry.columns)
    grad = _axis_max_grad(by_row, y, grad, ROWS, geometry.rows)
    return _axis_max_grad(x, by_row, grad, COLUMNS, geometry.columns)
