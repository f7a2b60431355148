"""Image files of every kind that people have, and of kinds that cannot be read."""

import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from make_datasets import encoded, picture, png, refused
from PIL import Image, PngImagePlugin

from resnet_jax.data.image import MAX_BYTES, DecodeSpec, read_bytes, read_image
from resnet_jax.data.walk import find_images
from resnet_jax.errors import ResNetJaxError

SPEC = DecodeSpec((4, 4, 1))
GREY = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)


def read(source: Path | bytes, **options) -> np.ndarray:
    return read_image(source, SPEC, **options)[..., 0]


def test_grey_is_read_as_it_is_colour_by_luma_and_other_sizes_are_centred_on_black():
    grey = encoded(GREY)
    np.testing.assert_array_equal(read(grey), GREY)
    assert read(grey).dtype == np.uint8
    np.testing.assert_array_equal(read(grey, invert=True), 255 - GREY)
    three = read_image(grey, DecodeSpec((4, 4, 3)))
    np.testing.assert_array_equal(three, np.stack([GREY] * 3, axis=-1))
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    colour = encoded(np.full((4, 4, 3), (200, 100, 50), np.uint8))
    np.testing.assert_allclose(read(colour), round(luma), atol=1)
    wide = encoded(np.full((40, 80), 255, np.uint8))
    np.testing.assert_array_equal(read(wide), [[0] * 4, [255] * 4, [255] * 4, [0] * 4])


def test_a_png_is_read_with_a_damaged_profile_and_with_text_after_its_pixels():
    rows = np.insert(GREY, 0, 0, axis=1).tobytes()  # each begins with filter type 0
    np.testing.assert_array_equal(read(png((4, 4), rows, iCCP=b"name\0\1")), GREY)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="6"/>'
    content = png((4, 4), rows, IDAT=b"", iTXt=xmp)  # in this order
    np.testing.assert_array_equal(read(content), np.rot90(GREY, -1))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_orientation_is_found_in_xmp_too(kind):
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    options: dict = {"tiffinfo": {700: xmp}} if kind == "tiff" else {"xmp": xmp}
    if kind == "png":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    content = encoded(np.kron(GREY, np.ones((8, 8), np.uint8)), kind, quality=100, **options)
    np.testing.assert_allclose(read(content).astype(int), np.rot90(GREY, -1), atol=12)


@pytest.mark.parametrize("compression", [1, 8])
def test_planes_of_16_bits_are_right_or_refused(compression):
    """Pillow takes each byte of uncompressed planes for a level."""
    levels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    planes = [(levels[..., k].astype("<u2") * 257).tobytes() for k in range(3)]
    planes = [zlib.compress(plane) if compression == 8 else plane for plane in planes]
    offsets = [152 + sum(map(len, planes[:k])) for k in range(3)]
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 3, 122), (259, 3, 1, compression)]
    tags += [(262, 3, 1, 2), (273, 4, 3, 128), (277, 3, 1, 3), (279, 4, 3, 140), (284, 3, 1, 2)]
    head = b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(struct.pack("<HHII", *t) for t in tags)
    content = head + bytes(4) + struct.pack("<3H6I", 16, 16, 16, *offsets, *map(len, planes))
    content += b"".join(planes)
    if compression == 1:
        assert "has planes of 16 bits" in refused(read, content)
    else:
        np.testing.assert_allclose(read_image(content, DecodeSpec((16, 16, 3))), levels, atol=1)


def test_a_giant_is_not_opened(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "more than 1,073,741,824 bytes" in refused(read, tmp_path / "a.png")


NOISE = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - NOISE)]}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.png", None, "No such file"),
        ("empty.png", b"", "empty"),
        ("text.png", b"hello", "no image"),
        ("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "no image"),
        # Pillow would have Ghostscript run this one.
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(a) (r) file\n", "no image"),
        ("bomb.png", png((100_000, 100_000), b""), "pixels"),
        ("no pixels.png", png((4, 4), b""), "cannot be read"),
        ("half.jpg", encoded(NOISE, "jpeg")[:300], "cannot be read"),
        ("byte.png", encoded(NOISE).replace(b"IDAT", b"IDAX"), "no image"),
        ("a.gif", encoded(NOISE, "gif", **FRAMES), "2 frames"),
        ("a.tif", encoded(NOISE, "tiff", **FRAMES), "several frames or pages"),
        ("a.webp", encoded(NOISE, "webp", **FRAMES), "2 frames"),
        ("signed.tif", encoded(NOISE, "tiff", tiffinfo={339: 2}), "signed levels"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_it(name, content, reason, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert re.match(f"{path} .*{reason}", refused(read, path))


def test_a_truncated_image_is_refused_or_whole():
    whole, refusals = encoded(GREY), 0
    for length in range(len(whole)):
        try:
            # Pillow does not need the checksums after the last pixel.
            np.testing.assert_array_equal(read(whole[:length]), GREY)
        except ResNetJaxError:
            refusals += 1
    assert refusals > whole.index(b"IDAT")


def test_folders_give_their_images_and_an_empty_one_is_named(tmp_path):
    # In the order of paths, not of strings.
    names = ["a.PNG", "b/1/0.png", "b/1.png", "b/2.png", "b-1/1.png", "b.png"]
    for name in (*names, "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert find_images(tmp_path) == [tmp_path / name for name in names]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    for path in ("empty", "e*y"):
        assert f"{path} holds no image" in refused(find_images, tmp_path / path)


@pytest.mark.parametrize("more", [1, -1])
def test_a_file_that_changes_while_it_is_read_is_no_broken_picture(more, tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png", 0)
    found = path.stat()
    before = SimpleNamespace(st_mode=found.st_mode, st_size=found.st_size + more)
    monkeypatch.setattr("resnet_jax.data.image.os.stat", lambda _: before)
    with pytest.raises(OSError, match="it changed while it was read"):
        read_bytes(path)
