"""Preparing datasets with TFDS, by download or from local IDX files."""

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data import mnist
from resnet_jax.data.tfds import (
    DamagedFileError,
    check_known,
    dataset_name,
    find_prepared,
    image_and_label,
    tfds_root,
    verify_prepared,
)
from resnet_jax.errors import ResNetJaxError
from resnet_jax.storage import PathLike, expanded, temporary_folder

HOST_TIMEOUT = 4.0  # seconds for a host to answer

log = logging.getLogger(__name__)


def prepare(name: str, data_dir: PathLike | None = None, from_idx: PathLike | None = None) -> Path:
    """Make a dataset ready for reading; return its folder, or the file of ``mnist_5k``.

    A dataset that is already prepared is read through, kept if it is whole, and replaced if not.
    It appears in its place complete, in one step; two processes may prepare at once.
    Datasets that are not in ``DATASETS``, such as ``emnist/letters``, need TensorFlow. With
    ``from_idx``, a folder with the published IDX files of MNIST or Fashion-MNIST, no network is
    used.
    """
    info, root, arrays = mnist.DATASETS.get(name), tfds_root(data_dir), None
    if from_idx is not None:
        if info is None or not info.idx_sha256:
            raise ResNetJaxError(f"`{name}` does not come as IDX files: leave --data.from-idx out")
        # Read before anything else, so that faulty files are never passed over.
        folder = expanded(from_idx)
        arrays = mnist.read_idx_files(folder.glob("*ubyte*"), info, folder)
    if name == "mnist_5k":
        mnist.mnist_5k()
        return mnist.mnist_5k_file()
    found = find_prepared(name, root)
    if found is not None:
        name = dataset_name(found, root)  # with its configuration: TFDS's default may be another
        with contextlib.suppress(DamagedFileError):
            if verify_prepared(name, root).ok:
                return found
    if info is None:
        check_known(name)
        if importlib.util.find_spec("tensorflow") is None:
            raise ResNetJaxError(
                f"`{name}` needs TensorFlow to be prepared, not to be read: run `pip install "
                "'resnet_jax[prepare]'`, or give a folder where it is prepared (--data.dir)"
            )
    try:
        if info is not None and arrays is None:
            there = next(path for path in (root / name).resolve().parents if path.exists())
            with tempfile.TemporaryFile(dir=there):  # an unwritable disk fails before the download
                arrays = _download(info)
        return _build(name, root, found, arrays)
    except (ResNetJaxError, MemoryError):
        raise
    except Exception as error:  # TFDS, its downloader and the file system raise many types
        lines = str(error).strip().splitlines() or [""]
        raise ResNetJaxError(
            f"`{name}` could not be prepared in {root} ({type(error).__name__}: {lines[0][:400]}):"
            " try again, or give another folder (--data.dir)"
        ) from error


def _build(name: str, root: Path, replaces: Path | None, arrays: mnist.Arrays | None) -> Path:
    """Prepare in a temporary folder on the dataset's disk and move the result into its place."""
    import tensorflow_datasets as tfds

    # Beside the dataset's folder, which may be a link to one on another disk.
    beside = (root / name.split("/")[0]).resolve().parent
    with temporary_folder(beside, name.replace("/", "-")) as work:
        if arrays is not None:
            builder = _idx_builder(name, arrays)(data_dir=work)
        else:
            builder = tfds.builder(name, data_dir=work)
            image_and_label(name, builder.info)  # before anything is downloaded
        config = tfds.download.DownloadConfig(
            manual_dir=root / "downloads" / "manual",
            try_download_gcs=False,
            force_checksums_validation=True,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints the temporary folder
            builder.download_and_prepare(file_format="array_record", download_config=config)
        built = Path(builder.data_dir)
        target = root / built.relative_to(work)
        if find_prepared(name, root) == replaces:  # otherwise another process was faster
            # If ``replaces`` is None, ``target`` may hold a dataset whose description is gone.
            with contextlib.suppress(FileNotFoundError):
                (replaces or target).rename(Path(work, "replaced"))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            built.rename(target)
        except OSError:
            # Either another process was faster, or a third has just moved that one's result away,
            # or the disk fails, which the second try raises.
            if find_prepared(name, root) is None:
                built.rename(target)
    return target


def _idx_builder(name: str, arrays: mnist.Arrays) -> Any:
    """Return TFDS's builder without its two uses of TensorFlow: to read IDX and to encode PNG."""
    import tensorflow_datasets as tfds

    def examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        # The keys are those of TFDS's builder, because their hash decides the order.
        for key, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png")
            yield key, {"image": file.getvalue(), "label": label}

    class FromIdx(tfds.builder_cls(name), skip_registration=True):  # type: ignore[call-arg,misc]
        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: examples(*pair) for split, pair in arrays.items()}

    FromIdx.name = name
    return FromIdx


def _download(info: mnist.DatasetInfo) -> mnist.Arrays:
    """Download and read a dataset's IDX files; without a network, TFDS would try for 200 s."""
    import urllib.request  # here: slow to import and seldom needed

    with tempfile.TemporaryDirectory() as folder:
        for name in mnist.IDX_FILES:
            url = f"{info.source}{name}.gz"
            log.warning("downloading %s", url)
            try:
                with urllib.request.urlopen(url, timeout=HOST_TIMEOUT) as answer:
                    Path(folder, name).write_bytes(answer.read(mnist.MAX_BYTES))
            except Exception as error:  # from the network, the server or the disk
                if isinstance(error, urllib.request.HTTPError):
                    error.close()
                raise ResNetJaxError(
                    f"{url} cannot be downloaded ({error}): give a folder with `{info.name}` "
                    "(--data.dir DIR or TFDS_DATA_DIR) or its IDX files (--data.from-idx DIR)"
                ) from error
        return mnist.read_idx_files(Path(folder).iterdir(), info, info.source)
