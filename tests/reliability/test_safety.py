"""Files from elsewhere: they run no code, reach no other folder and fill no memory."""

import gzip
import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest

import resnet_jax
from resnet_jax.data import idx
from resnet_jax.data.files import MAX_PIXELS, read_image
from resnet_jax.data.png import decode_pngs
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.checkpoint import Checkpoints, DamagedCheckpointError, Manifest, _digest


def png(width: int, height: int, data: bytes) -> bytes:
    """A grey PNG whose header says ``width`` and ``height``, whatever the data say."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


STORED = Path(__file__).parent / "stored_run"


def test_a_manifest_cannot_speak_for_files_elsewhere(tmp_path):
    folder = shutil.copytree(STORED, tmp_path / "run") / "checkpoints"
    checkpoints = Checkpoints(folder)
    step = checkpoints.steps()[-1]
    whole = checkpoints.manifest(step)
    name = "../../config.yaml"
    there = {name: _digest(folder / str(step) / name)}  # what is there, truly
    forged = Manifest(step, whole.validation, {**whole.files, **there})
    (folder / str(step) / "manifest.json").write_text(forged.to_json())
    with pytest.raises(DamagedCheckpointError, match=r"config\.yaml"):
        checkpoints.verify(step)


@pytest.mark.parametrize("side", [12_000, 60_000, 2**31 - 1])
def test_a_picture_larger_than_any_is_refused_before_it_is_unpacked(side, tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(side, side, bytes(1000)))
    assert side * side > MAX_PIXELS
    with pytest.raises(ResNetJaxError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png", (28, 28, 1))


def test_a_png_that_holds_more_than_it_says_is_not_unpacked_whole():
    rows = bytes(28 * 29)
    assert decode_pngs([png(28, 28, rows)], (28, 28, 1)).shape == (1, 28, 28, 1)
    bomb = png(28, 28, bytes(200_000_000))
    assert len(bomb) < 250_000
    with pytest.raises(ValueError, match="does not hold"):
        decode_pngs([bomb], (28, 28, 1))


def test_an_idx_file_that_unpacks_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MAX_BYTES", 10_000)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(bytes(20_000)))
    with pytest.raises(ResNetJaxError, match="more than"):
        idx.read_idx(path, 3)


def test_nothing_read_from_a_file_may_run_code():
    package = Path(resnet_jax.__file__).parent
    calls = r"pickle\.loads?\(|yaml\.(load|unsafe_load|full_load)\(|eval\(|exec\("
    unsafe = re.compile(rf"(?<![\w.])({calls})|allow_pickle=True")
    found = {p.name for p in package.rglob("*.py") if unsafe.search(p.read_text())}
    assert not found
    # numpy refuses pickles by itself; torch is told to.
    loads = [p.read_text() for p in package.rglob("*.py") if "torch.load(" in p.read_text()]
    assert loads
    assert all("weights_only=True" in text for text in loads)


def test_a_configuration_that_would_build_an_object_is_refused(tmp_path):
    run = shutil.copytree(STORED, tmp_path / "run")
    mark = tmp_path / "made"
    text = (run / "config.yaml").read_text()
    evil = f"!!python/object/apply:os.mkdir [{json.dumps(str(mark))}]"
    (run / "config.yaml").write_text(text.replace("commit:", f"other: {evil}\ncommit:"))
    with pytest.raises(ResNetJaxError, match=r"config\.yaml is damaged"):
        resnet_jax.Run.open(run)
    assert not mark.exists()
