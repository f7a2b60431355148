"""Reading a dataset that TFDS (or our builders) prepared, without TensorFlow and without TFDS."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.files import Fit, read_image
from resnet_jax.data.png import UnsupportedPng, decode_pngs
from resnet_jax.data.source import ReadAs
from resnet_jax.errors import ResNetJaxError

MAX_VALUES = 300_000_000  # in an image: that of the largest image file read, in colour

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> uint8[N, H, W, C], int32[N]


def find_prepared(name: str, root: Path) -> Path | None:
    """Returns the newest ``root/name/x.y.z`` that holds a prepared dataset, or None.

    Of a dataset that comes in several configurations, ``name`` is ``emnist/letters``, or
    ``emnist`` where only one of them is prepared.

    Raises:
        ResNetJaxError: several configurations are prepared and ``name`` does not say which.
    """
    if newest := _newest_version(root / name):
        return newest
    found = [
        newest for folder in sorted(root.glob(f"{name}/*")) if (newest := _newest_version(folder))
    ]
    if len(found) > 1:
        names = ", ".join(f"{name}/{folder.parent.name}" for folder in found)
        raise ResNetJaxError(f"`{name}` is prepared in several configurations: give one of {names}")
    return found[0] if found else None


def _newest_version(folder: Path) -> Path | None:
    found = [
        (tuple(int(part) for part in version.name.split(".")), version)
        for version in folder.glob("*.*.*")
        if version.name.replace(".", "").isdigit()
        and version.joinpath("dataset_info.json").exists()
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
    channels: int
    num_classes: int
    class_names: tuple[str, ...]

    def read_as(
        self, size: int | None, *, fit: Fit = "pad", background: int | None = None
    ) -> ReadAs:
        """How its pictures become arrays: as they are, or where they differ squares of ``size``.

        Raises:
            ResNetJaxError: they are of several sizes and ``size`` is None.
        """
        if self.image_shape is not None:
            return ReadAs(self.image_shape)
        if size is None:
            raise ResNetJaxError(
                f"{self.folder} holds images of several sizes: give the side to bring them to, "
                "--data.image-size 224 for photographs or less for drawings"
            )
        return ReadAs((size, size, self.channels), fit, background)


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
        parts = features["featuresDict"]["features"]
        image_key, label_key = _image_and_label(info, parts)
        image, label = parts[image_key]["image"], parts[label_key]["classLabel"]
        if image.get("dtype", "uint8") != "uint8":
            raise ValueError(f"images are {image['dtype']}, not uint8")
        sizes = [int(size) for size in image.get("shape", {}).get("dimensions", [])]
        _, _, channels = sizes
        if math.prod(sizes) > MAX_VALUES:
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
    shape = (sizes[0], sizes[1], sizes[2]) if min(sizes) > 0 else None
    return PreparedInfo(
        folder, name, splits, image_key, label_key, shape, channels, num_classes, tuple(names)
    )


def _image_and_label(info: dict[str, Any], features: dict[str, Any]) -> tuple[str, str]:
    """The features that TFDS calls supervised, or the only image and the only label there are."""
    if "supervisedKeys" in info:
        image_key, label_key = (
            item["featureKey"] for item in info["supervisedKeys"]["tuple"]["items"]
        )
        return image_key, label_key
    images = [name for name, feature in features.items() if "image" in feature]
    labels = [name for name, feature in features.items() if "classLabel" in feature]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(f"{len(images)} images and {len(labels)} class labels in an example")
    return images[0], labels[0]


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
    name, root = folder.name, folder.parent
    if not path.name.startswith(f"{name}-") and list(path.parent.glob(f"{root.name}-*")):
        name, root = f"{root.name}/{name}", root.parent  # emnist/letters/3.1.0/emnist-train...
    return DamagedFileError(
        f"{path} is damaged ({reason}): run `resnet-jax data prepare {name} "
        f"--dir {root}` to make it again, or give another folder (--data.dir)"
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
    return _decode(info, shard, _read_records(shard), info.read_as(None))


def check_shard(info: PreparedInfo, split: str, number: int) -> None:
    """Reads and decodes every example of a shard, of whatever sizes.

    Raises:
        DamagedFileError, ResNetJaxError: as ``read_prepared``.
    """
    shard = info.splits[split][number]
    records = _read_records(shard)
    read_as = info.read_as(8, background=0)  # any size: what does not decode fails at each
    for start in range(0, len(records), 1000):
        _decode(info, shard, records[start : start + 1000], read_as, unlabelled=True)


class RecordSource:
    """A split of a prepared dataset, read record by record.

    Args:
        info: the dataset.
        split: the split's name.
        read_as: how its pictures become arrays.
    """

    def __init__(self, info: PreparedInfo, split: str, read_as: ReadAs) -> None:
        self.info, self.read_as = info, read_as
        self.shards = info.splits[split]
        self._starts = np.cumsum([0, *(shard.examples for shard in self.shards)])
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads and decodes the examples at ``indices``.

        Raises:
            DamagedFileError: a shard is missing or damaged; the message names the file.
        """
        images = np.empty((len(indices), *self.read_as.shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            shard = self.shards[number]
            places = (indices[chosen] - self._starts[number]).tolist()
            try:
                records = self._reader(number).read(places)
            except DamagedFileError:
                raise
            except Exception as error:  # whatever the library's C++ status maps to
                raise damaged(shard.path, error) from error
            images[chosen], labels[chosen] = _decode(self.info, shard, records, self.read_as)
        return images, labels

    @property
    def is_labelled(self) -> bool:
        """Whether the first example has a label; TFDS gives -1 where labels are not published."""
        first = self._reader(0).read([0])
        _, labels = _decode(self.info, self.shards[0], first, self.read_as, unlabelled=True)
        return bool(labels[0] >= 0)

    def _reader(self, number: int) -> Any:
        with self._lock:
            if number not in self._readers:
                # In any order, so that what the file holds next is of no use.
                options = "readahead_buffer_size:0"
                self._readers[number] = _open_shard(self.shards[number], options)
            return self._readers[number]


def _decode(
    info: PreparedInfo,
    shard: Shard,
    records: list[bytes],
    read_as: ReadAs,
    *,
    unlabelled: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes records of a shard: uint8[N, H, W, C] and int32[N]."""
    try:
        try:
            files, labels = parse_examples(records, info.image_key, info.label_key)
            if info.image_shape is None:
                raise UnsupportedPng("images of several sizes")
            images = decode_pngs(files, info.image_shape)
        except UnsupportedPng:
            images, labels = _decode_one_by_one(info, records, read_as)
        lowest = -1 if unlabelled else 0
        if labels.size and not lowest <= labels.min() <= labels.max() < info.num_classes:
            raise ValueError(f"a label is not 0 to {info.num_classes - 1}")
    except ValueError as error:
        raise damaged(shard.path, error) from error
    return images, labels


def _decode_one_by_one(
    info: PreparedInfo, records: list[bytes], read_as: ReadAs
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes records of any kind of image and with further features: 15 times slower."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    images = np.empty((len(records), *read_as.shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    for i, record in enumerate(records):
        try:
            features = tf_example_pb2.Example.FromString(record).features.feature
            file = features[info.image_key].bytes_list.value[0]
            labels[i] = features[info.label_key].int64_list.value[0]
        except (DecodeError, IndexError) as error:
            raise ValueError(f"an example holds no image or no label ({error})") from error
        images[i] = read_image(
            file,
            read_as.shape,
            fit=read_as.fit,
            background=read_as.background,
            name=f"an image of {info.folder}",
        )
    return images, labels


def _open_shard(shard: Shard, options: str = "") -> Any:
    # Imported here: it takes a tenth of a second, which a cached dataset does without.
    from array_record.python.array_record_module import ArrayRecordReader

    if not shard.path.is_file():
        raise damaged(shard.path, "the file is missing")
    try:
        reader = ArrayRecordReader(str(shard.path), options)
        count = reader.num_records()
    except Exception as error:  # the library raises whatever its C++ status maps to
        raise damaged(shard.path, error) from error
    if count != shard.examples:
        raise damaged(shard.path, f"it holds {count} examples of {shard.examples}")
    return reader


def _read_records(shard: Shard) -> list[bytes]:
    reader = _open_shard(shard)
    try:
        records: list[bytes] = reader.read_all()
    except Exception as error:
        raise damaged(shard.path, error) from error
    finally:
        reader.close()
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
