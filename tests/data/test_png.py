import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.png import UnsupportedPng, decode_pngs

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def filter_row(kind: int, row: np.ndarray, up: np.ndarray, channels: int) -> np.ndarray:
    """The filters as the PNG specification (section 9.2) writes them, one byte at a time."""
    out = np.empty(len(row), np.uint8)
    for x in range(len(row)):
        a = int(row[x - channels]) if x >= channels else 0
        b = int(up[x])
        c = int(up[x - channels]) if x >= channels else 0
        if kind == 4:
            p = a + b - c
            pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
            predicted = a if pa <= pb and pa <= pc else b if pb <= pc else c
        else:
            predicted = [0, a, b, (a + b) // 2][kind]
        out[x] = (int(row[x]) - predicted) % 256
    return out


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(image: np.ndarray, kinds: list[int], pieces: int = 1) -> bytes:
    """A PNG file whose rows have the given filters, with its pixels in so many IDAT chunks."""
    height, width, channels = image.shape
    rows = image.reshape(height, -1)
    up = np.zeros_like(rows[0])
    body = b""
    for kind, row in zip(kinds, rows, strict=True):
        body += bytes([kind]) + filter_row(kind, row, up, channels).tobytes()
        up = row
    packed = zlib.compress(body)
    size = -(-len(packed) // pieces)
    data = [packed[i : i + size] for i in range(0, len(packed), size)]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
        + b"".join(chunk(b"IDAT", piece) for piece in data)
        + chunk(b"IEND", b"")
    )


def some_images(rng, count, height, width, channels):
    # Smooth and noisy ones: every branch of Paeth's predictor, and wrapping around.
    noise = rng.integers(0, 256, (count, height, width, channels))
    smooth = np.cumsum(rng.integers(0, 9, (count, height, width, channels)), axis=2) % 256
    return np.where(np.arange(count)[:, None, None, None] % 2, noise, smooth).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", range(5))
def test_each_filter_agrees_with_pillow_and_the_original(kind, channels):
    rng = np.random.default_rng(kind)
    images = some_images(rng, 6, 5, 7, channels)
    files = [png(image, [kind] * 5) for image in images]
    with_pillow = [np.asarray(Image.open(io.BytesIO(file))).reshape(5, 7, -1) for file in files]
    decoded = decode_pngs(files, (5, 7, channels))
    np.testing.assert_array_equal(decoded, with_pillow)
    np.testing.assert_array_equal(decoded, images)
    assert decoded.dtype == np.uint8


def test_filters_mixed_at_random_over_rows_and_images():
    rng = np.random.default_rng(0)
    images = some_images(rng, 40, 9, 6, 3)
    files = [png(image, rng.integers(0, 5, 9).tolist(), pieces=3) for image in images]
    np.testing.assert_array_equal(decode_pngs(files, (9, 6, 3)), images)


def test_files_that_pillow_wrote():
    images = some_images(np.random.default_rng(1), 8, 28, 28, 1)
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, "png")
        files.append(file.getvalue())
    np.testing.assert_array_equal(decode_pngs(files, (28, 28, 1)), images)


def test_chunks_of_images_join_without_a_seam(monkeypatch):
    monkeypatch.setattr("resnet_jax.data.png._CHUNK_BYTES", 3 * 4 * 5)
    images = some_images(np.random.default_rng(2), 10, 4, 4, 1)
    files = [png(image, [4, 3, 2, 1]) for image in images]
    np.testing.assert_array_equal(decode_pngs(files, (4, 4, 1)), images)


def test_no_images():
    assert decode_pngs([], (28, 28, 1)).shape == (0, 28, 28, 1)


def test_other_images_are_left_to_the_general_way():
    palette = io.BytesIO()
    Image.new("P", (4, 4)).save(palette, "png")
    jpeg = io.BytesIO()
    Image.new("L", (4, 4)).save(jpeg, "jpeg")
    larger = png(np.zeros((4, 5, 1), np.uint8), [0] * 4)
    for file in (palette.getvalue(), jpeg.getvalue(), larger):
        with pytest.raises(UnsupportedPng):
            decode_pngs([file], (4, 4, 1))


def test_damage_is_an_error():
    file = png(np.arange(16, dtype=np.uint8).reshape(4, 4, 1), [0] * 4)
    flipped = bytearray(file)
    flipped[file.index(b"IDAT") + 12] ^= 4
    unknown_filter = file.replace(
        file[file.index(b"IDAT") - 4 : file.index(b"IEND") - 4],
        chunk(b"IDAT", zlib.compress(bytes([9, 0, 0, 0, 0]) * 4)),
    )
    short = file.replace(
        file[file.index(b"IDAT") - 4 : file.index(b"IEND") - 4],
        chunk(b"IDAT", zlib.compress(b"\0" * 19)),
    )
    for bad in (bytes(flipped), file[:45], unknown_filter, short):
        with pytest.raises(ValueError):
            decode_pngs([bad], (4, 4, 1))
