"""Image files, read as a network takes them."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_jax.errors import ResNetJaxError

# Larger than any camera's picture; a small file can claim far more and fill the memory.
MAX_PIXELS = 100_000_000
# Formats of pictures alone. Pillow knows more, some of which it hands to other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths``, and in place of a folder the image files in it, sorted.

    Raises:
        ResNetJaxError: a folder has no image in it (by the names' endings), or cannot be read.
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
        else:
            found.append(path)
    return found


def read_image(path: Path, shape: tuple[int, int, int], *, invert: bool = False) -> np.ndarray:
    """Reads a file as ``uint8`` of ``shape``.

    The picture is turned as its EXIF tag says, converted to grey (ITU-R 601) or RGB by the number
    of channels asked for, made to fit ``(H, W)`` with its proportions kept, and centred on black.
    16-bit grey levels become 8-bit ones; palettes are looked up; an alpha channel that hides
    nothing is dropped.

    Args:
        path: the file.
        shape: ``(H, W, C)``, C being 1 or 3.
        invert: exchange black and white first: for dark ink on paper, where the network was
            trained on light digits.

    Raises:
        ResNetJaxError: the file is missing, no image, broken, or cannot be converted without a
            guess: transparent, animated, or of a mode whose range is not fixed.
    """
    try:
        # Pillow warns from a limit of its own on.
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with quiet, Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ResNetJaxError(
                    f"{path} is {image.width}x{image.height} pixels: at most {MAX_PIXELS:,} "
                    f"are read"
                )
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise ResNetJaxError(f"{path} has {frames} frames: give a single picture")
            image.load()
            picture = _to_channels(ImageOps.exif_transpose(image), shape[2], path)
    except UnidentifiedImageError as error:
        raise ResNetJaxError(
            f"{path} is no image of the formats read: give a PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise ResNetJaxError(
            f"{path} is too large: at most {MAX_PIXELS:,} pixels are read"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's decoders raise all three
        reason = getattr(error, "strerror", None) or f"broken image ({error})"
        raise ResNetJaxError(f"{path} cannot be read: {reason}") from error
    if invert:
        picture = ImageOps.invert(picture)
    if picture.size != (shape[1], shape[0]):
        # Pillow averages over what a pixel covers when it shrinks: no aliasing.
        picture = ImageOps.pad(picture, (shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def _to_channels(image: Image.Image, channels: int, path: Path) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ResNetJaxError(
            f"{path} has mode {image.mode}, whose range is not fixed: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise ResNetJaxError(
                f"{path} has transparent pixels: put it on a background and save it without alpha"
            )
    if channels not in (1, 3):
        raise ResNetJaxError(
            f"{path} cannot become an image of {channels} channels: image files have 1 or 3"
        )
    return image.convert("L" if channels == 1 else "RGB")
