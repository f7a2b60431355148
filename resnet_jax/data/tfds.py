"""Datasets of TFDS: find, describe, read, prepare and verify them, without TensorFlow.

TFDS and array_record are imported where they are used: to import them takes longer than to open a
dataset from the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import math
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data.cache import Arrays, cached_facts, cached_value, file_digest, file_stamp
from resnet_jax.data.image import FORMATS, MAX_PIXELS, DecodeSpec, Fit, read_image
from resnet_jax.data.mnist import (
    DATASETS,
    IDX_FILES,
    DatasetInfo,
    find_idx_files,
    mnist_5k,
    mnist_5k_file,
    read_idx_files,
    unknown,
)
from resnet_jax.data.report import VerifyReport
from resnet_jax.errors import ResNetJaxError

PROBE_SECONDS = 4.0
MAX_VALUES = 3 * MAX_PIXELS


class DamagedFileError(ResNetJaxError):
    """A prepared file is missing or holds something else than was written: prepare it again."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A dataset of images and class labels that TFDS prepared as array_record."""

    folder: Path
    root: Path  # the folder of TFDS's datasets that it is in
    class_names: tuple[str, ...]
    shape: tuple[int | None, int | None, int]  # None for a height or width that differs
    keys: tuple[str, str]  # the names of the features with the image and the label
    splits: dict[str, dict[str, int]]  # split -> file name -> number of records

    @property
    def name(self) -> str:
        """The name in TFDS, with the configuration: ``emnist/letters``."""
        return _name(self.folder, self.root)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of every image, or None if sizes differ."""
        height, width, channels = self.shape
        return None if height is None or width is None else (height, width, channels)

    def spec(
        self, size: int | None, *, fit: Fit = "pad", background: int | None = None
    ) -> DecodeSpec:
        """Return how images are decoded: as they are, or to a square if their sizes differ."""
        if self.image_shape is not None:
            return DecodeSpec(self.image_shape)
        if size is None:
            raise ResNetJaxError(
                f"{self.folder} holds images of several sizes: give the side to bring them to, "
                "--data.image-size 224 for photographs or less for drawings"
            )
        return DecodeSpec((size, size, self.shape[2]), fit, background)

    def shard_paths(self, split: str) -> list[Path]:
        """Return the paths of a split's files, in the order of its records."""
        return [self.folder / file for file in self.splits[split]]

    def records(self, split: str, spec: DecodeSpec) -> Records:
        """Return a split for random access."""
        return Records(self, split, spec)

    def is_labelled(self, split: str) -> bool:
        """Whether the first record has a label: TFDS writes -1 where they are not published."""

        def look(path: Path) -> bool:
            records = self.records(split, self.spec(8, background=0))
            return bool(records.read(np.array([0]), lowest_label=-1)[1][0] >= 0)

        first = self.shard_paths(split)[:1] if any(self.splits[split].values()) else []
        return cached_facts(f"{self.name}-{split}", self.folder, first, look, workers=1) == [True]

    def content_digest(self, splits: Sequence[str], spec: DecodeSpec, *, workers: int) -> str:
        """Return a SHA-256 over the files of some splits and how they are decoded."""
        paths = [path for split in splits for path in self.shard_paths(split)]
        digests = cached_facts(
            f"{self.name}-sha256", self.folder, paths, file_digest, workers=workers
        )
        for path, digest in zip(paths, digests, strict=True):
            if isinstance(digest, OSError):
                raise _damaged(path, self.root, digest.strerror)
        lengths = {split: sum(self.splits[split].values()) for split in splits}
        what = f"({self.class_names}, ({digests}, {lengths}, {spec.fingerprint_text}))"
        return hashlib.sha256(what.encode()).hexdigest()


