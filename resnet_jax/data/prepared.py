"""Reading a dataset that TFDS (or our builders) prepared, without TensorFlow and without TFDS."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.png import UnsupportedPng, decode_pngs
from resnet_jax.errors import ResNetJaxError

MAX_VALUES = 300_000_000  # in an image: that of the largest image file read, in colour

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> uint8[N, H, W, C], int32[N]


def find_prepared(name: str, root: Path) -> Path | None:
    """Returns the newest ``root/name/x.y.z`` that holds a prepared dataset, or None."""
    found = [
        (tuple(int(part) for part in folder.name.split(".")), folder)
        for folder in root.joinpath(name).glob("*.*.*")
        if folder.name.replace(".", "").isdigit() and folder.joinpath("dataset_info.json").exists()
    ]
    return max(found)[1] if found else None


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a split, and the number of examples that it should hold."""

    path: Path
    examples: int


@dataclasses.dataclass(frozen=True)
class PreparedInfo:
    """What ``dataset_info.json`` and ``features.json`` say."""

    folder: Path
    name: str
    splits: dict[str, list[Shard]]
    image_key: str
    label_key: str
    image_shape: tuple[int, int, int] | None  # None: not all of one size
    num_classes: int
    class_names: tuple[str, ...]


def read_info(folder: Path) -> PreparedInfo:
    """Reads what the folder should hold.

    Raises:
        DamagedFileError: if the description cannot be read.
        ResNetJaxError: if the dataset is not of images and labels in the format array_record.
    """
    info = _read_json(folder, "dataset_info.json")
    features = _read_json(folder, "features.json")
    try:
        name = info["name"]
        file_format = info.get("fileFormat", "tfrecord")
        if file_format != "array_record":
            raise ResNetJaxError(
                f"{folder} is prepared as {file_format}, which needs TensorFlow: expected "
                f"array_record (give another folder, --data.dir, and run "
                f"`resnet-jax data prepare {name}` there)"
            )
        keys = [item["featureKey"] for item in info["supervisedKeys"]["tuple"]["items"]]
        image_key, label_key = keys
        parts = features["featuresDict"]["features"]
        image, label = parts[image_key]["image"], parts[label_key]["classLabel"]
        sizes = [int(size) for size in image.get("shape", {}).get("dimensions", [])]
        plain = len(sizes) == 3 and min(sizes) > 0 and image.get("dtype") == "uint8"
        if plain and math.prod(sizes) > MAX_VALUES:
            raise ValueError(f"images of {sizes}")
        num_classes = int(label["numClasses"])
        splits = {split["name"]: _shards(folder, info, split) for split in info["splits"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ResNetJaxError(
            f"{folder} does not describe images with labels ({type(error).__name__}: {error}): "
            "expected a dataset for classification prepared by TFDS (--data.dir)"
        ) from error
    names_file = _within(folder, f"{label_key}.labels.txt")
    names = [str(i) for i in range(num_classes)]
    if names_file.exists():
        try:
            names = [line for line in names_file.read_text("utf-8").split("\n") if line]
            if len(names) != num_classes:
                raise ValueError(f"{len(names)} names for {num_classes} classes")
        except (OSError, ValueError) as error:
            raise damaged(names_file, error) from error
    shape = (sizes[0], sizes[1], sizes[2]) if plain else None
    return PreparedInfo(
        folder, name, splits, image_key, label_key, shape, num_classes, tuple(names)
    )


def _read_json(folder: Path, file: str) -> Any:
    try:
        return json.loads(folder.joinpath(file).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(folder / file, error) from error


def _shards(folder: Path, info: dict[str, Any], split: dict[str, Any]) -> list[Shard]:
    lengths = [int(length) for length in split["shardLengths"]]
    template = split.get(
        "filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    ).replace("{SHARD_X_OF_Y}", "{SHARD_INDEX}-of-{NUM_SHARDS}")
    names = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": info["fileFormat"]}
    shards = []
    for i, length in enumerate(lengths):
        places = {**names, "SHARD_INDEX": f"{i:05d}", "NUM_SHARDS": f"{len(lengths):05d}"}
        # Plain replacement: `str.format` would follow attributes that a file names.
        name = re.sub(r"\{([A-Z_]+)\}", lambda match: str(places[match[1]]), template)  # noqa: B023
        shards.append(Shard(_within(folder, name), length))
    return shards


def _within(folder: Path, name: str) -> Path:
    """The path of a file that a description names; it must be in the folder itself."""
    if Path(name).name != name:
        raise ResNetJaxError(
            f"{folder} is damaged: {name} is no file in it; give another folder (--data.dir)"
        )
    return folder / name


class DamagedFileError(ResNetJaxError):
    """A prepared file is missing or holds something else than was written: make it again."""


def damaged(path: Path, why: object) -> DamagedFileError:
    """Returns the error that names a damaged file and what mends it."""
    reason = " ".join(str(why).split()) or type(why).__name__
    if len(reason) > 120:
        reason = reason[:117] + "..."
    folder = path.parent.parent
    return DamagedFileError(
        f"{path} is damaged ({reason}): run `resnet-jax data prepare {folder.name} "
        f"--dir {folder.parent}` to make it again, or give another folder (--data.dir)"
    )


def read_prepared(info: PreparedInfo) -> Arrays:
    """Reads every example of every split into memory, in the order of TFDS.

    Raises:
        DamagedFileError: if a shard is missing, truncated or damaged, or holds another number of
            examples than it should; the message names the file.
        ResNetJaxError: if the images are not all of one size.
    """
    arrays = {}
    for split, shards in info.splits.items():
        parts = [read_shard(info, split, number) for number in range(len(shards))]
        if len(parts) == 1:
            arrays[split] = parts[0]
        else:
            images, labels = zip(*parts, strict=True)
            arrays[split] = (np.concatenate(images), np.concatenate(labels))
    return arrays


def read_shard(info: PreparedInfo, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads one shard of a split: uint8[N, H, W, C] and int32[N].

    Raises:
        DamagedFileError, ResNetJaxError: as ``read_prepared``.
    """
    shard = info.splits[split][number]
    records = _read_records(shard)
    try:
        try:
            files, labels = parse_examples(records, info.image_key, info.label_key)
            if info.image_shape is None:
                raise UnsupportedPng("images of several sizes, or not of 8 bits")
            images = decode_pngs(files, info.image_shape)
        except UnsupportedPng:
            images, labels = _read_with_tfds(info, split, number)
        if labels.size and not 0 <= labels.min() <= labels.max() < info.num_classes:
            raise ValueError(f"a label is not 0 to {info.num_classes - 1}")
    except ValueError as error:
        raise damaged(shard.path, error) from error
    return images, labels


def _read_records(shard: Shard) -> list[bytes]:
    # Imported here: it takes a tenth of a second, which a cached dataset does without.
    from array_record.python.array_record_module import ArrayRecordReader

    if not shard.path.is_file():
        raise damaged(shard.path, "the file is missing")
    try:
        reader = ArrayRecordReader(str(shard.path))
        try:
            records: list[bytes] = reader.read_all()
        finally:
            reader.close()
    except Exception as error:  # the library raises whatever its C++ status maps to
        raise damaged(shard.path, error) from error
    if len(records) != shard.examples:
        raise damaged(shard.path, f"it holds {len(records)} examples of {shard.examples}")
    return records


def parse_examples(
    records: list[bytes], image_key: str, label_key: str
) -> tuple[list[bytes], np.ndarray]:
    """Takes N serialised ``tf.train.Example`` messages of one PNG file and one label apart.

    Such a message is ``Example{1: Features{1: map entry{1: key, 2: Feature}, 1: map entry}}``
    with ``Feature{1: BytesList{1: bytes}}`` or ``Feature{3: Int64List{1: packed varints}}``. One
    regular expression reads that layout in 1 µs, where the message's class, which would also
    cost the import of TFDS, takes 4. Anything else goes the general way.

    Returns:
        N PNG files, and int32[N].

    Raises:
        UnsupportedPng: if a message is laid out otherwise.
    """
    varint = rb"[\x80-\xff]*[\x00-\x7f]"

    def entry(key: str, kind: bytes, value: bytes) -> bytes:
        name = re.escape(bytes([len(key)]) + key.encode())
        return rb"\n%b\n%b\x12%b%b%b\n%s" % (varint, name, varint, kind, varint, value)

    image = entry(image_key, rb"\n", varint + rb"(?P<image>\x89PNG.*IEND\xaeB`\x82)")
    label = entry(label_key, rb"\x1a", varint + rb"(?P<label>%b)" % varint)
    # The entries of a map may come in any order.
    orders = [
        re.compile(rb"\n" + varint + first + second, re.DOTALL)
        for first, second in ((label, image), (image, label))
    ]
    files, labels = [], np.empty(len(records), np.int32)
    for i, record in enumerate(records):
        match = orders[0].fullmatch(record) or orders[1].fullmatch(record)
        if match is None:
            raise UnsupportedPng("an example is not one PNG image and one label")
        files.append(match["image"])
        labels[i] = sum((byte & 127) << 7 * k for k, byte in enumerate(match["label"]))
    return files, labels


def _read_with_tfds(info: PreparedInfo, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a shard of any kind of image (JPEG, palettes, further features): 15 times slower."""
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(info.folder).as_data_source(split=split)
    start = sum(shard.examples for shard in info.splits[split][:number])
    stop = start + info.splits[split][number].examples
    images, labels = [], []
    for first in range(start, stop, 1000):
        for example in source.__getitems__(list(range(first, min(first + 1000, stop)))):
            images.append(example[info.image_key])
            labels.append(example[info.label_key])
    sizes = sorted({image.shape for image in images})
    if len(sizes) != 1 or images[0].dtype != np.uint8:
        raise ResNetJaxError(
            f"{info.folder} holds images of {len(sizes)} sizes, {sizes[0]} to {sizes[-1]}, of "
            f"{images[0].dtype}: expected one size and uint8, as all are kept in one array"
        )
    return np.stack(images), np.array(labels, np.int32)
