"""Image files of every kind that people have, and of kinds that cannot be read."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from resnet_jax.data.image import MAX_BYTES, DecodeSpec, read_image
from resnet_jax.data.walk import find_images
from resnet_jax.errors import ResNetJaxError

SPEC = DecodeSpec((4, 4, 1))
GREY = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_grey_is_read_as_it_is(tmp_path):
    path = save(Image.fromarray(GREY), tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path, SPEC)[..., 0], GREY)
    assert read_image(path, SPEC).dtype == np.uint8
    np.testing.assert_array_equal(read_image(path, SPEC, invert=True)[..., 0], 255 - GREY)
    np.testing.assert_array_equal(
        read_image(path, DecodeSpec((4, 4, 3))), np.stack([GREY] * 3, axis=-1)
    )


def test_colour_becomes_grey_by_luma(tmp_path):
    path = save(Image.new("RGB", (4, 4), (200, 100, 50)), tmp_path / "a.png")
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    np.testing.assert_allclose(read_image(path, SPEC), round(luma), atol=1)


def test_other_sizes_keep_their_proportions_and_are_centred_on_black(tmp_path):
    path = save(Image.new("L", (80, 40), 255), tmp_path / "a.png")
    expected = [[0] * 4, [255] * 4, [255] * 4, [0] * 4]
    np.testing.assert_array_equal(read_image(path, SPEC)[..., 0], expected)


def test_an_alpha_channel_that_hides_something_needs_a_decision(tmp_path):
    image = Image.fromarray(GREY).convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    with pytest.raises(ResNetJaxError, match="transparent pixels"):
        read_image(save(image, tmp_path / "a.png"), SPEC)


@pytest.mark.parametrize("how", ["exif", "xmp"])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_orientation_is_found_wherever_it_is(how, ending, tmp_path):
    image = Image.fromarray(np.repeat(np.repeat(GREY, 8, 0), 8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    options: dict = {"exif": exif} if how == "exif" else {"xmp": xmp}
    if ending == "png" and how == "xmp":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    if ending == "tif" and how == "xmp":
        options = {"tiffinfo": {700: xmp}}
    path = save(image, tmp_path / f"a.{ending}", quality=100, **options)
    found = read_image(path, SPEC)[..., 0].astype(int)
    np.testing.assert_allclose(found, np.rot90(GREY, -1), atol=12)


def test_a_giant_is_not_opened(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ResNetJaxError, match="more than 1,073,741,824 bytes"):
        read_image(tmp_path / "a.png", SPEC)


def test_levels_with_a_sign_are_refused(tmp_path):
    path = save(Image.fromarray(GREY), tmp_path / "a.tif", tiffinfo={339: 2})
    with pytest.raises(ResNetJaxError, match="signed levels"):
        read_image(path, SPEC)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (header, b"IDAT" + zlib.compress(b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"", "empty"),
        ("a.png", b"hello", "no image"),
        ("a.txt", b"a text", "no image"),
        ("a.png", None, "No such file"),
        ("a.png", png_header(100_000, 100_000), "pixels"),
        ("a.png", png_header(4, 4), "cannot be read"),
    ],
)
def test_what_is_no_image_is_one_line_that_names_it(name, content, reason, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ResNetJaxError) as error:
        read_image(path, SPEC)
    assert str(path) in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_image_is_refused_or_whole(tmp_path):
    path = save(Image.fromarray(GREY), tmp_path / "a.png")
    whole, refused = path.read_bytes(), 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            # Pillow does without the checksums after the last pixel.
            np.testing.assert_array_equal(read_image(path, SPEC)[..., 0], GREY)
        except ResNetJaxError:
            refused += 1
    assert refused > whole.index(b"IDAT")


def test_animations_and_floats_are_refused(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ResNetJaxError, match="2 frames"):
        read_image(path, SPEC)
    path = save(Image.fromarray(GREY.astype(np.float32)), tmp_path / "a.tif")
    with pytest.raises(ResNetJaxError, match="mode F"):
        read_image(path, SPEC)


def test_folders_give_their_images_and_an_empty_one_is_named(tmp_path):
    for name in ("b.png", "a.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    other = tmp_path / "empty"
    other.mkdir()
    assert find_images([tmp_path]) == [tmp_path / "a.PNG", tmp_path / "b.png"]
    assert find_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    with pytest.raises(ResNetJaxError, match="empty holds no image"):
        find_images([other])
