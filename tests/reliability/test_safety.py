"""Files from elsewhere: they run no code, reach no other folder and fill no memory."""

import gzip
import hashlib
import io
import json
import re
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import ended, forked
from make_datasets import png
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main

STORED = Path(__file__).parent / "stored_run"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_manifest_cannot_speak_for_files_elsewhere(tmp_path, capsys):
    run = Path(shutil.copytree(STORED, tmp_path / "run"))
    path = run / "checkpoints/10/manifest.json"
    body = json.loads(path.read_text())
    del body["sha256"]
    for name in (None, "../../config.yaml"):
        if name:  # with the true checksum of what is there
            body["files"][name] = sha256((path.parent / name).read_bytes())
        checksum = sha256(json.dumps(body, sort_keys=True).encode())
        path.write_text(json.dumps({**body, "sha256": checksum}))
        assert main(["verify", str(run)]) == (1 if name else 0)  # so written, it is a manifest
    assert re.search(r"damaged .*config\.yaml", capsys.readouterr().out)
    with pytest.raises(rj.ResNetJaxError, match="checkpoint"):
        rj.Run.open(run).variables("latest")


def memory_of(words: list[str], answer: Path) -> None:
    """The command's exit code and the most memory that it took, in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = main(words)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.write_text(json.dumps([code, taken / (2**20 if sys.platform == "darwin" else 2**10)]))


def code_and_memory(words: list[str], tmp_path: Path) -> tuple[int, float]:
    answer = tmp_path / "answer.json"
    assert ended(forked(memory_of, words, answer)) == 0
    code, taken = json.loads(answer.read_text())
    return code, taken


@pytest.mark.parametrize("side", [12_000, 60_000, 2**31 - 1])
def test_a_picture_larger_than_any_is_refused_before_it_is_unpacked(side, tmp_path, capsys):
    """The smallest one is whole: 144 million pixels in 600 kB."""
    content = png((side, side), bytes(side * (side + 1) if side < 20_000 else 1000))
    assert len(content) < 1e6
    (tmp_path / "bomb.png").write_bytes(content)
    words = ["predict", str(STORED), str(tmp_path / "bomb.png")]
    assert main(words) == 1
    assert re.search(r"bomb\.png .*pixels", capsys.readouterr().err)
    if side < 20_000:
        code, taken = code_and_memory(words, tmp_path)
        assert code == 1
        assert taken < 100


def test_a_jpeg_of_more_scans_than_any_is_refused_before_they_are_read(tmp_path, capsys):
    """Each goes over all pixels: 20,000 in 1.3 MB held the page for minutes, Ctrl-C or not."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    sound, end = file.getvalue()[:-2], file.getvalue()[-2:]
    after = np.random.default_rng(0).bytes(2**24)  # as the film behind a telephone's picture
    bomb = sound + 20_000 * sound[sound.rfind(b"\xff\xda") :] + end
    for code, content in enumerate((sound + end + after, bomb)):
        (tmp_path / "picture.jpg").write_bytes(content)
        assert main(["predict", str(STORED), str(tmp_path / "picture.jpg")]) == code
    assert re.search(r"picture\.jpg .*20006", capsys.readouterr().err)


def test_a_png_that_holds_more_than_it_says_is_not_unpacked_whole(tmp_path):
    """28 rows of pixels, and 200 MB after them."""
    for name, rows in (("sound", 28 * 29), ("bomb", 200_000_000)):
        for number, data in enumerate((bytes(28 * 29), bytes(rows))):
            folder = tmp_path / name / f"class{number}"
            folder.mkdir(parents=True)
            (folder / f"{name}.png").write_bytes(png((28, 28), data))
    _, taken = code_and_memory(["verify", str(tmp_path / "sound")], tmp_path)
    _, with_bomb = code_and_memory(["verify", str(tmp_path / "bomb")], tmp_path)
    assert with_bomb < taken + 100


@pytest.mark.slow
def test_an_idx_file_that_unpacks_without_end_is_given_up(tmp_path, capsys):
    """Where 47 MB were to come, 2 GiB come; only the limit, and not the file, may be read."""
    member = gzip.compress(bytes(2**24), 6)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{split}-{kind}-ubyte.gz").write_bytes(member * 128)
    words = ["data", "prepare", "mnist", "--dir", str(tmp_path / "tfds"), "--from-idx"]
    code, taken = code_and_memory([*words, str(tmp_path)], tmp_path)
    assert code == 1
    assert taken < 1500
    assert not list(tmp_path.glob("tfds/mnist/*"))


def test_nothing_read_from_a_file_may_run_code():
    package = Path(rj.__file__).parent
    calls = r"pickle\.loads?\(|yaml\.(load|unsafe_load|full_load)\(|eval\(|exec\("
    unsafe = re.compile(rf"(?<![\w.])({calls})|allow_pickle=True")
    found = {p.name for p in package.rglob("*.py") if unsafe.search(p.read_text())}
    assert not found
    # numpy refuses pickles by itself; torch is told to.
    loads = [p.read_text() for p in package.rglob("*.py") if "torch.load(" in p.read_text()]
    assert loads
    assert all("weights_only=True" in text for text in loads)
