"""Datasets that TFDS prepared as array_record: found, described, read and verified.

TFDS and array_record are imported only where they are used, because their import takes longer than
opening a dataset from the cache. TensorFlow is not needed.
"""

import contextlib
import dataclasses
import difflib
import errno
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.config import DataConfig
from resnet_jax.data.cache import cached_facts, user_folder
from resnet_jax.data.dataset import DiskSplit, Examples, check_countable, small_parts
from resnet_jax.data.image import FORMATS, MAX_PIXELS, DecodeSpec, read_image
from resnet_jax.data.mnist import DATASETS, mnist_5k, mnist_5k_file
from resnet_jax.data.walk import SPLITS
from resnet_jax.errors import ResNetJaxError, command
from resnet_jax.memory import cores
from resnet_jax.storage import PathLike, VerifyReport, expanded, file_sha256

MAX_VALUES = 3 * MAX_PIXELS


class DamagedFileError(ResNetJaxError):
    """A prepared file is missing or does not hold what was written: prepare it again."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A dataset of images and class labels that TFDS prepared as array_record."""

    folder: Path
    root: Path  # the folder of all TFDS datasets, which holds ``folder``
    class_names: tuple[str, ...]
    shape: tuple[int | None, int | None, int]  # None for a height or width that varies
    keys: tuple[str, str]  # the names of the features with the image and the label
    splits: dict[str, dict[str, int]]  # split -> file name -> number of records


class Records:
    """The records in some files of a prepared dataset; without ``settings``, only for checks."""

    def __init__(
        self, prepared: Prepared, files: dict[str, int], settings: DataConfig | None = None
    ) -> None:
        # A check accepts any image size, and label -1, which TFDS writes where none is published.
        self._labels = range(0 if settings else -1, len(prepared.class_names))
        settings = settings or DataConfig(image_size=8, background=0)
        self.spec = DecodeSpec(prepared.shape, background=settings.background)  # type: ignore[arg-type]
        if None in prepared.shape:
            self.spec = DecodeSpec.of(f"images in {prepared.folder}", prepared.shape, settings)
        self.prepared, self._files = prepared, list(files.items())
        self._starts = np.cumsum([0, *files.values()])
        self._reader = cache(_open_records)
        self.split = DiskSplit(self._read, np.arange(self._starts[-1]), self.spec.shape)

    def _read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(positions), *self.spec.shape), np.uint8)
        labels = np.empty(len(positions), np.int32)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            numbers = (positions[chosen] - self._starts[shard]).tolist()
            file, count = self._files[shard]
            path = self.prepared.folder / file
            with _reading(path, self.prepared.root):
                records = self._reader(path, count).read(numbers)
                found = list(zip(chosen, numbers, records, strict=True))
            for i, number, record in found:
                with _reading(path, self.prepared.root, f"record {number}: "):
                    images[i], labels[i] = self._decode(record, f"record {number} of {path}")
        return images, labels

    def _decode(self, record: bytes, name: str) -> tuple[np.ndarray, int]:
        from tensorflow_datasets.proto import tf_example_pb2

        features = tf_example_pb2.Example.FromString(record).features.feature
        image_key, label_key = self.prepared.keys
        content = features[image_key].bytes_list.value[0]
        label = features[label_key].int64_list.value[0]
        if label not in self._labels:
            raise ValueError(f"label {label}, not 0 to {self._labels[-1]}")
        height, width, channels = self.spec.shape
        if None not in self.prepared.shape:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.size != (width, height):
                    raise ValueError(f"{image.width}x{image.height} pixels, not {width}x{height}")
                plain = image.format == "PNG" and "transparency" not in image.info
                if plain and image.mode == {1: "L", 3: "RGB", 4: "RGBA"}.get(channels):
                    return np.asarray(image).reshape(self.spec.shape), label
        return read_image(content, self.spec, name=name), label


