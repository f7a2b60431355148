"""Strokes become images as MNIST's digits were made."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.data.digit import MAX_POINTS, PEN, centre, draw_strokes, parse_strokes


def strokes(*lines):
    return [np.array(line, float) for line in lines]


def box(image):
    """Return the height and width of the ink."""
    return tuple(int(np.ptp(np.flatnonzero(image.any(axis=axis)))) + 1 for axis in (1, 0))


def middle(image):
    return np.array(scipy.ndimage.center_of_mass(image.astype(float)))


@pytest.fixture(scope="module")
def digits():
    return rj.load_dataset("mnist_5k").train.images[..., 0]


def test_real_digits_do_not_move(digits):
    # A digit returns to its place in MNIST, even from another place on a larger page.
    for digit in (*digits[::4], np.zeros((28, 28), np.uint8)):  # and an image without ink
        np.testing.assert_array_equal(centre(digit), digit)
    rng = np.random.default_rng(0)
    for digit in digits[::40]:
        page = np.zeros((60, 60), np.uint8)
        top, left = rng.integers(0, 32, 2)
        page[top : top + 28, left : left + 28] = digit
        np.testing.assert_array_equal(centre(page), digit)


def test_the_pen_is_as_wide_as_those_of_real_digits(digits):
    """A stroke's width is twice the distance from ridge to edge, on a grid four times finer."""
    widths = []
    for digit in digits[::20]:
        ink = np.kron(digit, np.ones((4, 4))) > 127
        depth = scipy.ndimage.distance_transform_edt(ink)
        ridge = ink & (depth == scipy.ndimage.maximum_filter(depth, 9))
        widths.append(2 * np.median(depth[ridge]) / 4)
    assert np.median(widths) == pytest.approx(PEN, abs=0.25)


def test_a_vertical_line():
    image = draw_strokes(strokes([(40, 10), (40, 90)]))
    assert box(image) == (20, 3)
    # 2.5 pixels wide: two full columns and half of one, the first of them at
    # floor(14 - (0 * 255 + 1 * 255 + 2 * 128) / 638 + 0.5) = 13.
    expected = np.zeros((16, 28), np.uint8)
    expected[:, 13:16] = 255, 255, 128
    np.testing.assert_array_equal(image[7:23], expected)


def test_the_outline_of_a_square():
    image = draw_strokes(strokes([(0, 0), (9, 0), (9, 9), (0, 9), (0, 0)])).astype(int)
    assert box(image) == (20, 20)
    assert (image[8:21, 8:20] == 0).all()  # only the sides, 2.5 pixels wide, have ink
    # A square of 20 pixels with round corners, minus a square of 15.
    area = 20**2 - (4 - math.pi) * 1.25**2 - 15**2
    assert image.sum() / 255 == pytest.approx(area, rel=0.01)


def test_proportions_are_kept():
    # 100 by 50: the points span 17.5 by 8.75 pixels, the ink 20 by 11.25.
    assert box(draw_strokes(strokes([(0, 0), (100, 50), (0, 50)]))) == (12, 20)


def test_an_l_is_centred_by_mass_and_not_by_its_box():
    image = draw_strokes(strokes([(0, 0), (0, 10), (4, 10)]))
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    # Bars of 17.5 and 7 pixels: 2/7 of the mass is in the foot. Downwards from the ink's edge it
    # lies at 10 + 2/7 * 8.75 = 12.5, to the right at 1.25 + 2/7 * 3.5 = 2.25. That point goes to
    # the middle of pixel 14, which is at 14.5, by whole pixels.
    assert (rows[0], columns[0]) == (2, 12)
    assert np.abs(middle(image) - 14).max() <= 0.5 + 1e-9


def test_ink_stays_in_the_image():
    # An L with a heavy foot: its mass would be at pixel 14 only if its top were outside.
    ink = np.zeros((20, 20), np.uint8)
    ink[:, :2] = 255
    ink[17:] = 255
    ink[:17, :2] = 1
    image = centre(ink)
    assert image.sum() == ink.sum()
    assert box(image) == (20, 20)


def test_a_dot_is_as_large_as_the_pen():
    image = draw_strokes(strokes([(812.0, 3.0)]))
    assert image.sum() / 255 == pytest.approx(math.pi * (PEN / 2) ** 2, rel=0.05)
    np.testing.assert_allclose(middle(image), 14, atol=0.5)


points = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=8)
SCALES = [2**-10, 0.5, 256]


@settings(deadline=None, max_examples=40)
@given(st.lists(points, min_size=1, max_size=3), st.sampled_from(SCALES), st.integers(-50, 50))
def test_size_and_place_do_not_matter(lines, scale, shift):
    given_strokes = strokes(*lines)
    image = draw_strokes(given_strokes)
    moved = draw_strokes([scale * stroke + shift for stroke in given_strokes])
    np.testing.assert_array_equal(moved, image)
    extent = np.ptp(np.concatenate(given_strokes), axis=0).max()
    assert max(box(image)) == (20 if extent else 3)
    ink = image.any(axis=1), image.any(axis=0)
    for axis in (0, 1):
        if not (ink[axis][0] or ink[axis][-1]):
            assert abs(middle(image)[axis] - 14) <= 0.5 + 1e-9


# Not lists, lists of other depths, not pairs, not numbers, numbers not finite or too large.
OTHERS = f"""
    7 "strokes" [] [[]] [[],[[1,2]]] [[1,2]] [[[1,2,3]]] [[[1,2],[3]]] [[[1,2]],[[[1],[2]]]]
    [[["1","2"]]] [[[true,false]]] [[[null,1]]] [[{{}}]] [{{}}]
    [[[NaN,0]]] [[[0,Infinity]]] [[[1e300,0]]] [[[{10**30},0]]]
"""


def test_other_values_are_refused_and_take_no_memory():
    """NumPy padded each string of a list to the longest: 800 MB for a body of 0.1 MB."""
    many = MAX_POINTS + 1
    large = [[["a" * 100_000, *["a"] * 1000]], "a" * 300_000, [[]] * 300_000]
    large += [[[[0, 0]]] * many, [[[0, 0]] * many]]
    for found in (*map(json.loads, OTHERS.split()), *large):
        tracemalloc.start()
        try:
            assert "strokes must be lists" in refused(parse_strokes, found)
            assert tracemalloc.get_traced_memory()[1] < 10e6
        finally:
            tracemalloc.stop()
