"""A digit on paper is found and redrawn as MNIST's digits are; MNIST's own stay as they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import resnet_jax as rj
from experiments.photos.photograph import photograph
from resnet_jax.data.digit import SIDE, find_digit


@pytest.fixture(scope="module")
def digits():
    return rj.load_dataset("mnist_5k").test.images


def likeness(found: np.ndarray, digit: np.ndarray) -> float:
    """Return Dice's coefficient of the ink of two digits."""
    one, other = found > 127, digit > 127
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_digits_of_mnist_stay_bit_for_bit(digits):
    for digit in digits:
        found = find_digit(Image.fromarray(digit[..., 0]))
        np.testing.assert_array_equal(found.image, digit)
        assert found.how == "as it is"


def test_digits_on_paper_are_found(digits):
    """Turned and drawn with other pens, they are not equal, but nearer than another digit is."""
    rng = np.random.default_rng(0)
    pairs = [(find_digit(photograph(digit[..., 0], rng)), digit) for digit in digits[::50]]
    near = [likeness(found.image, digit) for found, digit in pairs]
    assert np.median(near) > 0.75
    assert min(near) > 0.5
    strangers = [likeness(found.image, digits[7]) for found, _ in pairs]
    assert np.median(strangers) < 0.5
    assert all(found.how.startswith("dark ink at ") for found, _ in pairs)


def test_light_ink_on_a_board_is_as_good_as_dark_ink_on_paper(digits):
    rng = np.random.default_rng(1)
    for digit in digits[:60:20]:
        found = find_digit(ImageOps.invert(photograph(digit[..., 0], rng)))
        assert found.how.startswith("light ink at ")
        assert likeness(found.image, digit) > 0.5


def test_bold_digits_are_found_in_drawings(digits):
    """Ink that covers most of what surrounds a pixel is not taken for paper."""
    bold = np.argsort((digits > 127).sum(axis=(1, 2, 3)))[-10:]
    for digit in digits[bold]:
        found = find_digit(Image.fromarray(digit[..., 0]).resize((280, 280)))
        assert found.how.startswith("light ink at ")
        assert likeness(found.image, digit) > 0.7


def test_a_shadow_is_not_the_digit(digits):
    """Thin ink lies beside a far larger shadow, which is half as bright as the paper."""
    rows, columns = np.mgrid[0:240, 0:320]
    paper = 240 - 120 / (1 + np.exp((columns + rows / 3 - 140) / 8))
    paper[100:104, 200:260] = paper[60:140, 228:232] = 60  # a plus sign
    found = find_digit(Image.fromarray(paper.astype(np.uint8)))
    assert found.how == "dark ink at 200-260, 60-140 of 320x240"


@pytest.mark.parametrize("level", [0, 128, 255])
def test_empty_paper_is_an_empty_image(level):
    noise = np.random.default_rng(0).normal(level, 1, (60, 80))
    found = find_digit(Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)))
    assert found.how == "no ink found"
    assert not found.image.any()


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([(), (3,)]), st.integers(0, 999))
def test_any_picture_gives_an_image(width, height, channels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    found = find_digit(Image.fromarray(pixels))
    assert found.image.shape == (SIDE, SIDE, 1)
    assert found.image.dtype == np.uint8
