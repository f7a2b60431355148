"""Reading the IDX files in which MNIST and its kin are published, every byte checked."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from resnet_jax.data.catalogue import DatasetInfo
from resnet_jax.errors import ResNetJaxError

# Twenty times the largest published file; a packed one can claim a thousand times its size.
MAX_BYTES = 2**30
# split -> the published names of its images and labels
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def find_idx_files(folder: Path) -> dict[str, Path]:
    """Returns the path of each of the four files, packed with gzip (``.gz``) or not.

    Raises:
        ResNetJaxError: if the folder or some of the files are missing; the message names them.
    """
    if not folder.is_dir():
        raise ResNetJaxError(
            f"{folder} is no folder: expected the four IDX files in it (--data.from-idx)"
        )
    found, missing = {}, []
    for name in (name for names in FILES.values() for name in names):
        # Some copies write the first dash of "idx" as a dot.
        spellings = [name, name.replace("-idx", ".idx")]
        paths = [folder / (spelling + end) for spelling in spellings for end in ("", ".gz")]
        existing = [path for path in paths if path.is_file()]
        if existing:
            found[name] = existing[0]
        else:
            missing.append(name)
    if missing:
        raise ResNetJaxError(
            f"{folder} lacks {', '.join(missing)}: expected the four published files, each as it "
            "is or with `.gz` (--data.from-idx)"
        )
    return found


def read_idx(path: Path, dimensions: int, sha256: str | None = None) -> np.ndarray:
    """Reads one IDX file of bytes, packed with gzip or not.

    The format: two zero bytes, 8 for unsigned bytes, the number of dimensions; each size as a
    big-endian uint32; the values.

    Args:
        path: the file.
        dimensions: how many it should have: 3 for images, 1 for labels.
        sha256: the digest of the unpacked file, if it is known.

    Returns:
        uint8 array with ``dimensions`` axes.

    Raises:
        ResNetJaxError: if the file is something else, truncated, too long, or holds other content
            than ``sha256``.
    """

    def wrong(why: str) -> ResNetJaxError:
        return ResNetJaxError(
            f"{path} {why}: download the file again, or give another folder (--data.from-idx)"
        )

    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":  # by its content: some tools unpack but keep the name
            with gzip.open(path) as file:
                content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES:,} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise wrong(f"cannot be read ({error})") from error
    magic = bytes([0, 0, 8, dimensions])
    start = 4 + 4 * dimensions
    if content[:4] != magic:
        raise wrong(
            f"starts with {content[:4].hex(' ') or 'nothing'}, not with {magic.hex(' ')}, the "
            f"mark of an IDX file of bytes with {dimensions} dimensions"
        )
    if len(content) < start:
        raise wrong("ends inside its header")
    shape = [int(size) for size in np.frombuffer(content, ">u4", dimensions, 4)]
    expected = start + math.prod(shape)
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has extra bytes at its end"
        raise wrong(
            f"{fault} (it promises {'x'.join(map(str, shape))} values, {expected} bytes, and has "
            f"{len(content)})"
        )
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise wrong("holds other content than the published file of this dataset")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx_folder(
    folder: Path, info: DatasetInfo, paths: dict[str, Path] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the four IDX files of a dataset.

    Args:
        folder: holds the files.
        info: what they should hold.
        paths: the files, where they have other names (downloads).

    Returns:
        split -> (uint8[N, H, W, 1], int32[N]), in the published order.

    Raises:
        ResNetJaxError: if a file is missing or faulty, or one does not fit another or the dataset.
    """
    paths = find_idx_files(folder) if paths is None else paths
    counts = {"train": info.train + info.validation, "test": info.test}
    splits = {}
    for split, (image_file, label_file) in FILES.items():
        images = read_idx(paths[image_file], 3, info.idx_sha256.get(image_file))
        labels = read_idx(paths[label_file], 1, info.idx_sha256.get(label_file))
        expected = (counts[split], *info.image_shape[:2])
        if images.shape != expected or labels.shape != expected[:1]:
            raise ResNetJaxError(
                f"{paths[image_file]} and {paths[label_file].name} hold {images.shape} pixels and "
                f"{labels.shape} labels: expected {expected} and {expected[:1]} for `{info.name}` "
                "(--data.from-idx)"
            )
        if labels.max() >= info.num_classes:
            raise ResNetJaxError(
                f"{paths[label_file]} has the label {labels.max()}: expected 0 to "
                f"{info.num_classes - 1} (--data.from-idx)"
            )
        splits[split] = (images[..., None], labels.astype(np.int32))
    return splits
