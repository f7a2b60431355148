"""The units against their formulas in numpy, and their shortcuts by hand."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import resnet_jax as rj
from resnet_jax.models import BatchNorm, Conv, PreActivationUnit

UNITS = (rj.BasicUnit, rj.BottleneckUnit, PreActivationUnit, rj.PreActivationBottleneckUnit)


def randomise(tree, seed: int = 0):
    """Random numbers of the same shapes; positive, so that they do for variances too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.2, 1.5, x.shape), x.dtype), tree)


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """The definition, tap by tap."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = np.tensordot(window, kernel, axes=3)
    return y


def normalise(x: np.ndarray, params, stats) -> np.ndarray:
    factor = params["scale"] / np.sqrt(stats["var"] + 1e-5)
    return (x - stats["mean"]) * factor + params["bias"]


def numpy_unit(kind: type, x, params, stats, stride: int, residual: bool) -> np.ndarray:
    """The formulas of the units, in a few lines of numpy."""

    def conv(name, x, stride=1):
        return convolve(x, np.asarray(params[name]["kernel"]), stride)

    def norm(name, x):
        return normalise(x, params[name], stats[name])

    def relu(x):
        return np.maximum(x, 0)

    projected = "shortcut_conv" in params
    if kind is PreActivationUnit:
        activated = relu(norm("norm1", x))
        y = conv("conv2", relu(norm("norm2", conv("conv1", activated, stride))))
        short = conv("shortcut_conv", activated, stride) if projected else x
        return y + short if residual else y
    if kind is rj.PreActivationBottleneckUnit:
        activated = relu(norm("norm1", x))
        y = conv("conv2", relu(norm("norm2", conv("conv1", activated))), stride)
        y = conv("conv3", relu(norm("norm3", y)))
        short = conv("shortcut_conv", activated, stride) if projected else x
        return y + short if residual else y
    if kind is rj.BasicUnit:
        y = norm("norm2", conv("conv2", relu(norm("norm1", conv("conv1", x, stride)))))
    else:
        y = relu(norm("norm1", conv("conv1", x)))
        y = norm("norm3", conv("conv3", relu(norm("norm2", conv("conv2", y, stride)))))
    short = norm("shortcut_norm", conv("shortcut_conv", x, stride)) if projected else x
    return relu(y + short if residual else y)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", UNITS)
def test_units_compute_their_formula(kind, stride, residual):
    with jax.enable_x64(True):
        conv = partial(Conv, dtype=jnp.float64, param_dtype=jnp.float64)
        norm = partial(BatchNorm, dtype=jnp.float64, param_dtype=jnp.float64)
        # At stride 1 the input is as wide as the output: the shortcut is the identity.
        channels = 3 * kind.expansion if stride == 1 else 5
        x = np.random.default_rng(1).normal(size=(2, 5, 4, channels))
        unit = kind(features=3, conv=conv, norm=norm, strides=stride, residual=residual)
        init, apply = (partial(method, train=False) for method in (unit.init, unit.apply))
        shapes = jax.eval_shape(init, jax.random.key(0), x)
        variables = {name: randomise(tree) for name, tree in shapes.items()}
        y = jax.jit(apply)(variables, x)
    params, stats = (jax.device_get(variables[name]) for name in ("params", "batch_stats"))
    assert ("shortcut_conv" in params) == (residual and stride == 2)
    expected = numpy_unit(kind, x, params, stats, stride, residual)
    assert expected.shape == (2, math.ceil(5 / stride), math.ceil(4 / stride), 3 * kind.expansion)
    np.testing.assert_allclose(y, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", UNITS)
def test_zero_initialised_units_begin_as_their_shortcut(kind):
    x = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3 * kind.expansion))
    unit = kind(features=3, conv=Conv, norm=BatchNorm, zero_init_last=True)
    begin = jax.jit(partial(unit.init_with_output, train=False))
    np.testing.assert_array_equal(begin(jax.random.key(0), x)[0], x)


def test_option_a_keeps_every_second_pixel_and_pads_new_channels_with_zeros():
    # Zero kernels leave the shortcut alone: of 1..9 in a 3x3 map those at even places.
    x = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    unit = rj.BasicUnit(
        features=3, conv=Conv, norm=BatchNorm, strides=2, shortcut="pad", zero_init_last=True
    )
    y, variables = jax.jit(partial(unit.init_with_output, train=False))(jax.random.key(0), x)
    expected = np.zeros((2, 2, 3))
    expected[..., 0] = [[1, 3], [7, 9]]
    np.testing.assert_array_equal(y[0], expected)
    assert set(variables["params"]) == {"conv1", "norm1", "conv2", "norm2"}


def test_the_average_before_a_projection_is_taken_in_float32():
    """In bfloat16 each of the sums of four pixels was rounded."""
    averages = []

    def note(call, args, kwargs, context):
        if context.module.name == "average_conv":
            averages.append(args[0])
        return call(*args, **kwargs)

    conv = partial(Conv, dtype=jnp.bfloat16)
    unit = rj.BasicUnit(features=8, conv=conv, norm=BatchNorm, strides=2, shortcut="average")
    x = (jax.random.uniform(jax.random.key(0), (4, 16, 16, 8)) + 1).astype(jnp.bfloat16)

    @jax.jit  # which leaves out what the average does not need
    def average(x):
        with nn.intercept_methods(note):
            unit.init(jax.random.key(0), x, train=False)
        return averages[0]

    means = np.asarray(x, np.float64).reshape(4, 8, 2, 8, 2, 8).mean((2, 4))
    np.testing.assert_allclose(average(x), means, rtol=1e-6)
