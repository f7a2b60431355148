"""Faults of convolution and pooling: edges that failed, and limits that were not said."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.ops import conv2d, max_pool


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (2, 2)])
def test_a_convolution_without_features_is_empty_as_the_reference_is(
    size: int, stride: int
) -> None:
    x, kernel = jnp.ones((300, size, size, 4)), jnp.ones((3, 3, 4, 0))

    def run(lowering: str) -> object:
        @jax.jit
        def passes(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
            def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
                return conv2d(x, kernel, stride=stride, padding=1, lowering=lowering)

            y, pullback = jax.vjp(conv, x, kernel)
            return y, *pullback(y)

        try:
            return [(array.shape, float(array.sum())) for array in passes(x, kernel)]
        except ArithmeticError as error:
            return repr(error)

    assert run("auto") == run("reference")


def test_a_kernel_without_taps_is_refused_in_a_line() -> None:
    with pytest.raises(ValueError) as raised:
        conv2d(jnp.ones((1, 4, 4, 2)), jnp.ones((0, 3, 2, 2)))
    assert str(raised.value) == "window must be at least 1, got (0, 3)"


def test_max_pool_says_that_forward_mode_needs_the_reference() -> None:
    x = jnp.ones((1, 4, 4, 1))
    jax.jvp(partial(max_pool, lowering="reference"), (x,), (x,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(max_pool, (x,), (x,))
    assert "jax.jvp" in (max_pool.__doc__ or "")
