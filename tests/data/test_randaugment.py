"""RandAugment's operations equal Pillow's, on colour and grey, and are drawn equally often."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.data.randaugment import OPERATIONS, apply, draw_operations

apply_jitted = jax.jit(apply)


def picture(channels, seed=0):
    """Return smooth colours with some noise, uint8[24, 28, C]: no histogram is flat by itself."""
    rng = np.random.default_rng(seed)
    coarse = as_pillow(rng.integers(20, 230, (4, 5, channels), np.uint8))
    smooth = np.asarray(coarse.resize((28, 24), Image.Resampling.BICUBIC))
    smooth = smooth.reshape(24, 28, channels)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def changed(image, name, strength):
    images = jnp.asarray(image, jnp.float32)[None]
    which = jnp.asarray([OPERATIONS.index(name)])
    return np.asarray(apply_jitted(images, which, jnp.asarray([strength], jnp.float32))[0])


def as_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def affine(image, matrix):
    """Apply Pillow's affine map, which maps the output's (x, y) to a place in the input."""
    how = (Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return as_pillow(image).transform((28, 24), *how)


def about_the_centre(a, b, c, d, shift=(0.0, 0.0)):
    """Return a map about the centre for Pillow, which measures from the first pixel's corner."""
    x, y = 14.0, 12.0
    return (a, b, x - a * x - b * y + shift[0], c, d, y - c * x - d * y + shift[1])


COS, SIN = np.cos(np.radians(30 * 0.5)), np.sin(np.radians(30 * 0.5))
IN_PILLOW = [
    ("identity", 0.5, lambda i: as_pillow(i), 0),
    ("autocontrast", 0.5, lambda i: ImageOps.autocontrast(as_pillow(i)), 1),
    ("equalize", 0.5, lambda i: ImageOps.equalize(as_pillow(i)), 0),
    ("posterize", -0.5, lambda i: ImageOps.posterize(as_pillow(i), 6), 0),
    ("posterize", 1.0, lambda i: ImageOps.posterize(as_pillow(i), 4), 0),
    ("solarize", 0.5, lambda i: ImageOps.solarize(as_pillow(i), 128), 0),
    ("color", 0.5, lambda i: ImageEnhance.Color(as_pillow(i)).enhance(1.45), 1.5),
    ("color", -1.0, lambda i: ImageEnhance.Color(as_pillow(i)).enhance(0.1), 1.5),
    ("contrast", -0.5, lambda i: ImageEnhance.Contrast(as_pillow(i)).enhance(0.55), 1.5),
    ("brightness", 0.8, lambda i: ImageEnhance.Brightness(as_pillow(i)).enhance(1.72), 1),
    ("sharpness", 1.0, lambda i: ImageEnhance.Sharpness(as_pillow(i)).enhance(1.9), 1.5),
    ("sharpness", -1.0, lambda i: ImageEnhance.Sharpness(as_pillow(i)).enhance(0.1), 1.5),
    ("rotate", 0.5, lambda i: affine(i, about_the_centre(COS, SIN, -SIN, COS)), 1.5),
    ("shear_x", 1.0, lambda i: affine(i, about_the_centre(1, 0.3, 0, 1)), 1.5),
    ("shear_y", -1.0, lambda i: affine(i, about_the_centre(1, 0, -0.3, 1)), 1.5),
    ("translate_x", 0.5, lambda i: affine(i, (1, 0, 14 * 150 / 331, 0, 1, 0)), 1.5),
    ("translate_y", -1.0, lambda i: affine(i, (1, 0, 0, 0, 1, -24 * 150 / 331)), 1.5),
]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_operation_is_pillows(channels):
    flat = [np.full((24, 28, channels), level, np.uint8) for level in (0, 7, 255)]
    for image, operation in itertools.product([*flat, picture(channels)], IN_PILLOW):
        name, strength, theirs, tolerance = operation
        expected = np.asarray(theirs(image), np.float32).reshape(image.shape)
        found = changed(image, name, strength)
        difference = np.abs(found - expected)
        if OPERATIONS.index(name) >= OPERATIONS.index("rotate"):
            # At an edge Pillow takes half a pixel more of the image, where we blend with black.
            inside = changed(np.full_like(image, 255), name, strength) > 254
            assert inside.mean() > 0.5, name
            difference = difference[inside]
        assert difference.max() <= tolerance, (name, strength, difference.max())
    assert {name for name, *_ in IN_PILLOW} == set(OPERATIONS)
    for name in set(OPERATIONS) - {"autocontrast", "equalize"}:  # which have no strength
        np.testing.assert_allclose(changed(image, name, 0.0), image, atol=1e-3, err_msg=name)


def after_each(image, strength):
    """Return an image after each operation at that strength, to either side."""
    which = jnp.repeat(jnp.arange(len(OPERATIONS)), 2)
    signed = jnp.tile(jnp.asarray([strength, -strength], jnp.float32), len(OPERATIONS))
    images = jnp.broadcast_to(jnp.asarray(image, jnp.float32), (len(which), *image.shape))
    return np.asarray(apply_jitted(images, which, signed))


def nearest(images, results):
    """Return the index of the result that each image equals."""
    distance = np.stack([np.abs(images - result).mean((1, 2, 3)) for result in results])
    assert distance.min(0).max() < 1e-2
    return distance.argmin(0)


def drawn(image, count, operations, magnitude):
    many = jnp.broadcast_to(jnp.asarray(image, jnp.float32), (count, *image.shape))
    draw = jax.jit(partial(draw_operations, operations=operations, magnitude=magnitude))
    return np.asarray(draw(many, jax.random.key(0)))


@pytest.mark.slow
def test_operations_are_drawn_with_equal_chances_and_both_signs():
    image = picture(3)
    found = nearest(drawn(image, 1400, 1, magnitude=9), after_each(image, 0.9))
    by_operation = np.bincount(found // 2, minlength=len(OPERATIONS))
    assert by_operation.min() > 60  # 100 expected, standard deviation 9.6
    assert by_operation.max() < 140
    turned = np.bincount(found)[2 * OPERATIONS.index("rotate") :][:2]
    assert turned.min() > 20


@pytest.mark.slow
def test_operations_follow_one_another_and_each_is_drawn():
    image = picture(3)
    twice = np.concatenate([after_each(once, 0.5) for once in after_each(image, 0.5)])
    first, second = np.divmod(nearest(drawn(image, 200, 2, magnitude=5), twice), 28)
    # An identity in second place cannot be told from one in first place.
    assert min(len(set(first // 2)), len(set(second // 2))) >= len(OPERATIONS) - 1
    assert (first != second).mean() > 0.8  # 27 of 28 expected


def test_a_float64_run_may_use_it_on_colours():
    with jax.enable_x64(True):
        images = jnp.zeros((2, 8, 8, 3), jnp.float32)
        once = partial(draw_operations, operations=1, magnitude=9.0)
        assert jax.eval_shape(once, images, jax.random.key(0)).dtype == jnp.float32
