"""Make small datasets as TFDS and MNIST's publishers store them, damage them, expect errors."""

import dataclasses
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import resnet_jax as rj
from resnet_jax.data.dataset import ArraySplit


def encoded(pixels: np.ndarray, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png(size: tuple[int, int], data: bytes, bits: int = 8, colour: int = 0, **chunks: bytes):
    """Return a PNG that claims a width, height, depth and colour type, whatever its data say."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    chunks = {"IHDR": header, **chunks, "IDAT": zlib.compress(data, 1), "IEND": b""}
    for kind, body in chunks.items():
        named = kind.encode() + body
        file += struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))
    return file


def picture(path: Path, seed: int, size=(8, 6), mode="RGB", **options) -> Path:
    """Write an image of noise to a file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] if mode == "L" else (*size[::-1], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels, mode).save(path, **options)
    return path


def build(root, splits, *, name="digits", shape=(28, 28, 1), names=None, config=None, shards=1):
    """Prepare splits (pairs of an image file and a label) with TFDS; return the folder."""

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            label = tfds.features.ClassLabel(num_classes=None if names else 10, names=names)
            features = {"image": tfds.features.Image(shape=shape), "label": label, "id": np.str_}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(pairs) for split, pairs in splits.items()}

        def _generate_examples(self, pairs):
            for i, (content, label) in enumerate(pairs):
                yield i, {"image": content, "label": label, "id": str(i)}

    Pictures.name = name
    builder = Pictures(data_dir=root)
    settings = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(file_format="array_record", download_config=settings)
    return Path(builder.data_dir)


def idx_bytes(array: np.ndarray) -> bytes:
    """Return the content of an IDX file of bytes."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def flip(path, position, bit=1):
    """Flip a bit and keep the times, as a failing disk would."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def examples(*splits) -> tuple[np.ndarray, np.ndarray]:
    """Return all images and labels of some splits, in memory or on disk."""
    images, labels = zip(*(split.batch(np.arange(len(split))) for split in splits), strict=True)
    return np.concatenate(images), np.concatenate(labels)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Noting(ArraySplit):
    """A split that notes which indices are read."""

    asked: list[np.ndarray] = dataclasses.field(default_factory=list)

    def batch(self, indices):
        self.asked.append(indices)
        return super().batch(indices)


def refused(function, *args, **kwargs) -> str:
    """Return the message, of one line, of the `ResNetJaxError` that a call must raise."""
    with pytest.raises(rj.ResNetJaxError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def refusal(root, name="digits", **kwargs) -> str:
    return refused(rj.load_dataset, name, root, **kwargs)
