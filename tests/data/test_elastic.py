"""Elastic distortion: moves worked out by hand, and size and smoothness of random moves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from test_augment import IDENTITY, coordinates

from resnet_jax.data.augment import _draw_elastic, augment, warp

draw_elastic = jax.jit(_draw_elastic, static_argnums=(0, 2))


def test_elastic_moves_by_hand():
    image = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    # The first row is read half a row below, the middle pixel one column to its right.
    moves = np.zeros((1, 2, 3, 3), np.float32)
    moves[0, 0, 0], moves[0, 1, 1, 1] = 0.5, 1.0
    moved = jax.jit(warp)(image, IDENTITY, jnp.zeros((1, 2)), moves)[0, :, :, 0]
    np.testing.assert_allclose(moved, [[2.5, 3.5, 4.5], [4, 6, 6], [7, 8, 9]])


def test_elastic_moves_are_as_large_and_as_smooth_as_told():
    moves = np.asarray(draw_elastic((2000, 28, 19), jax.random.key(0), 1.5))
    chex.assert_shape(moves, (2000, 2, 28, 19))
    rms = np.sqrt((moves**2).mean(0))
    np.testing.assert_allclose(rms, 1.5, rtol=0.08)  # at every pixel, also at the rim: 5 deviations
    assert np.abs(moves.mean(0)).max() < 0.17  # 5 deviations
    pairs = (moves[:, :, 8:] * moves[:, :, :-8]).mean((0, 2, 3)) / 1.5**2
    # Noise smoothed by a Gaussian of 4 pixels has covariance exp(-d^2 / (4 * 4^2)): 1/e at 8.
    np.testing.assert_allclose(pairs, np.exp(-1), atol=0.04)
    assert np.abs(np.diff(moves, axis=3)).max() < 1.5  # neighbours move together
    assert abs((moves[:, 0] * moves[:, 1]).mean()) < 0.05  # rows and columns do not


def test_elastic_is_added_to_the_affine_map_in_one_resampling():
    images, key = coordinates(6, 21, 21), jax.random.key(3)
    affine, elastic = {"rotation": 15.0, "shift": 2.0}, {"elastic": 0.6}

    @jax.jit
    def each(images, key):
        options = affine | elastic, affine, elastic
        moves = _draw_elastic((6, 21, 21), jax.random.fold_in(key, 7), 0.6)
        return *(augment(images, key, fill=jnp.nan, **o) for o in options), moves

    both, moved, alone, moves = map(np.asarray, each(images, key))
    for found, before in ((both, moved), (alone, images)):
        within = np.isfinite(found) & np.isfinite(before)  # finite only where read inside
        assert within.mean() > 0.6
        difference = np.where(within, found - before - np.moveaxis(moves, 1, -1), 0)
        np.testing.assert_allclose(difference, 0, atol=1e-4)