class Records:
    """A split of a prepared dataset whose records are read and decoded when asked for."""

    def __init__(self, prepared: Prepared, split: str, spec: DecodeSpec) -> None:
        self.prepared, self.spec = prepared, spec
        self._shards = list(prepared.splits[split].items())
        self._starts = np.cumsum([0, *prepared.splits[split].values()])
        self._readers: dict[Path, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray, *, lowest_label: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Decode the records at ``indices`` (int[M]): uint8[M, H, W, C] and int32[M]."""
        images = np.empty((len(indices), *self.spec.shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            positions = (indices[chosen] - self._starts[shard]).tolist()
            file, count = self._shards[shard]
            path, place = self.prepared.folder / file, ""
            try:
                records = self._reader(path, count).read(positions)
                for i, position, record in zip(chosen, positions, records, strict=True):
                    place = f"record {position}: "
                    content, label = self._parse(record)
                    if not lowest_label <= label < len(self.prepared.class_names):
                        raise ValueError(
                            f"label {label}, not 0 to {len(self.prepared.class_names) - 1}"
                        )
                    labels[i] = label
                    images[i] = self._decode(content, f"record {position} of {path}")
            except ResNetJaxError:
                raise
            except Exception as error:  # what array_record, protobuf and Pillow make of damage
                raise _damaged(path, self.prepared.root, f"{place}{error}") from error
        return images, labels

    def _reader(self, path: Path, count: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if path not in self._readers:
                if not path.is_file():
                    raise ValueError("the file is missing")
                # Records are read in any order: what comes next in the file is of no use.
                reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
                if reader.num_records() != count:
                    raise ValueError(f"it holds {reader.num_records()} records, not {count}")
                self._readers[path] = reader
            return self._readers[path]

    def _parse(self, record: bytes) -> tuple[bytes, int]:
        from tensorflow_datasets.proto import tf_example_pb2

        features = tf_example_pb2.Example.FromString(record).features.feature
        image_key, label_key = self.prepared.keys
        return features[image_key].bytes_list.value[0], features[label_key].int64_list.value[0]

    def _decode(self, content: bytes, name: str) -> np.ndarray:
        height, width, channels = self.spec.shape
        if self.prepared.image_shape is not None:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.size != (width, height):
                    raise ValueError(f"{image.width}x{image.height} pixels, not {width}x{height}")
                plain = image.format == "PNG" and "transparency" not in image.info
                if plain and image.mode == {1: "L", 3: "RGB", 4: "RGBA"}.get(channels):
                    return np.asarray(image).reshape(self.spec.shape)
        return read_image(content, self.spec, name=name)


def _name(folder: Path, root: Path) -> str:
    return folder.parent.relative_to(root).as_posix()


def _damaged(path: Path, root: Path, why: object) -> DamagedFileError:
    reason = " ".join(str(why).split())[:160] or type(why).__name__
    return DamagedFileError(
        f"{path} is damaged ({reason}): run `resnet-jax data prepare {_name(path.parent, root)} "
        f"--dir {root}` to make it again, or give another folder (--data.dir)"
    )


def tfds_root(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of TFDS's datasets: the argument, $TFDS_DATA_DIR, or TFDS's default."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry in the list of users
        raise ResNetJaxError(
            f"the folder {chosen} cannot be located: give --data.dir or set TFDS_DATA_DIR"
        ) from error


def open_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> Prepared:
    """Find and describe a prepared dataset; download MNIST or Fashion-MNIST if that is all.

    Only the default folder is downloaded to: a ``data_dir`` that lacks the dataset is an error, as
    is any other dataset that is not prepared.
    """
    root = tfds_root(data_dir)
    if data_dir is not None and not root.is_dir():
        raise ResNetJaxError(
            f"{root} is no folder: expected one with prepared datasets (--data.dir)"
        )
    folder = _find(name, root)
    if folder is None:
        if name not in DATASETS or data_dir is not None:
            raise _not_prepared(name, root)
        folder = prepare(name)
    files = sorted([*folder.glob("*.json"), *folder.glob("*.txt")])  # all but the records
    key = [[file.name, *file_stamp(file)] for file in files]
    known = cached_value(_name(folder, root), folder, key, lambda: _describe(folder, root))
    return _prepared(folder, root, **known)


def _find(name: str, root: Path) -> Path | None:
    """Return the newest ``root/name/x.y.z`` that was finished, or None.

    For a dataset with several configurations ``name`` is ``emnist/letters``, or ``emnist`` where
    only one of them is prepared.
    """
    place, found = root / name, {}
    if not place.is_relative_to(root):
        return None
    for folder in (place, *sorted(place.glob("*"))):
        versions = [
            version
            for version in folder.glob("*.*.*")
            if version.name.replace(".", "").isdigit() and (version / "dataset_info.json").exists()
        ]
        if versions:
            found[folder] = max(versions, key=lambda v: [int(part) for part in v.name.split(".")])
    if len(found) > 1 and place not in found:
        names = ", ".join(f"{name}/{folder.name}" for folder in found)
        raise ResNetJaxError(f"`{name}` is prepared in several configurations: give one of {names}")
    return next(iter(found.values()), None)


def _not_prepared(name: str, root: Path) -> ResNetJaxError:
    if name not in DATASETS:
        _check_known(name)
    files = ", local IDX files (--data.from-idx DIR)" if name in DATASETS else ""
    where = "" if root == tfds_root() else f" --dir {root}"
    return ResNetJaxError(
        f"{root} holds no prepared `{name}`: give another folder (--data.dir){files}, or run "
        f"`resnet-jax data prepare {name}{where}`"
    )


def _check_known(name: str) -> None:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        raise unknown(name, known)


def _prepared(
    folder: Path, root: Path, class_names: Any, shape: Any, keys: Any, splits: Any
) -> Prepared:
    return Prepared(folder, root, tuple(class_names), tuple(shape), tuple(keys), splits)


def _describe(folder: Path, root: Path) -> dict[str, Any]:
    """Return what TFDS knows of a folder: JSON values of `Prepared`."""
    import tensorflow_datasets as tfds

    try:
        # TFDS imports the modules that this file names: only its own may run.
        json.loads(folder.joinpath("features.json").read_bytes(), object_hook=_check_class)
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # TFDS raises what its parsers do
        raise _damaged(folder / "features.json or dataset_info.json", root, error) from error
    if info.file_format.value != "array_record":
        raise ResNetJaxError(
            f"{folder} is prepared as {info.file_format.value}, which needs TensorFlow: expected "
            "array_record (give another folder, --data.dir, and run `resnet-jax data prepare "
            f"{_name(folder, root)}` there)"
        )
    keys = _image_and_label(_name(folder, root), info)
    image, label = (info.features[key] for key in keys)
    if np.dtype(image.np_dtype) != np.uint8 or math.prod(n or 1 for n in image.shape) > MAX_VALUES:
        raise ResNetJaxError(
            f"{folder} holds {image}: expected uint8 of at most {MAX_VALUES:,} values (--data.dir)"
        )
    names_file = Path(label.get_names_filepath(folder, keys[1]))
    try:
        # Read again, since TFDS passes over a damaged one.
        names = tfds.features.ClassLabel(names_file=names_file).names
        if len(names) != label.num_classes:
            raise ValueError(f"{len(names)} names of {label.num_classes} classes")
    except FileNotFoundError:
        names = label.names
    except (OSError, ValueError) as error:
        raise _damaged(names_file, root, error) from error
    splits = {}
    for split, described in info.splits.items():
        paths = [Path(path) for path in described.filepaths]
        if elsewhere := [path for path in paths if path.parent != folder]:
            raise ResNetJaxError(
                f"{folder} is damaged: {elsewhere[0]} is no file in it; give another folder "
                "(--data.dir)"
            )
        files = [path.name for path in paths]
        splits[split] = dict(zip(files, described.shard_lengths, strict=True))
    return {"class_names": names, "shape": image.shape, "keys": keys, "splits": splits}


def _check_class(entry: dict[str, Any]) -> dict[str, Any]:
    for key in ("pythonClassName", "python_class_name", "type"):
        value = entry.get(key)
        if isinstance(value, str) and not value.startswith("tensorflow_datasets."):
            raise ValueError(f"{value} is no class of TFDS")
    return entry


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Return the features that TFDS calls supervised, or the only Image and the only ClassLabel."""
    import tensorflow_datasets as tfds

    named = isinstance(info.features, tfds.features.FeaturesDict)
    features = dict(info.features.items()) if named else {}
    kinds = [tfds.features.Image, tfds.features.ClassLabel]
    keys = [str(key) for key in info.supervised_keys or ()]
    if [type(features.get(key)) for key in keys] != kinds:
        keys = [key for kind in kinds for key in features if isinstance(features[key], kind)]
    if [type(features[key]) for key in keys] != kinds:
        held = ", ".join(type(feature).__name__ for feature in features.values())
        raise ResNetJaxError(
            f"`{name}` holds {held or 'nothing known'} in each example: expected an Image and a "
            "ClassLabel (--data.name)"
        )
    return keys[0], keys[1]


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    from_idx: str | os.PathLike[str] | None = None,
) -> Path:
    """Make a dataset ready for reading; return its folder, or the file of ``mnist_5k``.

    What is prepared already is read through and kept if it is whole, and replaced if not. The
    dataset appears in its place complete, in one step; two processes may prepare at once.
    Datasets that are not in ``DATASETS``, such as ``emnist/letters``, need TensorFlow. With
    ``from_idx``, a folder with the published IDX files of MNIST or Fashion-MNIST, no network is
    used.
    """
    info, root, arrays = DATASETS.get(name), tfds_root(data_dir), None
    if from_idx is not None:
        if info is None or not info.idx_sha256:
            raise ResNetJaxError(f"`{name}` does not come as IDX files: leave --data.from-idx out")
        # Before anything else, so that faulty files are never passed over.
        arrays = read_idx_files(find_idx_files(Path(from_idx).expanduser()), info)
    if name == "mnist_5k":
        mnist_5k()
        return mnist_5k_file()
    found = _find(name, root)
    if found is not None:
        with contextlib.suppress(DamagedFileError):
            if not _check_shards(_prepared(found, root, **_describe(found, root))):
                return found
    if info is None:
        _check_known(name)
        if importlib.util.find_spec("tensorflow") is None:
            raise ResNetJaxError(
                f"`{name}` needs TensorFlow to be prepared, not to be read: run `pip install "
                "'resnet_jax[prepare]'`, or give a folder where it is prepared (--data.dir)"
            )
    elif arrays is None:
        _check_reachable(info)
    try:
        return _build(name, root, found, arrays)
    except ResNetJaxError:
        raise
    except Exception as error:  # TFDS, its downloader and the file system have many
        lines = str(error).strip().splitlines() or [""]
        remedy = " or local IDX files (--data.from-idx DIR)" if info is not None else ""
        raise ResNetJaxError(
            f"`{name}` could not be prepared in {root} ({type(error).__name__}: {lines[0][:400]}):"
            f" try again, or give another folder (--data.dir){remedy}"
        ) from error


