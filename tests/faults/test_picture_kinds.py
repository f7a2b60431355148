"""Every kind of picture that Pillow writes, with metadata of every type, is read right or named."""

import base64
import io
import json
import re
import shutil
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from make_datasets import examples, picture
from PIL import Image

import resnet_jax as rj
from resnet_jax.inspection import classify

pytestmark = pytest.mark.usefixtures("own_cache")

UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}
MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("L", "RGB", "RGBA"),
    "gif": ("1", "L", "P", "RGB"),
    "bmp": ("1", "L", "P", "RGB"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "ppm": ("1", "L", "RGB", "I", "F"),
}
KINDS = [(ending, mode) for ending, modes in MODES.items() for mode in modes]
REFUSED = dict.fromkeys([("tif", "I"), ("tif", "F"), ("ppm", "F")], "range is not fixed")
TAGS = (256, 257, 258, 259, 270, 282, 296, 305, 306, 315, 700, 33432, 34665, 34853, 36867, 40961)


def entries(tags: list[tuple[int, int, int, bytes]]) -> dict[int, bytes]:
    """Encode a TIFF directory's entries, by tag: tag, type, count and a value of four bytes."""
    return {tag: struct.pack("<HHI", tag, *rest) + value for tag, *rest, value in tags}


def directory(entries: dict[int, bytes]) -> bytes:
    return struct.pack("<H", len(entries)) + b"".join(map(entries.get, sorted(entries))) + bytes(4)


def exif(orientation: int, tags: list[tuple[int, int, int, bytes]]) -> bytes:
    upright = entries([(274, 3, 1, struct.pack("<HH", orientation, 0))])
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory(entries(tags) | upright)


