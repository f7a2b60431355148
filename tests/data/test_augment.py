"""Augmentation: by hand, against SciPy and Pillow, and the ranges of what is drawn."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from resnet_jax.data.augment import (
    _draw_affine,
    _draw_boxes,
    _draw_erased,
    augment,
    cut_out,
    mix,
    preprocess,
)
from resnet_jax.data.augment import warp as warp_each

warp = jax.jit(warp_each, static_argnames="fill")
draw_boxes = jax.jit(_draw_boxes, static_argnums=(0, 2))
draw_erased = jax.jit(_draw_erased, static_argnums=(0, 2))
IDENTITY = jnp.eye(2)[None]
ALL = {
    "flip": True,
    "crop": 2,
    "shift": 2.0,
    "rotation": 15.0,
    "scale": 0.1,
    "shear": 8.0,
    "elastic": 0.7,
    "erase": 0.5,
    "fill": 0.25,
}


def images_of(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def coordinates(count, height, width):
    """Images that hold, at each pixel, its row and its column."""
    places = np.stack(np.mgrid[:height, :width], -1).astype(np.float32)
    return jnp.asarray(np.broadcast_to(places, (count, height, width, 2)))


def maps_of(count, key, **settings):
    """The affine maps about the centre that `augment` drew: read off what became of coordinates."""
    side, centre, reach = 21, 10, 3
    moved = np.asarray(jax.jit(partial(augment, **settings))(coordinates(count, side, side), key))
    origin = moved[:, centre, centre]
    columns = [moved[:, centre + reach, centre], moved[:, centre, centre + reach]]
    matrix = np.stack([(column - origin) / reach for column in columns], -1)
    return matrix, origin - centre


def test_shift_by_hand():
    images = jnp.tile(jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1), (2, 1, 1, 1))
    # output[p] = image[p + (0, 1)]: everything moves one column to the left
    # half a row up: means of neighbouring rows, the last one with the background
    by = jnp.array([[0.0, 1.0], [0.5, 0.0]])
    moved, half = warp(images, jnp.tile(IDENTITY, (2, 1, 1)), by, fill=-1.0)[..., 0]
    np.testing.assert_array_equal(moved, [[2, 3, -1], [5, 6, -1], [8, 9, -1]])
    np.testing.assert_allclose(half, [[2.5, 3.5, 4.5], [5.5, 6.5, 7.5], [3, 3.5, 4]])


def test_warp_agrees_with_scipy():
    fill = 0.7
    rng = np.random.default_rng(3)
    images = images_of((8, 12, 9, 2))
    inverse = (np.eye(2) + rng.normal(0, 0.2, (8, 2, 2))).astype(np.float32)
    translation = rng.normal(0, 2, (8, 2)).astype(np.float32)
    ours = warp(images, jnp.asarray(inverse), jnp.asarray(translation), fill=fill)
    centre = np.array([5.5, 4.0])
    for n in range(8):
        offset = centre + translation[n] - inverse[n] @ centre
        for c in range(2):
            theirs = scipy.ndimage.affine_transform(
                np.asarray(images[n, :, :, c], np.float64),
                inverse[n],
                offset,
                order=1,
                mode="grid-constant",
                cval=fill,
            )
            np.testing.assert_allclose(ours[n, :, :, c], theirs, atol=2e-5)


def test_draws_keep_their_ranges_and_fill_them():
    settings = np.diag([3.0, 20.0, 0.2, 10.0]).tolist()  # shift, rotation, scale and shear alone
    draw_each = jax.jit(lambda key: [_draw_affine(2000, key, *one) for one in settings])
    shifted, rotated, scaled, sheared = draw_each(jax.random.key(0))

    matrix, move = shifted
    np.testing.assert_array_equal(matrix, np.broadcast_to(np.eye(2), (2000, 2, 2)))
    assert 2.95 < np.abs(move).max() <= 3
    assert np.abs(move.mean(0)).max() < 0.1  # standard error 0.039
    np.testing.assert_allclose(move.std(0), 3 / np.sqrt(3), rtol=0.05)

    matrix, move = rotated
    angle = np.degrees(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert 19.5 < np.abs(angle).max() <= 20.001
    assert abs(angle.mean()) < 0.7
    identity = np.broadcast_to(np.eye(2), matrix.shape)
    np.testing.assert_allclose(np.asarray(matrix) @ np.asarray(matrix.mT), identity, atol=1e-5)
    np.testing.assert_array_equal(move, 0)

    factor = 1 / scaled[0][:, 0, 0]
    assert 0.7999 <= factor.min() < 0.81
    assert 1.19 < factor.max() <= 1.2001

    matrix, _ = sheared
    slant = np.degrees(np.arctan(matrix[:, 1, 0]))
    assert 9.8 < np.abs(slant).max() <= 10.001
    np.testing.assert_array_equal(matrix[:, 0, 1], 0)


def test_augment_is_one_warp_of_what_was_drawn_about_the_centre():
    images, key = images_of((5, 9, 9, 1)), jax.random.key(6)
    geometric = {name: ALL[name] for name in ("shift", "rotation", "scale", "shear")}
    drawn = maps_of(5, key, **geometric)
    augmented = jax.jit(partial(augment, fill=0.5, **geometric))(images, key)
    np.testing.assert_allclose(augmented, warp(images, *drawn, fill=0.5), atol=1e-4)


def test_without_settings_nothing_is_changed_or_traced():
    images, labels, key = images_of((2, 6, 6, 1)), jnp.array([0, 1]), jax.random.key(0)
    assert augment(images, key) is images
    assert not jax.make_jaxpr(augment)(images, key).eqns
    mixed = mix(images, labels, key, num_classes=2)
    assert mixed[0] is images
    assert mixed[1] is labels


def test_a_key_decides_each_image_in_one_trace():
    images = jnp.broadcast_to(images_of((12, 10, 3)), (4, 12, 10, 3))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def jitted(key):
        return augment(images, key, **ALL)

    first = jitted(jax.random.key(1))
    np.testing.assert_array_equal(first, jitted(jax.random.key(1)))
    assert np.abs(first - jitted(jax.random.key(2))).max() > 0.1
    assert np.abs(first[0] - first[1]).max() > 0.1  # each image its own draw
    chex.assert_shape(first, (4, 12, 10, 3))
    chex.assert_type(first, jnp.float32)
    chex.assert_tree_all_finite(first)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 300), (300, 100)])
def test_erased_rectangles_have_the_area_and_aspect_of_torchvision(height, width):
    masks = np.asarray(draw_erased((500, height, width), jax.random.key(0), 1.0))
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    np.testing.assert_array_equal(masks.sum((1, 2)), rows * columns)  # solid rectangles
    share = rows * columns / (height * width)
    assert 0.0195 < share.min() < 0.03  # whole pixels: a little to either side of 2 and 33 %
    assert 0.31 < share.max() < 0.335
    assert abs(share.mean() - 0.175) < 0.015  # uniform
    aspect = rows / columns
    assert aspect.min() > 0.29
    assert aspect.max() < 3.45
    if height == width:  # tall and wide ones are near one another in number
        assert 0.4 < (aspect > 1).mean() < 0.6
    tops, lefts = masks.any(2).argmax(1), masks.any(1).argmax(1)
    assert tops.min() < 5
    assert (tops + rows).max() > height - 5
    assert lefts.min() < 5
    assert (lefts + columns).max() > width - 5


def test_erasing_takes_the_share_of_images_and_the_background_it_was_told():
    images = jnp.ones((2000, 8, 8, 2))
    erased = jax.jit(partial(augment, erase=0.3, fill=-4.0))(images, jax.random.key(0))
    hit = np.asarray((erased != 1).any((1, 2, 3)))
    assert abs(hit.mean() - 0.3) < 0.05  # five standard errors
    assert set(np.unique(erased)) == {-4.0, 1.0}
    np.testing.assert_array_equal(erased[..., 0], erased[..., 1])  # all channels together


@pytest.mark.parametrize("size", [32, 16, 28])
def test_preprocess_resizes_as_pillow(size):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    ours = preprocess(jnp.asarray(pixels), image_size=size, mean=0.5, std=0.5)
    chex.assert_shape(ours, (3, size, size, 1))
    chex.assert_type(ours, jnp.float32)
    for image, theirs in zip(ours, pixels, strict=True):
        grey = Image.fromarray(theirs[..., 0].astype(np.float32))
        resized = np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(image[..., 0], resized / 127.5 - 1, atol=1e-5)


def test_preprocess_normalises_each_channel():
    pixels = jnp.asarray([[[[0, 255]]]], jnp.uint8)
    ours = preprocess(pixels, mean=np.array([0.25, 0.5]), std=np.array([0.5, 0.25]))
    np.testing.assert_allclose(ours[0, 0, 0], [-0.5, 2.0])
    plain = preprocess(pixels, mean=(0.25, 0.5), std=(0.5, 0.25))  # as `DataConfig` has them
    np.testing.assert_array_equal(plain, ours)
    np.testing.assert_allclose(preprocess(pixels)[0, 0, 0], [0.0, 1.0])
    chex.assert_trees_all_close(jax.jit(preprocess)(pixels), preprocess(pixels))


def test_preprocess_cuts_out_the_middle():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3), np.uint8)
    ours = preprocess(pixels, image_size=4, center_crop=True)
    np.testing.assert_allclose(ours * 255, pixels[:, 2:6, 2:6], atol=1e-4)


# Crops and flips


def test_flip_mirrors_half_of_the_images():
    images = images_of((400, 2, 3, 1))
    flipped = np.asarray(jax.jit(partial(augment, flip=True))(images, jax.random.key(0)))
    images = np.asarray(images)
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250  # five standard deviations


def test_crop_is_a_window_of_the_padded_image_and_every_window_comes():
    image = np.arange(1.0, 13.0, dtype=np.float32).reshape(1, 3, 4, 1)
    padded = np.pad(image[0, :, :, 0], 2, constant_values=-1)
    windows = {
        padded[top : top + 3, left : left + 4].tobytes(): (top, left)
        for top in range(5)
        for left in range(5)
    }
    many = jnp.broadcast_to(image, (500, 3, 4, 1))
    crop = jax.jit(partial(augment, crop=2, fill=-1.0))
    cropped = np.asarray(crop(many, jax.random.key(1)))
    seen = [windows[c[..., 0].tobytes()] for c in cropped]  # each is one of the 25
    assert len(set(seen)) == 25
    assert max(seen.count(place) for place in set(seen)) < 45  # 20 expected


def test_a_cut_is_resized_as_pillow_resizes_a_box():
    size = (9, 7)  # for the last box, more rows and columns than it has
    images = images_of((3, 20, 16, 2)) * 255
    boxes = np.array([[0, 0, 20, 16], [3.25, 1.5, 10, 13.75], [15, 9, 5, 4.5]], np.float32)
    ours = jax.jit(cut_out, static_argnums=2)(images, jnp.asarray(boxes), size)
    for image, (top, left, tall, wide), cut in zip(images, boxes, ours, strict=True):
        for c in range(2):
            theirs = Image.fromarray(np.asarray(image[..., c])).resize(
                size[::-1], Image.Resampling.BILINEAR, (left, top, left + wide, top + tall)
            )
            np.testing.assert_allclose(cut[..., c], np.asarray(theirs), atol=0.02)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 75), (100, 25)])
def test_crops_have_the_areas_and_aspects_of_inception(height, width):
    boxes = np.asarray(draw_boxes((3000, height, width), jax.random.key(0), 0.08), np.float64)
    top, left, tall, wide = boxes.T
    assert boxes.min() >= 0
    assert (top + tall).max() <= height + 1e-3
    assert (left + wide).max() <= width + 1e-3
    share, aspect = tall * wide / (height * width), wide / tall
    assert 0.0795 < share.min() < 0.09
    assert 0.745 < aspect.min() < aspect.max() < 1.34
    # The largest crop of 3:4 that 100x25 holds is 25 wide and 33 tall, that of 4:3 of 50x75 is 67
    # wide and 50 tall.
    most = {64: 1, 50: 8 / 9, 100: 1 / 3}[height]
    assert 0.98 * most < share.max() < most + 2e-3
    if height == width:
        assert abs(share.mean() - 0.54) < 0.02
        small = share < 0.5  # whose aspect nothing cuts
        assert abs(np.log(aspect[small]).mean()) < 0.02
        assert abs((left[small] / (width - wide[small])).mean() - 0.5) < 0.03


def test_a_resized_crop_is_a_cut_of_the_size_asked_for():
    images = coordinates(50, 48, 40)  # rows and columns tell which cut an image became
    crop = jax.jit(partial(augment, resized_crop=0.3, image_size=8))
    cropped = np.asarray(crop(images, jax.random.key(0)))
    assert cropped.shape == (50, 8, 8, 2)
    inside = cropped[:, 2:-2, 2:-2]
    for axis, side in ((1, 48), (2, 40)):
        steps = np.diff(inside[..., axis - 1], axis=axis)
        np.testing.assert_allclose(steps.std((1, 2)), 0, atol=0.1)
        assert 0.3 * side / 8 < steps.min() < steps.max() < side / 8 + 0.1
        assert len(np.unique(steps.mean((1, 2)).round(3))) > 30  # each image its own


@pytest.mark.slow
def test_settings_do_not_disturb_one_another_s_draws():
    images, key = images_of((8, 6, 6, 1)), jax.random.key(5)
    flipped = augment(images, key, flip=True)
    both = jax.jit(partial(augment, flip=True, shift=2.0))(images, key)
    moved = warp(flipped, *maps_of(8, key, shift=2.0))
    np.testing.assert_allclose(both, moved, atol=1e-5)


# Mixed images


@pytest.mark.parametrize("settings", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_an_image_and_its_label_are_mixed_in_the_same_share(settings):
    """Image n is n everywhere, so that its mean tells how much of it is left."""
    count = 600
    numbers = np.arange(count, dtype=np.float32)[:, None, None, None]
    images, labels = np.broadcast_to(numbers, (count, 20, 20, 1)), np.arange(count) % 7
    mixed, targets = jax.jit(partial(mix, num_classes=7, **settings))(
        images, labels, jax.random.key(0)
    )
    mean = np.asarray(mixed, np.float64).mean((1, 2, 3))
    own = np.arange(count)
    before = np.roll(own, 1)
    kept = (mean - before) / (own - before)
    assert -1e-3 < kept.min() < kept.max() < 1 + 1e-3
    expected = np.zeros((count, 7))
    np.add.at(expected, (own, own % 7), kept)
    np.add.at(expected, (own, before % 7), 1 - kept)
    np.testing.assert_allclose(targets, expected, atol=2e-3)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    pasted = np.asarray(mixed[1:, :, :, 0]) != own[1:, None, None]
    if "cutmix" in settings:
        values = np.unique(np.asarray(mixed)[5])
        assert set(values) <= {4.0, 5.0}  # pixels are moved, not blended
        rows, columns = pasted.any(2).sum(1), pasted.any(1).sum(1)
        np.testing.assert_array_equal(pasted.sum((1, 2)), rows * columns)
        # Uniform shares, of which what lies outside is cut off.
        assert 0.2 < 1 - kept.mean() < 0.5
    else:
        a = settings["mixup"]
        assert abs(kept.mean() - 0.5) < 0.1
        assert abs(kept.var() - 1 / (4 * (2 * a + 1))) < 0.02  # of Beta(a, a)


@pytest.mark.slow
def test_both_mixtures_take_turns():
    images = jnp.broadcast_to(jnp.arange(200.0)[:, None, None, None], (200, 8, 8, 1))
    both = jax.jit(partial(mix, num_classes=2, mixup=1, cutmix=1))
    mixed, _ = both(images, jnp.zeros(200, jnp.int32), jax.random.key(0))
    blended = (np.asarray(mixed) % 1 != 0).any((1, 2, 3))
    assert 65 < blended.sum() < 135


def test_shapes_that_signatures_state_are_checked_within_tests():
    with pytest.raises(jaxtyping.TypeCheckError, match="labels"):
        mix(jnp.zeros((2, 4, 4, 1)), jnp.zeros(3, int), jax.random.key(0), num_classes=2, mixup=1)