def _build(name: str, root: Path, replaces: Path | None, arrays: Arrays | None) -> Path:
    """Prepare in a temporary folder below ``root`` and move the result into its place."""
    import tensorflow_datasets as tfds

    root.mkdir(parents=True, exist_ok=True)
    prefix = f".{name.replace('/', '-')}-"
    for abandoned in root.glob(f"{prefix}*"):  # by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - abandoned.stat().st_mtime > 86_400:
                shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root, ignore_cleanup_errors=True) as work:
        if name in DATASETS:
            builder = _idx_builder(DATASETS[name], arrays)(data_dir=work)
        else:
            builder = tfds.builder(name, data_dir=work)
            _image_and_label(name, builder.info)  # before anything is downloaded
        config = tfds.download.DownloadConfig(
            manual_dir=root / "downloads" / "manual",
            try_download_gcs=False,
            force_checksums_validation=True,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # where TFDS prints the temporary folder
            builder.download_and_prepare(file_format="array_record", download_config=config)
        built = Path(builder.data_dir)
        target = root / built.relative_to(work)
        if replaces is None and target.exists() and _find(name, root) is None:
            replaces = target  # what is left of a dataset whose description is gone
        if replaces is not None and replaces.exists():
            replaces.rename(Path(work, "replaced"))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            built.rename(target)
        except OSError:
            if _find(name, root) is None:  # else another process was faster
                raise
    return target


def _idx_builder(info: DatasetInfo, arrays: Arrays | None) -> Any:
    """Return TFDS's builder without its two calls of TensorFlow: to read IDX and to encode PNG."""
    import tensorflow_datasets as tfds

    def examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        # The keys are those of TFDS's builder: their hash decides the order.
        for key, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            file = io.BytesIO()
            Image.fromarray(image[..., 0]).save(file, "png")
            yield key, {"image": file.getvalue(), "label": label}

    class FromIdx(tfds.builder_cls(info.name), skip_registration=True):  # type: ignore[call-arg,misc]
        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            splits = arrays
            if splits is None:  # TFDS compares the files with its registered checksums
                urls = {file: f"{info.source}{file}.gz" for file in IDX_FILES}
                paths = {file: Path(path) for file, path in dl_manager.download(urls).items()}
                splits = read_idx_files(paths, info)
            return {split: examples(*pair) for split, pair in splits.items()}

    FromIdx.name = info.name
    return FromIdx


def _check_reachable(info: DatasetInfo) -> None:
    """Ask the host for one small file's header: TFDS would try for 200 s without a network."""
    import urllib.request  # here: slow to import and seldom needed

    request = urllib.request.Request(f"{info.source}{IDX_FILES[-1]}.gz", method="HEAD")
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()

    def probe() -> None:
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                answer.put("")
        except Exception as error:
            answer.put(str(error) or type(error).__name__)

    # In a thread, because to look up a name has no time limit.
    threading.Thread(target=probe, daemon=True).start()
    try:
        reason = answer.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        reason = f"no answer in {PROBE_SECONDS:g} s"
    if reason:
        raise ResNetJaxError(
            f"`{info.name}` is not prepared and cannot be downloaded from {info.source} "
            f"({reason}): give a folder where it is prepared (--data.dir DIR or "
            "TFDS_DATA_DIR) or local IDX files (--data.from-idx DIR)"
        )


def verify_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> VerifyReport:
    """Read every file of a dataset, past any cache, and report which are whole."""
    root = tfds_root(data_dir)
    folder = mnist_5k_file().parent if name == "mnist_5k" else _find(name, root)
    if folder is None:
        raise _not_prepared(name, root)
    good: list[str] = []
    bad: list[str] = []
    try:
        if name == "mnist_5k":
            mnist_5k()
            good.append(mnist_5k_file().name)
        else:
            prepared = _prepared(folder, root, **_describe(folder, root))
            good += ["dataset_info.json", "features.json"]
            damaged = _check_shards(prepared)
            bad += damaged.values()
            files = [file for split in prepared.splits.values() for file in split]
            good += [file for file in files if file not in damaged]
    except ResNetJaxError as error:
        bad.append(str(error))
    return VerifyReport(name, folder, tuple(good), tuple(bad), "nothing" if bad else "all of it")


def _check_shards(prepared: Prepared) -> dict[str, str]:
    """Decode every record of every split; return what is wrong with the damaged files."""
    damaged = {}
    spec = prepared.spec(8, background=0)  # any size: what does not decode fails at each
    for split in prepared.splits:
        records, start = prepared.records(split, spec), 0
        for file, count in prepared.splits[split].items():
            try:
                for first in range(start, start + count, 1000):
                    indices = np.arange(first, min(first + 1000, start + count))
                    records.read(indices, lowest_label=-1)
            except ResNetJaxError as error:
                damaged[file] = str(error)
            start += count
    return damaged
