"""Datasets of TFDS: preparing them from files, from a server, and without a network."""

import dataclasses
import functools
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from make_datasets import build, encoded, examples, flip, refusal, refused

from resnet_jax.data import mnist
from resnet_jax.data import prepare as preparing
from resnet_jax.data.load import load_dataset
from resnet_jax.data.mnist import DATASETS, read_idx_files
from resnet_jax.data.prepare import prepare
from resnet_jax.data.tfds import tfds_root


def leftovers(root):
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def assert_holds(data, folder):
    """Assert that a dataset has exactly the images and labels of the IDX files, in any order."""
    published = read_idx_files(folder.iterdir(), DATASETS["mnist"], folder)
    for split, parts in (("train", (data.train, data.validation)), ("test", (data.test,))):
        found, expected = (
            sorted((image.tobytes(), label) for image, label in zip(*pair, strict=True))
            for pair in (examples(*parts), published[split])
        )
        assert found == expected


def test_from_idx_prepares_what_tfds_reads(tiny_mnist, tmp_path, command):
    root = tmp_path / "new" / "root"
    options = ("--data.dir", root, "--data.from-idx", tiny_mnist)  # as errors name them
    _, out, _ = command("data", "prepare", "mnist", *options)
    assert "mnist is prepared in" in " ".join(out.split())
    assert leftovers(root) == ["mnist"]
    data = load_dataset("mnist", root)
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 12)
    assert_holds(data, tiny_mnist)
    # TFDS's own builder of that name opens it, in the same order.
    sources = tfds.builder("mnist", data_dir=root, file_format="array_record").as_data_source()
    images, labels = examples(data.train, data.validation)
    np.testing.assert_array_equal(images, [example["image"] for example in sources["train"]])
    np.testing.assert_array_equal(labels, [example["label"] for example in sources["train"]])


def test_the_order_is_that_of_tfds_s_builder(tiny_mnist, tmp_path):
    splits = read_idx_files(tiny_mnist.iterdir(), DATASETS["mnist"], tiny_mnist)
    pairs = {
        split: [(encoded(image), label) for image, label in zip(*arrays, strict=True)]
        for split, arrays in splits.items()
    }
    build(tmp_path / "theirs", pairs, name="mnist")
    prepare("mnist", tmp_path / "ours", tiny_mnist)
    fingerprints = {load_dataset("mnist", tmp_path / who).fingerprint for who in ("ours", "theirs")}
    assert len(fingerprints) == 1


def test_loading_prepares_from_idx_files_and_never_passes_over_faulty_ones(tiny_mnist, tmp_path):
    root = tmp_path / "root"
    data = load_dataset("mnist", root, from_idx=tiny_mnist)
    assert_holds(data, tiny_mnist)
    assert load_dataset("mnist", root).fingerprint == data.fingerprint  # now prepared
    (tiny_mnist / "train-labels-idx1-ubyte.gz").unlink()
    for target in (root, tmp_path / "other"):  # even where it is prepared already
        assert "lacks train-labels-idx1-ubyte" in refusal(target, "mnist", from_idx=tiny_mnist)
    assert leftovers(tmp_path / "other") == []
    for name in ("mnist_5k", "cifar10"):
        assert "does not come as IDX files" in refusal(None, name, from_idx=tiny_mnist)


def test_prepare_mends_a_damaged_dataset_and_leaves_a_whole_one(tiny_mnist, tmp_path):
    root = tmp_path / "root"
    folder = prepare("mnist", root, tiny_mnist)
    fingerprint = load_dataset("mnist", root).fingerprint
    before, after = folder.stat(), prepare("mnist", root).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    shard = folder / "mnist-train.array_record-00000-of-00001"
    for damage in (
        lambda: flip(shard, 5_000),
        lambda: shard.unlink(),
        lambda: (folder / "features.json").write_text("{"),
        lambda: (folder / "dataset_info.json").unlink(),
    ):
        damage()
        assert prepare("mnist", root, tiny_mnist) == folder
        assert load_dataset("mnist", root).fingerprint == fingerprint
    assert leftovers(root) == ["mnist"]


def test_several_may_prepare_at_once_and_clear_away_what_a_killed_process_left(
    tiny_mnist, tmp_path
):
    root = tmp_path / "root"
    for name in (".mnist-old", ".mnist-new"):
        (root / name / "below").mkdir(parents=True)
        os.utime(root / name, (1, 1))
    os.utime(root / ".mnist-old" / "below", (1, 1))  # below .mnist-new something was just written
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: prepare("mnist", root, tiny_mnist), range(3)))
    assert folders == [root / "mnist" / "3.0.1"] * 3
    assert_holds(load_dataset("mnist", root), tiny_mnist)
    assert leftovers(root) == [".mnist-new", "mnist"]  # another may be using the new one


def test_a_folder_that_cannot_be_written_is_named(tiny_mnist, tmp_path, monkeypatch):
    """Without IDX files, it was named only after a download."""
    monkeypatch.setattr(preparing, "_download", lambda _: pytest.fail("it downloads first"))
    blocked = tmp_path / "file"
    blocked.touch()
    for files in (tiny_mnist, None):
        shown = refused(prepare, "mnist", blocked / "below", files)
        assert re.search(f"could not be prepared in {blocked}/below .*--data.dir", shown)


