"""The convolution is the reference's: values and both gradients; see test_algorithms.py too."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from type_checker import check

from resnet_jax.ops import conv2d, max_pool


def normal(seed: int, *shape: int, dtype: object = np.float64) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def passes(x: jax.Array, kernel: jax.Array, **options: object):
    """Value, input gradient and weight gradient of one random functional of the output."""

    @jax.jit
    def run(x, kernel):
        y, pullback = jax.vjp(lambda x, kernel: conv2d(x, kernel, **options), x, kernel)
        grad = normal(7, *y.shape).astype(y.dtype)
        return y, *pullback(grad)

    return run(x, kernel)


def assert_close(got: object, expected: object, relative: float) -> None:
    """Largest difference within ``relative`` of the largest value."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max(initial=0) <= relative * max(1.0, np.abs(b).max(initial=0))


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, tuple[int, ...]]:
    """Sizes 1 to 17, strides 1 to 3, kernels 1, 2, 3, 5, 7, paddings 0 to 3, odd channels."""
    kernel = draw(st.tuples(*[st.sampled_from([1, 2, 3, 5, 7])] * 2))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 2))
    least = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    return {
        "x": (
            draw(st.sampled_from([1, 2, 3])),
            *(draw(st.integers(smallest, 17)) for smallest in least),
            draw(st.sampled_from([1, 3, 4])),
        ),
        "kernel": kernel,
        "stride": draw(st.tuples(*[st.integers(1, 3)] * 2)),
        "padding": padding,
        "out": (draw(st.sampled_from([1, 2, 5])),),
    }


def check_against_reference(case: dict[str, tuple[int, ...]]) -> None:
    x = normal(1, *case["x"])
    kernel = normal(2, *case["kernel"], case["x"][3], *case["out"])
    options = {"stride": case["stride"], "padding": case["padding"]}
    expected = passes(x, kernel, lowering="reference", **options)
    assert_close(passes(x, kernel, **options), expected, 1e-9)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(convolutions())
def test_any_convolution_equals_the_reference(case: dict[str, tuple[int, ...]]) -> None:
    check_against_reference(case)


@pytest.mark.parametrize(
    ("shape", "k", "stride"),
    [
        ((4, 32, 32, 1), 7, 2),
        ((16, 8, 8, 64), 3, 1),
        ((16, 8, 8, 64), 3, 2),
        ((64, 2, 2, 128), 3, 1),
        ((16, 4, 4, 128), 1, 2),
    ],
)
def test_layers_of_a_resnet_equal_the_reference(shape, k, stride) -> None:
    x, kernel = normal(1, *shape), normal(2, k, k, shape[3], 32)
    options = {"stride": stride, "padding": k // 2}
    expected = passes(x, kernel, lowering="reference", **options)
    assert_close(passes(x, kernel, **options), expected, 1e-9)


def test_a_worked_example() -> None:
    """A 2x2 image of ones under a kernel of 1..9, padded by one.

    Each output sums the part of the kernel that lies on the image.
    """
    kernel = jnp.arange(1.0, 10).reshape(3, 3, 1, 1)
    y = conv2d(jnp.ones((1, 2, 2, 1)), kernel, padding=1)
    expected = [[5 + 6 + 8 + 9, 4 + 5 + 7 + 8], [2 + 3 + 5 + 6, 1 + 2 + 4 + 5]]
    np.testing.assert_array_equal(y[0, :, :, 0], expected)


@pytest.mark.parametrize(
    ("shape", "features", "stride"),
    [((0, 5, 5, 4), 6, 1), ((300, 8, 8, 4), 0, 1), ((300, 2, 2, 4), 0, 2), ((1, 4, 4, 0), 2, 1)],
)
def test_without_images_or_channels_it_is_as_the_reference_is(shape, features, stride):
    x, kernel = jnp.ones(shape), jnp.ones((3, 3, shape[-1], features))
    options = {"stride": stride, "padding": 1}
    expected = passes(x, kernel, lowering="reference", **options)
    assert_close(passes(x, kernel, **options), expected, 0)


def test_the_kernel_is_cast_to_the_images_dtype() -> None:
    y = conv2d(normal(1, 1, 4, 4, 2, dtype=np.float32), normal(2, 3, 3, 2, 2))
    assert y.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_a_kernel_of_numpys_types_is_differentiated_without_a_warning(dtype) -> None:
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], dtype)[..., None, None]
    with jax.enable_x64(False):
        got = jax.grad(lambda x: conv2d(x, kernel, padding=1).sum())(jnp.ones((1, 2, 2, 1)))
    # The first pixel meets the upper left four taps: 1 + 0 + 2 + 0 = 3.
    np.testing.assert_array_equal(got[0, :, :, 0], [[3, -3], [3, -3]])


@pytest.mark.parametrize(
    ("x", "kernel", "options", "message"),
    [
        ((2, 4, 4), (3, 3, 4, 1), {}, "takes x"),
        ((2, 4, 4, 3), (3, 3, 4, 1), {}, "takes x"),
        ((2, 4, 4, 3), (7, 7, 3, 1), {"padding": 1}, "does not fit"),
        ((2, 4, 4, 3), (7, 7, 3, 1), {"padding": 1, "lowering": "reference"}, "does not fit"),
        ((2, 4, 4, 3), (3, 3, 3, 1), {"stride": 0}, "stride .*at least 1\\b.* 0"),
        ((2, 4, 4, 3), (3, 3, 3, 1), {"padding": (0, -1)}, "padding .*at least 0"),
        ((1, 4, 4, 2), (0, 3, 2, 2), {}, r"^window must be at least 1, got \(0, 3\)$"),
        ((2, 4, 4, 3), (3, 3, 3, 1), {"lowering": "fast"}, "lowering .*auto.*reference"),
        ((2, 4, 4, 2), (3, 3, 1, 2), {"lowering": "fast", "groups": 2}, "lowering .*auto"),
    ],
)
def test_what_does_not_fit_is_named(x, kernel, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.ones(x), jnp.ones(kernel), **options)


def test_what_is_returned_has_the_shape_that_the_signature_states():
    checked = jaxtyping.jaxtyped(typechecker=check)
    x, kernel = jnp.ones((2, 7, 6, 4), jnp.bfloat16), jnp.ones((3, 2, 2, 6))
    out = jax.eval_shape(lambda x, k: checked(conv2d)(x, k, groups=2, padding=1), x, kernel)
    assert (out.shape, out.dtype) == ((2, 7, 7, 6), x.dtype)
    assert jax.eval_shape(checked(max_pool), x).shape == (2, 4, 3, 4)
