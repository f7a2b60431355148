"""Image files, read as a network takes them."""

import glob
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_jax.errors import ResNetJaxError

# Larger than any camera's picture; a small file can claim far more and fill the memory.
MAX_PIXELS = 100_000_000
# Formats of pictures alone. Pillow knows more, some of which it hands to other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

Fit = Literal["pad", "crop"]


def image_suffixes() -> set[str]:
    """The endings of image files' names, in lower case and with their dot."""
    return {end for end, name in Image.registered_extensions().items() if name in FORMATS}


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths``, and in place of a folder the image files in it, sorted.

    A path that is not there is a pattern where it has ``*``, ``?`` or ``[``: for shells that leave
    patterns alone, and for more files than a command line holds.

    Raises:
        ResNetJaxError: nothing fits a pattern; a folder has no image in it (by the names' endings),
            or cannot be read.
    """
    suffixes = image_suffixes()
    found = []
    for path in paths:
        if path.is_dir():
            try:
                inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
            except OSError as error:
                raise ResNetJaxError(f"folder {path} cannot be read: {error.strerror}") from error
            if not inside:
                raise ResNetJaxError(
                    f"folder {path} holds no image file: expected names that end in "
                    f".png, .jpg or another image format's ending"
                )
            found += inside
        elif not path.exists() and glob.has_magic(str(path)):
            inside = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            if not inside:
                raise ResNetJaxError(f"no file fits {path}: give another pattern")
            found += inside
        else:
            found.append(path)
    return found


def read_image(
    source: Path | bytes | BinaryIO,
    shape: tuple[int, int, int],
    *,
    fit: Fit = "pad",
    background: int | None = None,
    invert: bool = False,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> np.ndarray:
    """Reads an image file as ``uint8`` of ``shape``.

    The picture is turned as its EXIF tag says, converted to grey (ITU-R 601) or RGB by the number
    of channels asked for, and brought to ``(H, W)`` with its proportions kept. 16-bit grey levels
    become 8-bit ones; palettes are looked up; an alpha channel that hides nothing is dropped.

    Args:
        source: the file's path, its content, or the file opened.
        shape: ``(H, W, C)``, C being 1 or 3.
        fit: pad: the whole picture, centred on black; crop: what fills ``(H, W)``, the centre.
        background: the grey level, 0 to 255, that is put under transparent pixels. None refuses
            a picture that has any.
        invert: exchange black and white first: for dark ink on paper, where the network was
            trained on light digits.
        name: what errors call the file. Default: its path.
        max_pixels: larger pictures are refused before they are decoded.
        formats: Pillow's names of the formats to accept.

    Raises:
        ResNetJaxError: the file is missing, no image, broken, or cannot be converted without a
            guess: transparent, animated, or of a mode whose range is not fixed.
    """
    height, width, channels = shape
    called = name or (str(source) if isinstance(source, Path) else "the image")
    if channels not in (1, 3):
        raise ResNetJaxError(
            f"{called} cannot become an image of {channels} channels: image files have 1 or 3"
        )
    picture = open_picture(
        source,
        background=background,
        side=max(height, width),
        name=called,
        max_pixels=max_pixels,
        formats=formats,
    )
    picture = picture.convert("L" if channels == 1 else "RGB")
    if invert:
        picture = ImageOps.invert(picture)
    if picture.size != (width, height):
        # Pillow averages over what a pixel covers when it shrinks: no aliasing.
        brought = ImageOps.pad if fit == "pad" else ImageOps.fit
        picture = brought(picture, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def open_picture(
    source: Path | bytes | BinaryIO,
    *,
    background: int | None = None,
    side: int | None = None,
    name: str,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """Decodes a picture as it is to be seen: upright, without alpha, in mode L or RGB.

    Args:
        source: see `read_image`.
        background: see `read_image`.
        side: the side in pixels that the picture is for. A JPEG of more than twice that is decoded
            at a half, a quarter or an eighth of its size, which is several times as fast.
        name: what errors call the file.
        max_pixels: see `read_image`.
        formats: see `read_image`.

    Raises:
        ResNetJaxError: as `read_image`.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        # Pillow warns from a limit of its own on.
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with quiet, Image.open(file, formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise ResNetJaxError(
                    f"{name} is {image.width}x{image.height} pixels: at most {max_pixels:,} "
                    f"are read"
                )
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # whose others are previews for the camera
                raise ResNetJaxError(f"{name} has {frames} frames: give a single picture")
            if side is not None:
                image.draft(None, (2 * side, 2 * side))
            image.load()
            return _opaque(ImageOps.exif_transpose(image), background, name)
    except UnidentifiedImageError as error:
        raise ResNetJaxError(
            f"{name} is no image of the formats read: give a PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise ResNetJaxError(
            f"{name} is too large: at most {max_pixels:,} pixels are read"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's decoders raise all three
        reason = getattr(error, "strerror", None) or f"broken image ({error})"
        raise ResNetJaxError(f"{name} cannot be read: {reason}") from error


def _opaque(image: Image.Image, background: int | None, name: str) -> Image.Image:
    """The image in mode L or RGB, whichever holds it."""
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ResNetJaxError(
            f"{name} has mode {image.mode}, whose range is not fixed: save it with 8 or 16 bits"
        )
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            if background is None:
                raise ResNetJaxError(
                    f"{name} has transparent pixels: put it on a background and save it without "
                    "alpha, or train with --data.background 0 (black) to 255 (white)"
                )
            below = Image.new("RGBA", image.size, (background,) * 3 + (255,))
            image = Image.alpha_composite(below, image)
    return image.convert(mode)