def test_without_tensorflow_the_extra_is_named(monkeypatch, tmp_path, command):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    code, _, line = command("data", "prepare", "cifar10", "--dir", tmp_path / "root")
    assert (code, line.count("\n")) == (1, 1)
    assert "`cifar10` needs TensorFlow to be prepared" in line
    assert "pip install 'resnet_jax[prepare]'" in line
    assert not (tmp_path / "root").exists()


def at(port, monkeypatch):
    """Move `mnist` to another address."""
    moved = dataclasses.replace(DATASETS["mnist"], source=f"http://127.0.0.1:{port}/")
    monkeypatch.setitem(DATASETS, "mnist", moved)


@pytest.fixture
def server(tiny_mnist, monkeypatch):
    """The folder of tiny files that a local web server provides at the address of `mnist`."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tiny_mnist)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        at(running.server_port, monkeypatch)
        yield tiny_mnist
        running.shutdown()


def test_a_download_is_verified_and_prepared(server, capsys):
    assert_holds(load_dataset("mnist"), server)
    assert leftovers(tfds_root()) == ["mnist"]
    assert capsys.readouterr().out == ""  # standard output belongs to the command


def test_a_server_that_refuses_or_sends_something_else_is_quoted_and_leaves_nothing(
    server, monkeypatch
):
    flip(server / "train-labels-idx1-ubyte.gz", -1)
    assert "lacks train-labels-idx1-ubyte of `mnist` as published" in refusal(None, "mnist")
    with monkeypatch.context() as patched:
        patched.setattr(mnist, "MAX_BYTES", 100)  # as for an endless answer
        assert "lacks train-images-idx3-ubyte, " in refusal(None, "mnist")
    (server / "train-images-idx3-ubyte.gz").unlink()
    assert "ubyte.gz cannot be downloaded (HTTP Error 404" in refusal(None, "mnist")
    assert leftovers(tfds_root()) == []


def test_the_addresses_are_those_of_tfds():
    for name in ("mnist", "fashion_mnist"):
        assert DATASETS[name].source == tfds.builder_cls(name).URL


OFFLINE = re.compile(r"cannot be downloaded.*--data\.dir.*--data\.from-idx")


def test_a_silent_host_is_given_up_in_time(tiny_mnist, monkeypatch):
    assert preparing.HOST_TIMEOUT <= 4
    monkeypatch.setattr(preparing, "HOST_TIMEOUT", 0.05)
    start = time.perf_counter()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, but never answers
        at(silent.getsockname()[1], monkeypatch)
        assert OFFLINE.search(refusal(None, "mnist"))
        assert time.perf_counter() - start < 30
    assert not tfds_root().exists()


def test_without_a_network_one_line_within_five_seconds():
    isolated = ["unshare", "--net", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*isolated, "true"]).returncode:
        pytest.skip("network namespaces are not allowed here")
    command = [sys.executable, "-m", "resnet_jax", "data", "prepare", "mnist"]
    start, before = time.perf_counter(), os.times()
    run = subprocess.run([*isolated, *command], capture_output=True, text=True, check=False)
    assert sum(os.times()[2:4]) - sum(before[2:4]) < 5  # CPU time: others use the machine, too
    assert time.perf_counter() - start < 60  # TFDS would try for 200 s
    assert run.returncode == 1
    assert OFFLINE.search(run.stderr.splitlines()[-1])
    assert not tfds_root().exists()


def test_a_lack_of_memory_is_not_the_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_download", mock.Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        prepare("mnist", tmp_path)


def test_another_format_is_not_replaced_whatever_else_is_wrong(tiny_mnist, tmp_path):
    """Without features.json, as TFDS 3 wrote a dataset, it counted as damaged and was deleted.

    Another format is TFDS's default; preparing it may have taken hours.
    """
    folder = prepare("mnist", tmp_path / "root", tiny_mnist)
    about = folder / "dataset_info.json"
    text = about.read_text()
    (folder / "features.json").unlink()
    for other in (
        text.replace("array_record", "tfrecord"),
        text.replace('"fileFormat"', '"before"'),
    ):
        assert other != text
        about.write_text(other)
        assert "prepared as tfrecord" in refused(prepare, "mnist", tmp_path / "root", tiny_mnist)
        assert about.read_text() == other


def test_a_damaged_configuration_is_not_replaced_by_another(tmp_path, monkeypatch):
    """TFDS's default configuration, emnist/byclass, took its place."""
    pairs = {"train": [(encoded(np.zeros((28, 28), np.uint8)), 0)] * 3}
    folder = build(tmp_path, pairs, name="emnist", config="letters")
    next(folder.glob("*array_record*")).unlink()
    monkeypatch.setattr(preparing, "importlib", mock.Mock())  # TensorFlow seems to be installed
    monkeypatch.setattr(preparing, "_build", built := mock.Mock())
    prepare("emnist", tmp_path)
    assert built.call_args.args[0] == "emnist/letters"


def test_a_dataset_is_prepared_on_the_disk_that_its_folder_links_to(tiny_mnist, tmp_path):
    """Moved from one disk to another, the result of hours of preparing was lost."""
    root, disk = tmp_path / "root", tmp_path / "disk"
    root.mkdir()
    (disk / "mnist").mkdir(parents=True)
    (root / "mnist").symlink_to(disk / "mnist")
    usual = preparing.temporary_folder
    with mock.patch.object(preparing, "temporary_folder", side_effect=usual) as made:
        prepare("mnist", root, tiny_mnist)
    assert made.call_args.args[0] == disk
    assert len(load_dataset("mnist", root).test) == 12
