"""Faults found in use of exports: the command and `rj.*` alone."""

import os
import shutil
import socket
import stat
import sys
import tomllib
from pathlib import Path

import pytest

import resnet_jax as rj
from resnet_jax.cli import main


def export(run, format, output):
    return main(["export", str(run.path), "--format", format, "--output", str(output)])


def test_no_digits_are_needed(finished_run, tmp_path, monkeypatch, capsys):
    """A run on one's own images is exported where mnist_5k is neither prepared nor installed."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "nothing"))
    for name in ("mlxtend", "mlxtend.data"):
        monkeypatch.setitem(sys.modules, name, None)
    assert export(finished_run, "onnx", tmp_path / "network.onnx") == 0, capsys.readouterr().err


def test_what_stablehlo_needs_is_declared_and_named(finished_run, tmp_path, monkeypatch, capsys):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("flatbuffers") for line in project["dependencies"])
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert export(finished_run, "stablehlo", tmp_path / "network") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install flatbuffers" in line
    assert not list(tmp_path.iterdir())


def fifo(path):
    os.mkfifo(path)


def device(path):
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes device nodes")


def link(path):
    (path.parent / "target").write_text("someone else's")
    path.symlink_to("target")


def dangling_link(path):
    path.symlink_to("nothing")


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # an address holds a hundred characters


def refused(command, place, capsys):
    """The one line that a command says which fails and leaves what is at a place as it is."""
    before = place.lstat()
    assert main([str(word) for word in command]) == 1
    after = place.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    target = place.with_name("target")  # of a link
    assert not target.exists() or target.read_text() == "someone else's"
    (line,) = capsys.readouterr().err.splitlines()
    return line


PLACES = [fifo, device, link, dangling_link, unix_socket, Path.mkdir]


@pytest.mark.parametrize("make", PLACES)
def test_nothing_but_a_regular_file_is_replaced(finished_run, make, tmp_path, capsys):
    place = tmp_path / "network.safetensors"
    make(place)
    command = ("export", finished_run.path, "--format", "torchvision", "--output", place)
    line = refused(command, place, capsys)
    assert f"{place} is no regular file and stays as it is: give another --output" in line
    assert {path.name for path in tmp_path.iterdir()} <= {place.name, "target"}


def test_an_interrupted_export_leaves_the_old_file_and_nothing_else(
    finished_run, tmp_path, monkeypatch
):
    place = tmp_path / "network.safetensors"
    assert export(finished_run, "torchvision", place) == 0
    before = place.read_bytes()

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    assert export(finished_run, "torchvision", place) == 75
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert place.read_bytes() == before


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/12/net.onnx", "report/index.html"])
def test_the_files_of_a_run_are_not_replaced(finished_run, name, tmp_path, capsys):
    run = rj.Run.open(shutil.copytree(finished_run.path, tmp_path / "run"))
    before = (run.path / "config.yaml").read_bytes()
    for arguments in (["export", run.path, "--format", "torchvision"], ["compare", run.path]):
        assert main([*map(str, arguments), "--output", str(run.path / name)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "is part of the run in" in line
    assert (run.path / "config.yaml").read_bytes() == before
    assert run.verify().ok
    assert export(run, "torchvision", run.path / "export" / "config.yaml") == 0


def test_the_next_export_replaces_what_a_kill_left(finished_run, tmp_path):
    (tmp_path / ".network.safetensors.unfinished").write_bytes(b"half a file")
    assert export(finished_run, "torchvision", tmp_path / "network.safetensors") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]


@pytest.mark.parametrize("make", [fifo, device, link, dangling_link, unix_socket])
@pytest.mark.parametrize("name", ["report", "report/index.html", "report/curves.png"])
def test_a_report_follows_no_link_and_replaces_no_device(
    finished_run, make, name, tmp_path, capsys
):
    run = shutil.copytree(finished_run.path, tmp_path / "run")
    place = run / name
    place.parent.mkdir(exist_ok=True)
    make(place)
    assert "remove it" in refused(("report", run), place, capsys)
    assert not (place.parent / "nothing").exists()


@pytest.mark.parametrize("make", [fifo, device, link, dangling_link, unix_socket])
def test_a_run_folder_is_a_folder(make, tmp_path, capsys):
    """A link to a folder is one; a link to anything else is not followed."""
    place = tmp_path / "run"
    make(place)
    line = refused(("train", "--run-dir", place, "--epochs", "1"), place, capsys)
    assert f"run folder {place} cannot be written" in line
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "target"}


@pytest.mark.parametrize("make", [device, link])
def test_curves_replace_nothing_but_a_regular_file(finished_run, make, tmp_path, capsys):
    place = tmp_path / "curves.png"
    make(place)
    before = place.stat()
    assert main(["compare", str(finished_run.path), "--output", str(place)]) == 1
    assert (place.stat().st_mtime_ns, place.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert "give another --output" in capsys.readouterr().err
