"""Image files, read as a network takes them."""

import glob
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_jax.errors import ResNetJaxError

# Larger than any camera's picture; a small file can claim far more and fill the memory.
MAX_PIXELS = 100_000_000
# Formats of pictures alone. Pillow knows more, some of which it hands to other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths``, and in place of a folder the image files in it, sorted.

    A path that is not there is a pattern where it has ``*``, ``?`` or ``[``: for shells that leave
    patterns alone, and for more files than a command line holds.

    Raises:
        ResNetJaxError: nothing fits a pattern; a folder has no image in it (by the names' endings),
            or cannot be read.
    """
    suffixes = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
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
    source: Path | BinaryIO,
    shape: tuple[int, int, int],
    *,
    invert: bool = False,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> np.ndarray:
    """Reads an image file as ``uint8`` of ``shape``.

    The picture is turned as its EXIF tag says, converted to grey (ITU-R 601) or RGB by the number
    of channels asked for, made to fit ``(H, W)`` with its proportions kept, and centred on black.
    16-bit grey levels become 8-bit ones; palettes are looked up; an alpha channel that hides
    nothing is dropped.

    Args:
        source: the file's path, or the file opened.
        shape: ``(H, W, C)``, C being 1 or 3.
        invert: exchange black and white first: for dark ink on paper, where the network was
            trained on light digits.
        max_pixels: larger pictures are refused before they are decoded.
        formats: Pillow's names of the formats to accept.

    Raises:
        ResNetJaxError: the file is missing, no image, broken, or cannot be converted without a
            guess: transparent, animated, or of a mode whose range is not fixed.
    """
    name = str(source) if isinstance(source, Path) else "the image"
    try:
        # Pillow warns from a limit of its own on.
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with quiet, Image.open(source, formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise ResNetJaxError(
                    f"{name} is {image.width}x{image.height} pixels: at most {max_pixels:,} "
                    f"are read"
                )
            frames = getattr(image, "n_frames", 1)
            # A phone's JPEG may carry a smaller copy or a gain map behind the picture.
            if frames > 1 and image.format != "MPO":
                raise ResNetJaxError(f"{name} has {frames} frames: give a single picture")
            image.load()
            picture = _to_channels(ImageOps.exif_transpose(image), shape[2], name)
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
    if invert:
        picture = ImageOps.invert(picture)
    if picture.size != (shape[1], shape[0]):
        # Pillow averages over what a pixel covers when it shrinks: no aliasing.
        picture = ImageOps.pad(picture, (shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def _to_channels(image: Image.Image, channels: int, name: str) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ResNetJaxError(
            f"{name} has mode {image.mode}, whose range is not fixed: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise ResNetJaxError(
                f"{name} has transparent pixels: put it on a background and save it without alpha"
            )
    if channels not in (1, 3):
        raise ResNetJaxError(
            f"{name} cannot become an image of {channels} channels: image files have 1 or 3"
        )
    return image.convert("L" if channels == 1 else "RGB")
