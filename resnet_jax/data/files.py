"""Image files, read as a network takes them."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_jax.errors import ResNetJaxError

# Larger than any camera's picture; a small file can claim far more and fill the memory.
MAX_PIXELS = 100_000_000

Fit = Literal["pad", "crop"]


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths``, and in place of a folder the image files in it, sorted.

    Raises:
        ResNetJaxError: a folder has no image in it (by the names' endings), or cannot be read.
    """
    suffixes = set(Image.registered_extensions())
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


def read_image(
    file: Path | bytes,
    shape: tuple[int, int, int],
    *,
    fit: Fit = "pad",
    background: int | None = None,
    invert: bool = False,
    name: str | None = None,
) -> np.ndarray:
    """Reads a file as ``uint8`` of ``shape``.

    The picture is turned as its EXIF tag says, converted to grey (ITU-R 601) or RGB by the number
    of channels asked for, and brought to ``(H, W)`` with its proportions kept. 16-bit grey levels
    become 8-bit ones; palettes are looked up; an alpha channel that hides nothing is dropped.

    Args:
        file: the file, or its content.
        shape: ``(H, W, C)``, C being 1 or 3.
        fit: pad: the whole picture, centred on black; crop: what fills ``(H, W)``, the centre.
        background: the grey level, 0 to 255, that is put under transparent pixels. None refuses
            a picture that has any.
        invert: exchange black and white first: for dark ink on paper, where the network was
            trained on light digits.
        name: what errors call the file. Default: its path.

    Raises:
        ResNetJaxError: the file is missing, no image, broken, or cannot be converted without a
            guess: transparent, animated, or of a mode whose range is not fixed.
    """
    height, width, channels = shape
    called = name or str(file)
    if channels not in (1, 3):
        raise ResNetJaxError(
            f"{called} cannot become an image of {channels} channels: image files have 1 or 3"
        )
    picture = open_picture(file, background=background, side=max(height, width), name=called)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if invert:
        picture = ImageOps.invert(picture)
    if picture.size != (width, height):
        # Pillow averages over what a pixel covers when it shrinks: no aliasing.
        brought = ImageOps.pad if fit == "pad" else ImageOps.fit
        picture = brought(picture, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def open_picture(
    file: Path | bytes, *, background: int | None = None, side: int | None = None, name: str
) -> Image.Image:
    """Decodes a picture as it is to be seen: upright, without alpha, in mode L or RGB.

    Args:
        file: the file, or its content.
        background: see `read_image`.
        side: the side in pixels that the picture is for. A JPEG of more than twice that is decoded
            at a half, a quarter or an eighth of its size, which is several times as fast.
        name: what errors call the file.

    Raises:
        ResNetJaxError: as `read_image`.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ResNetJaxError(
                    f"{name} is {image.width}x{image.height} pixels: at most {MAX_PIXELS:,} "
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
        raise ResNetJaxError(f"{name} is no image that Pillow knows: give a PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise ResNetJaxError(
            f"{name} is too large: at most {MAX_PIXELS:,} pixels are read"
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
