"""Max-pooling whose gradient is cheap on a CPU."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.ops import cpu
from resnet_jax.ops.conv import check_lowering, pair
from resnet_jax.ops.geometry import Axis, Geometry


def max_pool(
    x: jax.Array,
    *,
    window: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    lowering: str = "auto",
) -> jax.Array:
    """Take the maximum of each window, as ``torch.nn.functional.max_pool2d`` does.

    The gradient of a window goes to the first of its largest values, row by row.

    Args:
      x: float[N, H, W, C]. N may be symbolic.
      window: height and width of the window.
      stride: of rows and columns.
      padding: positions added on both sides, which are never the maximum; at most half a window.
      lowering: ``"auto"`` takes the maximum over strided slices on a CPU and ``lax.reduce_window``
        elsewhere; ``"reference"`` uses ``lax.reduce_window`` everywhere.

    Returns:
      ``x.dtype``[N, OH, OW, C] with ``OH = (H + 2 * padding - window) // stride + 1``.

    Raises:
      ValueError: x is not floating-point [N, H, W, C], or window, stride or padding do not fit.
    """
    window, stride = pair(window, "window", 1), pair(stride, "stride", 1)
    padding = pair(padding, "padding", 0)
    check_lowering(lowering)
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"max_pool takes floating-point [N, H, W, C], not {x.dtype}{x.shape}")
    if any(2 * p > w for p, w in zip(padding, window, strict=True)):
        raise ValueError(f"padding is at most half a window of {window}, not {padding}")
    size = x.shape[1], x.shape[2]
    geometry = Geometry.of(size, window, stride, padding)
    static = all(isinstance(n, int) for n in size)
    if static and min(geometry.out) < 1:
        raise ValueError(f"a {window} window does not fit in a {size} image padded by {padding}")
    if lowering == "reference" or not static:
        return _native(x, geometry)
    return _max_pool(x, geometry)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.platform_dependent(
        x, cpu=partial(_slices, geometry=geometry), default=partial(_native, geometry=geometry)
    )


def _keep(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_pool(x, geometry)
    return y, (x, y)


def _grad(
    geometry: Geometry, kept: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array]:
    x, y = kept
    return (
        lax.platform_dependent(
            x,
            y,
            grad,
            cpu=partial(_slices_grad, geometry=geometry),
            default=partial(_native_grad, geometry=geometry),
        ),
    )


_max_pool.defvjp(_keep, _grad)


def _native(x: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, *geometry.kernel, 1),
        (1, *geometry.stride, 1),
        ((0, 0), *geometry.padding, (0, 0)),
    )


def _native_grad(x: jax.Array, y: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    del y
    return jax.vjp(partial(_native, geometry=geometry), x)[1](grad)[0]


# On a CPU, one axis after the other: the maximum of a window is the maximum over rows of the maxima
# over columns, and its first position row by row is the first such row's first such column.


def _taps(x: jax.Array, dim: int, axis: Axis) -> list[jax.Array]:
    return [cpu.gather(x, dim, axis, tap, -jnp.inf) for tap in range(axis.kernel)]


def _axis_max(x: jax.Array, dim: int, axis: Axis) -> jax.Array:
    return reduce(jnp.maximum, _taps(x, dim, axis))


def _axis_grad(x: jax.Array, y: jax.Array, grad: jax.Array, dim: int, axis: Axis) -> jax.Array:
    """The gradient of :func:`_axis_max`, to the first position that holds the maximum."""
    parts, undecided = [], jnp.ones(y.shape, bool)
    for tap in _taps(x, dim, axis):
        here = tap == y
        parts.append(jnp.where(here & undecided, grad, 0))
        undecided = undecided & ~here
    return cpu.spread(parts, dim, axis)


def _slices(x: jax.Array, geometry: Geometry) -> jax.Array:
    return _axis_max(_axis_max(x, cpu.COLUMNS, geometry.columns), cpu.ROWS, geometry.rows)


def _slices_grad(x: jax.Array, y: jax.Array, grad: jax.Array, geometry: Geometry) -> jax.Array:
    x, y = lax.stop_gradient((x, y))
    x = cpu.after(x, grad)  # else the maxima by row are kept for this since the way forward
    by_row = _axis_max(x, cpu.COLUMNS, geometry.columns)
    grad = _axis_grad(by_row, y, grad, cpu.ROWS, geometry.rows)
    return _axis_grad(x, by_row, grad, cpu.COLUMNS, geometry.columns)