def _open_records(path: Path, count: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise ValueError("the file is missing")
    path.open("rb").close()  # array_record says 0 records if it cannot open a file
    # Records are read in any order, so reading ahead in the file is of no use.
    reader = ArrayRecordReader(os.fsencode(path), "readahead_buffer_size:0")
    if reader.num_records() != count:
        raise ValueError(f"it holds {reader.num_records()} records, not {count}")
    return reader


@contextlib.contextmanager
def _reading(path: Path, root: Path, place: str = "") -> Iterator[None]:
    """Turn an exception into an error that names the damaged file or says why reading failed."""
    try:
        yield
    except (ResNetJaxError, MemoryError):
        raise
    except Exception as error:  # what TFDS, array_record, protobuf and Pillow raise on damage
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise ResNetJaxError(
                f"{error.filename or path} cannot be read ({error.strerror}): try again, "
                "mend its permissions, or raise the limit on open files (ulimit -n)"
            ) from error
        reason = " ".join(f"{place}{error}".split())[:160] or type(error).__name__
        again = command("data", "prepare", dataset_name(path.parent, root), "--dir", root)
        raise DamagedFileError(
            f"{path} is damaged ({reason}): run {again} to make it again, or give another folder "
            "(--data.dir)"
        ) from error


def dataset_name(folder: Path, root: Path) -> str:
    """Return a dataset's name in TFDS, with its configuration: ``emnist/letters``."""
    return folder.parent.relative_to(root).as_posix()


def tfds_root(data_dir: PathLike | None = None) -> Path:
    if data_dir:
        return expanded(data_dir)
    return user_folder("TFDS_DATA_DIR", lambda: "~/tensorflow_datasets")


def find_prepared(name: str, root: Path) -> Path | None:
    """Return the newest finished version, ``root/name/x.y.z``, or None.

    For a dataset with several configurations, ``name`` is ``emnist/letters``, or ``emnist`` if only
    one of them is prepared.
    """
    place = root / name
    # "./mnist", and on case-insensitive disks "MNIST", would pass for other datasets than "mnist".
    other = name not in DATASETS and os.path.normpath(name).lower() in DATASETS
    if other or place == root or ".." in Path(name).parts or not place.is_relative_to(root):
        return None
    files = [*place.glob("*/dataset_info.json"), *place.glob("*/*/dataset_info.json")]
    versions = [f.parent for f in files if re.fullmatch(r"\d+\.\d+\.\d+", f.parent.name)]
    versions.sort(key=lambda version: [int(part) for part in version.name.split(".")])
    newest = {version.parent: version for version in versions}
    if len(newest) > 1 and place not in newest:
        names = ", ".join(f"{name}/{folder.name}" for folder in sorted(newest))
        raise ResNetJaxError(f"`{name}` is prepared in several configurations: give one of {names}")
    return newest.get(place) or next(iter(newest.values()), None)


def not_prepared(name: str, root: Path) -> ResNetJaxError:
    check_known(name)
    files = ", local IDX files (--data.from-idx DIR)" if name in DATASETS else ""
    where = [] if root == tfds_root() else ["--dir", root]
    return ResNetJaxError(
        f"{root} holds no prepared `{name}`: give another folder (--data.dir){files}, or run "
        f"{command('data', 'prepare', name, *where)}"
    )


def check_known(name: str) -> None:
    import tensorflow_datasets as tfds

    if name == "folder":
        raise ResNetJaxError(
            "your own images need no preparing: `resnet-jax verify DIR` checks their folder, "
            "`resnet-jax train folder --data.dir DIR` trains on it"
        )
    known = [*DATASETS, *tfds.list_builders(with_community_datasets=False)]
    if name.split("/")[0] in known:
        return
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    raise ResNetJaxError(
        f"unknown dataset `{name}`{hint}: expected one of {', '.join(DATASETS)} "
        "(`resnet-jax data list` describes them), another that TFDS knows, or folder; give a run's "
        "own dataset to rj.Run.open(..., data=...)"
    )


def open_prepared(folder: Path, root: Path, settings: DataConfig) -> Examples:
    """Open the splits of a dataset that a run can use; their description is cached."""
    name = dataset_name(folder, root)
    (found,) = cached_facts(name, root, [folder], partial(_describe_splits, root=root))
    class_names, shape, keys, splits, sha256 = found
    if "train" not in splits:
        raise ResNetJaxError(f"{folder} has no split `train` with labels: give another --data.name")
    prepared = Prepared(folder, root, tuple(class_names), tuple(shape), tuple(keys), splits)
    lengths = {split: sum(files.values()) for split, files in splits.items()}
    files = {file: count for part in splits.values() for file, count in part.items()}
    records = Records(prepared, files, settings)
    held_out = DATASETS[name].validation if name in DATASETS else lengths.get("validation")
    what = f"({prepared.class_names}, ({sha256}, {lengths}, {records.spec.fingerprint_text}))"
    digest = hashlib.sha256(what.encode()).hexdigest()
    test = lengths.get("test", 0)
    return Examples(prepared.class_names, records.split, test, held_out, folder, digest)


def _describe_splits(folder: Path, root: Path) -> list[Any]:
    """Describe the labelled splits of a prepared dataset, with the checksums of their files."""
    whole, splits = describe(folder, root), {}
    known = dataset_name(folder, root) in DATASETS
    for split in filter(whole.splits.get, SPLITS):
        first = Records(whole, whole.splits[split]).split.take(slice(1))
        if known or (first.batch(np.arange(len(first)))[1] >= 0).any():
            splits[split] = whole.splits[split]
    paths = [folder / file for files in splits.values() for file in files]
    for path in paths:
        with _reading(path, root):
            if not path.is_file():  # reading a pipe or a device may never end
                raise ValueError("no such file")

    def sha256(path: Path) -> str:
        with _reading(path, root):
            return file_sha256(path)

    with ThreadPoolExecutor(cores()) as pool:
        return [whole.class_names, whole.shape, whole.keys, splits, [*pool.map(sha256, paths)]]


def describe(folder: Path, root: Path) -> Prepared:
    """Check the description of a prepared dataset and return what TFDS knows of it."""
    import tensorflow_datasets as tfds

    with _reading(folder / "features.json or dataset_info.json", root):
        for path in (folder / "dataset_info.json", folder / "features.json", *folder.glob("*.txt")):
            if path.exists() and not path.is_file():  # reading a pipe or a device may never end
                raise ValueError(f"{path.name} is no file")
        # Read first, because another format is no damage, and TFDS hides why a file cannot be read.
        about = json.loads((folder / "dataset_info.json").read_bytes())
        formats = [about.get("fileFormat", "tfrecord"), *about.get("alternativeFileFormats", ())]
        if "array_record" not in formats and about["name"]:
            raise ResNetJaxError(
                f"{folder} is prepared as {formats[0]}, which needs TensorFlow: run `resnet-jax "
                f"data prepare {dataset_name(folder, root)}` for another folder (--data.dir)"
            )
        # TFDS imports the modules that this file names, and only its own may run.
        json.loads(folder.joinpath("features.json").read_bytes(), object_hook=_check_class)
        info, splits = tfds.builder_from_directory(folder).info, {}
        info.set_file_format("array_record", override=True, override_if_initialized=True)
        for split, described in info.splits.items():
            paths = [Path(path) for path in described.filepaths]
            if elsewhere := [path for path in paths if path.parent != folder]:
                raise ValueError(f"{elsewhere[0]} is no file in it")
            names = [path.name for path in paths]
            splits[split] = dict(zip(names, described.shard_lengths, strict=True))
        sizes = [os.path.getsize(path) for path in folder.iterdir() if os.path.isfile(path)]
        if info.splits.total_num_examples > sum(sizes):
            raise ValueError("it counts more records than its files have bytes: are some missing?")
    keys = image_and_label(dataset_name(folder, root), info)
    image, label = (info.features[key] for key in keys)
    if np.dtype(image.np_dtype) != np.uint8 or math.prod(n or 1 for n in image.shape) > MAX_VALUES:
        raise ResNetJaxError(
            f"{folder} holds {image}: expected uint8 of at most {MAX_VALUES:,} values (--data.dir)"
        )
    check_countable(label.num_classes or 0)  # before each gets a name
    names_file = Path(label.get_names_filepath(folder, keys[1]))
    with _reading(names_file, root):
        names = label.names
        if names_file.exists():  # read again, because TFDS passes over a damaged file
            names = tfds.features.ClassLabel(names_file=names_file).names
        if len(names) != label.num_classes:
            raise ValueError(f"{len(names)} names of {label.num_classes} classes")
    return Prepared(folder, root, tuple(names), image.shape, keys, splits)


def _check_class(entry: dict[str, Any]) -> dict[str, Any]:
    for key in ("pythonClassName", "python_class_name", "type"):
        value = entry.get(key)
        if isinstance(value, str) and not value.startswith("tensorflow_datasets."):
            raise ValueError(f"{value} is no class of TFDS")
    if "names_file" in entry:  # it may name any file
        raise ValueError("its class names are in a file elsewhere")
    for key in ("json", "content"):  # TFDS also parses descriptions within a text
        if isinstance(entry.get(key), str):
            json.loads(entry[key], object_hook=_check_class)
    return entry


def image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Return the names of the supervised features, or of the only Image and the only ClassLabel."""
    import tensorflow_datasets as tfds

    features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
    kinds = [tfds.features.Image, tfds.features.ClassLabel]
    keys = [str(key) for key in info.supervised_keys or () if str(key) in features]
    if [type(features[key]) for key in keys] != kinds:
        keys = [key for kind in kinds for key in features if isinstance(features[key], kind)]
    if [type(features[key]) for key in keys] != kinds:
        held = ", ".join(type(feature).__name__ for feature in features.values())
        raise ResNetJaxError(
            f"`{name}` holds {held or 'nothing known'} in each example: expected an Image and a "
            "ClassLabel (--data.name)"
        )
    return keys[0], keys[1]


def verify_prepared(name: str, data_dir: PathLike | None = None) -> VerifyReport:
    """Read every file of a dataset, bypassing any cache, and report which are whole."""
    root = tfds_root(data_dir)
    if name == "mnist_5k":
        mnist_5k()
        path = mnist_5k_file()
        return VerifyReport(path.parent, (path.name,), (), "all of it")
    if (folder := find_prepared(name, root)) is None:
        raise not_prepared(name, root)
    prepared = describe(folder, root)
    good, damaged = ["dataset_info.json", "features.json"], []
    with ThreadPoolExecutor(cores()) as pool:
        for file, count in (shard for files in prepared.splits.values() for shard in files.items()):
            split = Records(prepared, {file: count}).split
            try:
                # In parts, so that all threads work and a signal need not wait for a whole file.
                for _ in pool.map(split.batch, small_parts(split, most=count // (4 * cores()))):
                    pass
                good.append(file)
            except ResNetJaxError as error:
                number = getattr(error.__cause__, "errno", None)
                if number not in (None, errno.ENOENT) or isinstance(error.__cause__, MemoryError):
                    raise  # the system's fault: a whole file need not be made again
                damaged.append(str(error))
    return VerifyReport(folder, tuple(good), tuple(damaged), "nothing" if damaged else "all of it")
