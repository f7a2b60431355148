"""Decoding of image files to upright 8-bit pictures, and to arrays of a given shape."""

import contextlib
import dataclasses
import errno
import io
import logging
import os
import re
import stat
import struct
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from resnet_jax.config import DataConfig, Fit
from resnet_jax.errors import ResNetJaxError

# Few cameras take larger pictures; a small file can claim far more and fill the memory.
MAX_PIXELS = 100_000_000
MAX_BYTES = 2**30
# Only formats of pictures: Pillow knows more, and hands some (EPS) to other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Keys of `Image.info` that may hold the orientation; a TIFF file has it in its tags.
ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
PNG = b"\x89PNG\r\n\x1a\n"
# The tags that give the layout of a TIFF file's pixels, and its orientation (as may XMP, 700).
TIFF_LAYOUT = {*range(254, 267), 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 332, 338, 339}
TIFF_LAYOUT |= {*range(322, 326), 347, *range(512, 522), *range(529, 533), 700, 50674}

log = logging.getLogger(__name__)

# Left, top, right and bottom as fractions of a picture's sides; below 0 and above 1 is outside.
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """How every picture of a dataset is decoded; `resnet_jax.DataConfig` explains the choices."""

    shape: tuple[int, int, int]  # (H, W, C), C being 1 for grey or 3 for RGB
    fit: Fit = "pad"
    background: int | None = None

    @classmethod
    def of(cls, what: str, shape: tuple[int | None, int | None, int], settings: DataConfig) -> Self:
        """Return the spec for images of ``shape`` (None: sides that vary); errors name ``what``."""
        if settings.center_crop and not settings.read_size:
            log.warning("--data.center-crop crops nothing from %s: give --data.read-size", what)
        if size := settings.read_size or settings.image_size:
            shape = (size, size, shape[2])
        height, width, channels = shape
        if height is None or width is None:
            raise ResNetJaxError(
                f"{what} are of several sizes: give the side to resize to (--data.image-size 224, "
                "load_dataset's size=224)"
            )
        return cls((height, width, channels), settings.fit, settings.background)

    @property
    def fingerprint_text(self) -> str:
        """The text that fingerprints hash; the class's former name in it keeps old ones valid."""
        return repr(self).replace("DecodeSpec", "ReadAs", 1)


def read_image(
    source: str | Path | bytes, spec: DecodeSpec, *, invert: bool = False, **options: Any
) -> np.ndarray:
    """Read an image file, given by its path or content, as ``uint8`` of ``spec.shape``.

    `open_image` decodes the picture and takes the other ``options``. The picture is converted to
    grey (ITU-R 601) or RGB and brought to ``(H, W)`` with its proportions kept. ``invert`` swaps
    black and white before the resizing, for dark ink if the network learnt from light digits.
    """
    height, width, channels = spec.shape
    if channels not in (1, 3):
        raise ResNetJaxError(f"images of {channels} channels are not read: expected 1 or 3")
    picture = open_image(source, background=spec.background, side=max(height, width), **options)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if invert:
        picture = ImageOps.invert(picture)
    # When it shrinks, Pillow averages over the area that a pixel covers, so nothing is aliased.
    bilinear = Image.Resampling.BILINEAR
    if picture.size != (width, height):
        # A picture so thin that a side would round to 0 keeps one row or column of pixels.
        if spec.fit == "pad" and picture.width >= 2 * width * picture.height:
            picture = picture.resize((width, 1), bilinear)
        elif spec.fit == "pad" and picture.height >= 2 * height * picture.width:
            picture = picture.resize((1, height), bilinear)
        resize = ImageOps.pad if spec.fit == "pad" else ImageOps.fit
        picture = resize(picture, (width, height), bilinear)
    return np.asarray(picture).reshape(spec.shape)


def box_of(size: tuple[int, int], spec: DecodeSpec) -> Box:
    """Return the part of a picture of ``(width, height)`` pixels that `read_image` shows."""
    ratios = np.array(size) / (spec.shape[1], spec.shape[0])
    sides = (ratios.max() if spec.fit == "pad" else ratios.min()) / ratios
    return *(0.5 - sides / 2), *(0.5 + sides / 2)


def open_image(
    source: str | Path | bytes,
    *,
    background: int | None = None,
    side: int | None = None,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """Decode a picture as it is to be seen: upright, 8 bits, without alpha, in mode L or RGB.

    Whatever cannot be converted without a guess is refused: transparent pixels without a
    ``background``, animations, and modes whose range is not fixed, as are more than ``max_pixels``,
    JPEGs of over 100 scans, and formats other than Pillow's ``formats``. ``side`` is the side of
    the array to fill: a JPEG of at least four times that is decoded at a half, a quarter or an
    eighth of its size, several times as fast. ``name`` is what errors call the file.
    """
    try:
        content = source if isinstance(source, bytes) else read_bytes(source)
        if not content:
            raise ResNetJaxError("is an empty file: give an image")
        content = _without_metadata(content)
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height} pixels"
                raise ResNetJaxError(f"is {size}: at most {max_pixels:,} are read")
            # Pillow takes quadratic time to count the frames of a TIFF file.
            several = image.format == "TIFF" and getattr(image, "is_animated", False)
            frames = "several" if several else getattr(image, "n_frames", 1)
            if frames != 1 and image.format != "MPO":  # its other frames are camera previews
                raise ResNetJaxError(f"has {frames} frames or pages: give a single picture")
            found = re.findall(b"\xff\xda\0", content) if image.format in ("JPEG", "MPO") else []
            if (scans := len(found)) > 100:  # each goes over all pixels; ten are usual
                raise ResNetJaxError(f"has {scans} scans: save it again, as a PNG or JPEG")
            if side is not None:
                image.draft(None, (2 * side, 2 * side))
            if image.format != "TIFF":  # Pillow turns a TIFF upright as it loads it
                image.load()
            return _opaque(_to_8_bits(_upright(image), image, content), background)
    except Exception as error:  # a refusal, or whatever a decoder raises on damage
        name = name or ("the image" if isinstance(source, bytes) else str(source))
        words = " ".join(str(error).split())[:160] or type(error).__name__
        known = {
            ResNetJaxError: str(error),
            UnidentifiedImageError: "is no image of the formats read: give a PNG or JPEG",
            Image.DecompressionBombError: f"is too large: at most {max_pixels:,} pixels are read",
            MemoryError: "needs more memory than is free: make it smaller",
        }
        broken = getattr(error, "strerror", None) or f"broken image ({words})"
        reason = known.get(type(error), f"cannot be read: {broken}")
        raise ResNetJaxError(f"{name} {reason}") from error


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a regular file of at most 1 GiB; others raise OSError, unopened."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        os.listdir(path)  # raises the reason why the folder could not be walked
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no regular file")
    if found.st_size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"more than {MAX_BYTES:,} bytes")
    with open(path, "rb") as file:  # buffered: reads on after a network disk's short read
        content = file.read(found.st_size + 1)
    if len(content) != found.st_size:
        raise OSError(errno.EIO, "it changed while it was read")
    return content


