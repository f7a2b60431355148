"""Faults of convolution and pooling: a limit that was not stated, and lost precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.ops import conv2d, max_pool


def test_max_pool_says_that_forward_mode_needs_the_reference():
    x = jnp.ones((1, 4, 4, 1))
    jax.jvp(partial(max_pool, lowering="reference"), (x,), (x,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(max_pool, (x,), (x,))
    assert "jax.jvp" in (max_pool.__doc__ or "")


@pytest.mark.parametrize(
    ("count", "size", "channels"),
    [
        pytest.param(300, 2, 16, id="winograd_2"),
        pytest.param(2, 3, 16, id="im2col"),
        pytest.param(2, 32, 12, id="shift_add"),
        pytest.param(2, 32, 16, id="winograd_4"),
    ],
)
def test_in_bfloat16_the_gradient_of_a_kernel_is_float32(count, size, channels):
    """The gradient was rounded to bfloat16, with 200 times the error."""
    random, shape = np.random.default_rng(0), (count, size, size, channels)
    x, cotangent = (jnp.asarray(random.normal(size=shape), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(random.normal(size=(3, 3, channels, channels)), jnp.float32)
    conv = partial(conv2d, x, padding=1, lowering="avx2")
    narrow = jax.vjp(conv, kernel)[1](cotangent)[0]
    assert narrow.dtype == jnp.float32
    images, weights = np.asarray(x, float), np.asarray(cotangent, float)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(3, 3):
        read = padded[:, i : i + size, j : j + size]
        exact = np.einsum("nhwc,nhwk->ck", read, weights)
        np.testing.assert_allclose(narrow[i, j], exact, atol=1e-5 * abs(exact).max())


def test_in_bfloat16_tiles_are_as_exact_as_products():
    """Winograd's transforms were rounded to bfloat16 too, with three times the error."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 32, 32, 48)).astype(jnp.bfloat16)  # a quarter of it has no tiles
    kernel = random.normal(size=(3, 3, 48, 48)).astype(jnp.bfloat16)

    def error(images):
        wide = conv2d(images.astype(np.float32), kernel, padding=1, lowering="reference")
        narrow, exact = conv2d(images, kernel, padding=1, lowering="avx2"), np.asarray(wide)
        return np.sqrt(np.mean((np.float32(narrow) - exact) ** 2)) / exact.std()

    assert error(x) < 1.1 * error(x[:, :16, :16])