def with_tags(tiff: bytes, tags: list[tuple[int, int, int, bytes]]) -> bytes:
    """Add tags to a TIFF file; those that describe the layout of its pixels stay as they are."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    whole = {struct.unpack_from("<H", tiff, at)[0]: tiff[at : at + 12] for at in places}
    odd = entries([tag for tag in tags if tag[0] > 259])
    tiff += bytes(len(tiff) % 2)
    return tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + directory(odd | whole)


odd_tag = st.tuples(
    st.sampled_from(TAGS), st.integers(0, 14), st.integers(0, 5), st.binary(min_size=4, max_size=4)
)
one_picture = st.tuples(
    st.sampled_from(KINDS),
    st.integers(1, 8),
    st.booleans(),  # with a transparent pixel, if the mode has alpha
    st.none() | st.lists(odd_tag, max_size=4),
    st.sampled_from([None, "raw", "tiff_lzw", "tiff_deflate", "packbits"]),
)
pictures = st.lists(one_picture, min_size=40, max_size=40)


def written(path: Path, seed: int, kind, orientation, clear, tags, compression):
    """Write a picture; return its levels upright, and the reason for a refusal or None."""
    ending, mode = kind
    # A lossy format keeps flat squares with large steps between them.
    coarse = np.random.default_rng(seed).permutation(16).reshape(4, 4).astype(np.uint8)
    levels = np.kron(17 * coarse, np.ones((8, 8), np.uint8))
    if mode in ("1", "LAB"):  # LAB's lightness is the level only of black and white
        levels = np.where(levels > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(levels)
    if mode == "I;16" or kind == ("ppm", "I"):
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    if mode == "LAB":
        image = Image.merge("LAB", [image, *[Image.new("L", image.size, 128)] * 2])
    elif mode != image.mode:
        image = image.convert(mode)
    refused = REFUSED.get(kind)
    if clear and mode in ("LA", "RGBA"):
        image.putpixel((0, 0), (0,) * len(mode))
        refused = "transparent pixels"
    options: dict[str, object] = {}
    turned = 1
    if ending == "tif":
        options["tiffinfo"], turned = {274: orientation}, orientation
        # Pillow cannot read the YCbCr files that it writes without compression.
        options["compression"] = "tiff_lzw" if mode == "YCbCr" else compression
    elif tags is not None and ending in ("png", "jpg", "webp"):
        options["exif"], turned = exif(orientation, tags), orientation
    if ending in ("jpg", "webp"):
        options |= {"quality": 100, "lossless": True}
    try:
        image.save(path, **options)
    except (OSError, RuntimeError):  # libtiff cannot write every combination
        image.save(path)
        turned = 1
    if ending == "tif" and tags:
        path.write_bytes(with_tags(path.read_bytes(), tags))
    return UPRIGHT[turned](levels), refused


@pytest.fixture(scope="module")
def client(finished_run, client_of):
    with client_of(finished_run) as client:
        yield client


@pytest.fixture
def check(tmp_path, finished_run, command, answers, client):
    """A check that verify, train, predict and demo read each picture right or name it in a line."""
    return partial(look, tmp_path / "kinds", finished_run, command, client)


def look(root: Path, run: rj.Run, command, client, kinds) -> None:
    shutil.rmtree(root, ignore_errors=True)
    expected = []
    for number, (kind, *rest) in enumerate(kinds):
        folder = root / f"{number}"
        folder.mkdir(parents=True)
        Image.new("L", (32, 32), number).save(folder / "plain.bmp")
        path = folder / f"odd.{kind[0]}"
        expected.append((path, kind, *written(path, number, kind, *rest)))
    named = {path: why for path, _, _, why in expected if why}
    code, out, err = command("verify", root)
    assert (code, len(err.splitlines())) == (bool(named), bool(named)), err
    # Nothing else is damaged: sound pixels are read whatever metadata are beside them.
    assert out.count("damaged  ") == len(named), out
    for path, why in named.items():
        assert re.search(f"damaged  {path}: .*{why}", out), out
    data = rj.load_dataset("folder", root, skip_bad=True, validation=0)
    images, labels = examples(data.train, data.test)
    for number, (path, kind, levels, refused) in enumerate(expected):
        label = data.class_names.index(str(number))
        mine = [image.astype(int) for image in images[labels == label] if np.ptp(image) > 0]
        assert len(mine) == (refused is None), kind
        lossy = kind[0] in ("jpg", "webp") or kind[1] in ("CMYK", "YCbCr", "LAB")
        for image in mine:
            assert np.abs(image - levels[..., None]).max() <= (3 if lossy else 1), kind
        reply = client.post("/api/predict", content=path.read_bytes())
        known = kind[0] in ("png", "jpg", "webp", "bmp")  # the demo decodes no other formats
        why = refused if known else "no image of the formats read"
        assert reply.status_code == (200 if why is None else 400), (kind, reply.text)
        if why is not None:
            assert why in reply.json()["detail"], kind
        else:
            file = io.BytesIO(base64.b64decode(reply.json()["image"].split(",")[1]))
            smaller = Image.fromarray(levels).resize((28, 28), Image.Resampling.BILINEAR)
            differs = np.asarray(Image.open(file), int) - np.asarray(smaller)
            assert np.abs(differs).max() <= (3 if lossy else 1), kind
    code, out, err = command("predict", run.path, root, "--json")
    answered = {row["path"] for row in json.loads(out)}
    assert {str(path) for path, *_ in expected} - answered == set(map(str, named))
    assert (code, len(err.splitlines())) == (bool(named), len(named) + bool(named))


@pytest.mark.slow
@settings(
    phases=[Phase.generate], max_examples=20, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(kinds=pictures)
def test_pictures_of_every_kind(kinds, check):
    check(kinds)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_container_and_mode(orientation, check):
    """Check each kind in one of eight orientations, those with alpha also with a clear pixel."""
    kinds = KINDS[orientation - 1 :: 8]
    text = [(270, 2, 9, b"\xff\xff\xff\x7f")]  # beyond the end: Pillow reads no further tag
    clear = [(kind, orientation, True, [], None) for kind in kinds if kind[1] in ("LA", "RGBA")]
    check([(kind, orientation, False, text, None) for kind in kinds] + clear)


def test_a_picture_that_memory_lacks_for_beside_others_is_read_alone(
    finished_run, tmp_path, monkeypatch
):
    """Such a picture was left out if several threads were reading."""
    read, lacking = classify.read_digit_or_image, ["2.png"]

    def beside_others(path, *arguments, **options):
        if path.name in lacking:
            lacking.remove(path.name)
            raise rj.ResNetJaxError("more memory") from MemoryError()
        return read(path, *arguments, **options)

    monkeypatch.setattr(classify, "read_digit_or_image", beside_others)
    for number in range(4):
        picture(tmp_path / f"{number}.png", number, (28, 28), "L")
    rows = list(rj.inspection.classify_files(finished_run, tmp_path))
    assert [Path(row["path"]).name for row in rows] == [f"{number}.png" for number in range(4)]
    assert lacking == []