def _without_metadata(content: bytes) -> bytes:
    """Remove metadata that make Pillow refuse or fail on sound files; keep the orientation."""
    if content.startswith(PNG):
        kept, start = [PNG], len(PNG)
        while start < len(content):
            end = start + 12 + int.from_bytes(content[start : start + 4])
            kind = content[start + 4 : start + 8]
            keyword = content[start + 8 : start + 88].split(b"\0")[0]
            oriented = keyword in (b"Raw profile type exif", b"XML:com.adobe.xmp")
            if oriented or kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
                kept.append(content[start:end])
            start = end
        return b"".join(kept)
    if content.startswith((b"II*\0", b"MM\0*")):
        with contextlib.suppress(struct.error):
            return _with_tags(content, TIFF_LAYOUT)
    return content


def _with_tags(tiff: bytes, tags: set[int]) -> bytes:
    """Keep only ``tags`` in a TIFF file's first directory: after a bad tag Pillow reads none."""
    order = "<" if tiff.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    end = start + 2 + 12 * count
    entries = [tiff[place : place + 12] for place in range(start + 2, end, 12)]
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in tags]
    tiff += bytes(len(tiff) % 2)  # directories begin at even offsets
    head = tiff[:4] + struct.pack(f"{order}I", len(tiff)) + tiff[8:]
    return head + struct.pack(f"{order}H", len(kept)) + b"".join(kept) + tiff[end : end + 4]


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture upright by its orientation; with unreadable metadata it stays as stored."""
    if image.format != "TIFF" and image.info.keys().isdisjoint(ORIENTED):
        return image
    with contextlib.suppress(Exception):
        exif = image.getexif()
        orientation = ExifTags.Base.Orientation
        if orientation not in exif and (stored := image.info.get("exif")):
            exif.load(_with_tags(stored.removeprefix(b"Exif\0\0"), {orientation}))
    # Pillow would write these entries again, and fail on values of unusual types.
    for key in ORIENTED:
        image.info.pop(key, None)
    image.load()
    return ImageOps.exif_transpose(image)


def _to_8_bits(upright: Image.Image, image: Image.Image, content: bytes) -> Image.Image:
    """Return ``upright`` with levels of 8 bits; ``image`` is the picture as it was opened."""
    tags: dict[int, Any] = getattr(image, "tag_v2", {})
    transparent = image.info.get("transparency")
    # Pillow scales the levels of a PGM file to 16 bits, whatever the file's range.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    signed = tags and 2 in np.ravel(tags.get(ExifTags.Base.SampleFormat, 1))
    if (image.mode in ("I", "F") and not deep) or signed:
        what = "signed levels" if signed else f"mode {image.mode}"
        raise ResNetJaxError(f"has {what}, whose range is not fixed: save it with 8 or 16 bits")
    split = tags.get(ExifTags.Base.PlanarConfiguration) == 2 and image.info["compression"] == "raw"
    if split and 16 in tags.get(ExifTags.Base.BitsPerSample, ()):
        # Pillow takes each byte of these planes for a level.
        raise ResNetJaxError("has planes of 16 bits: save its channels interleaved, or compressed")
    if deep:
        highest = 2 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1
        levels = np.asarray(upright)
        to_8_bits = (np.arange(highest + 1) * 255 + highest // 2) // highest
        grey = to_8_bits.astype(np.uint8)[np.minimum(levels, highest)]
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
            grey = 255 - grey
        upright = Image.fromarray(grey)
        if transparent is not None:
            upright.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype("u1")))
    elif image.format == "PNG" and image.mode in ("L", "RGB") and transparent is not None:
        # Pillow scales levels to 8 bits but leaves the transparent level as it is in the file.
        bits = content[24]
        levels = np.ravel(transparent).tolist()
        scaled = [n >> 8 if bits == 16 else n * 255 // (2**bits - 1) for n in levels]
        upright.info["transparency"] = scaled[0] if image.mode == "L" else tuple(scaled)
    return upright


def _opaque(image: Image.Image, background: int | None) -> Image.Image:
    """Return the picture without alpha, in mode L if it is stored as grey, otherwise in RGB."""
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            if background is None:
                raise ResNetJaxError(
                    "has transparent pixels: put it on a background and save it without alpha, or "
                    "train with --data.background 0 (black) to 255 (white)"
                )
            below = Image.new("RGBA", image.size, (background,) * 3 + (255,))
            image = Image.alpha_composite(below, image)
    return image.convert(mode)
