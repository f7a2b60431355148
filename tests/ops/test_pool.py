"""Max-pooling equals ``reduce_window``, and ties go to the first, as in torch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from resnet_jax.ops import max_pool


def images(seed: int, *shape: int, levels: int = 0) -> jax.Array:
    """Normal values, or few levels, so that most windows hold ties."""
    generator = np.random.default_rng(seed)
    if levels:
        return jnp.asarray(generator.integers(0, levels, shape), np.float64)
    return jnp.asarray(generator.standard_normal(shape))


def first_maximum(x: np.ndarray, grad: np.ndarray, window, stride, padding) -> np.ndarray:
    """torch's gradient, in loops: each window's goes to its first maximum, row by row."""
    out = np.zeros_like(x)
    for n, oh, ow, c in np.ndindex(grad.shape):
        best = None
        for i in range(window[0]):
            for j in range(window[1]):
                h, w = oh * stride[0] + i - padding[0], ow * stride[1] + j - padding[1]
                inside = 0 <= h < x.shape[1] and 0 <= w < x.shape[2]
                if inside and (best is None or x[n, h, w, c] > x[n, *best, c]):
                    best = h, w
        out[n, *best, c] += grad[n, oh, ow, c]
    return out


@st.composite
def pools(draw: st.DrawFn) -> dict:
    window = draw(st.tuples(*[st.integers(1, 4)] * 2))
    padding = tuple(draw(st.integers(0, w // 2)) for w in window)
    size = tuple(
        draw(st.integers(max(1, w - 2 * p), 9)) for w, p in zip(window, padding, strict=True)
    )
    return {
        "x": (draw(st.integers(1, 2)), *size, draw(st.sampled_from([1, 3]))),
        "window": window,
        "stride": draw(st.tuples(*[st.integers(1, 3)] * 2)),
        "padding": padding,
    }


@settings(max_examples=10, deadline=None, derandomize=True)
@given(pools(), st.sampled_from([0, 2]))
def test_any_pool_equals_reduce_window_and_torchs_rule(case: dict, levels: int) -> None:
    options = {k: v for k, v in case.items() if k != "x"}
    x = images(1, *case["x"], levels=levels)

    @jax.jit
    def run(x):
        y, pullback = jax.vjp(partial(max_pool, **options), x)
        grad = jnp.arange(1.0, y.size + 1).reshape(y.shape)
        return y, grad, pullback(grad)[0]

    y, grad, x_grad = run(x)
    chex.assert_trees_all_equal(y, max_pool(x, lowering="reference", **options))
    expected = first_maximum(np.asarray(x), np.asarray(grad), **options)
    chex.assert_trees_all_close(x_grad, expected, rtol=1e-12)


@pytest.mark.parametrize("lowering", ["auto", "reference"])
def test_ties_worked_out_by_hand(lowering: str) -> None:
    """3x3/2 over a 3x3 image, padded by 1: four windows, each with ties.

    5 5 0    windows: top left {5 5 5 1} first at (0, 0), top right {5 0 1 7} at (1, 2),
    5 1 7    bottom left {5 1 2 2} at (1, 0), bottom right {1 7 2 7} first at (1, 2).
    2 2 7
    """
    x = jnp.array([[5.0, 5, 0], [5, 1, 7], [2, 2, 7]]).reshape(1, 3, 3, 1)
    grad = jnp.array([[1.0, 10], [100, 1000]]).reshape(1, 2, 2, 1)

    @jax.jit
    def run(x, grad):
        y, pullback = jax.vjp(partial(max_pool, lowering=lowering), x)
        return y, *pullback(grad)

    y, grad = run(x, grad)
    chex.assert_trees_all_equal(y.reshape(2, 2), np.array([[5.0, 7], [5, 7]]))
    expected = np.array([[1.0, 0, 0], [100, 0, 1010], [0, 0, 0]])
    chex.assert_trees_all_equal(grad.reshape(3, 3), expected)


def test_transformations() -> None:
    """vmap, checkpoint and grad of grad, as by ``reduce_window``."""
    x = images(1, 2, 7, 6, 3)

    def each(lowering: str):
        def loss(x):
            return jnp.sum(jnp.sin(max_pool(x, lowering=lowering)))

        def steepness(x):
            return jnp.sum(jnp.cos(jax.grad(jax.checkpoint(loss))(x)) * x)

        stacked = jnp.stack([x, x**2])
        return jax.jit(jax.vmap(jax.grad(loss)))(stacked), jax.jit(jax.grad(steepness))(x)

    chex.assert_trees_all_close(each("auto"), each("reference"), rtol=1e-9, atol=1e-12)


def test_other_platforms_get_reduce_window() -> None:
    x = images(1, 2, 8, 8, 4)

    def step(x):
        y, pullback = jax.vjp(max_pool, x)
        return y, pullback(y)

    on_cpu, *others = (
        export.export(jax.jit(step), platforms=[platform])(x).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    )
    for module in others:
        assert "stablehlo.reduce_window" in module
        assert "stablehlo.select_and_scatter" in module
        assert module.count("stablehlo.maximum") == 1  # inside the reduce_window
    assert "stablehlo.reduce_window" not in on_cpu
    assert "stablehlo.select_and_scatter" not in on_cpu


def test_symbolic_batch() -> None:
    batch = export.symbolic_shape("batch")[0]
    spec = jax.ShapeDtypeStruct((batch, 8, 6, 3), np.float64)

    def step(x):
        y, pullback = jax.vjp(max_pool, x)
        return y, *pullback(y)

    exported = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(spec)
    for size in (1, 3):
        x = images(1, size, 8, 6, 3)
        chex.assert_trees_all_equal(exported.call(x), jax.jit(step)(x))


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4, 0)])
def test_no_images_or_no_channels(shape: tuple[int, ...]) -> None:
    assert jax.jit(jax.grad(lambda x: max_pool(x).sum()))(jnp.ones(shape)).shape == shape


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        ((4, 4, 1), {}, "takes floating-point"),
        ((1, 4, 4, 1), {"padding": 2}, "at most half a window"),
        ((1, 2, 2, 1), {"window": 3, "padding": 0}, "does not fit"),
        ((1, 2, 2, 1), {"window": 3, "padding": 0, "lowering": "reference"}, "does not fit"),
        ((1, 4, 4, 1), {"lowering": "fast"}, "lowering .*auto.*reference"),
    ],
)
def test_what_does_not_fit_is_named(x, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        max_pool(jnp.ones(x), **options)
