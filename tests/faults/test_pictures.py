"""Pictures as people have them: each is read right, named in one line, or counted as left out."""

import csv
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import tracemalloc
import unicodedata
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from make_datasets import picture, png, refused
from PIL import Image

import resnet_jax as rj
from resnet_jax.inspection import classify

pytestmark = pytest.mark.usefixtures("own_cache")

CASES = Path(__file__).parents[1] / "data" / "cases"
RAMP = np.tile(17 * np.arange(16, dtype=np.uint8), (16, 1))


@pytest.fixture
def pets(tmp_path) -> Path:
    """Six pictures of cats and six of dogs."""
    for seed in range(12):
        picture(tmp_path / "pets" / ("cat", "dog")[seed % 2] / f"{seed}.png", seed)
    return tmp_path / "pets"


def read(path: Path, **options: object) -> np.ndarray:
    """Return a grey picture's pixels as training on 16x16 pixels reads them, ``int[16, 16]``."""
    with tempfile.TemporaryDirectory() as folder:
        picture(Path(folder, "b", "another.png"), 0, mode="L")
        Path(folder, "a").mkdir()
        shutil.copy(path, Path(folder, "a"))
        train = rj.load_dataset("folder", folder, size=16, validation=0, **options).train
        return train.images[train.labels == 0][0, ..., 0].astype(int)


def test_a_run_among_the_pictures_is_no_class(pets, finished_run, command, monkeypatch, answers):
    before = rj.load_dataset("folder", pets).fingerprint
    monkeypatch.chdir(pets)
    run = shutil.copytree(finished_run.path, pets / "runs" / "folder-seed0")
    picture(run / "report" / "curves.png", 99)
    shutil.copytree(run, pets / "cat" / "run")  # beside pictures of a class
    code, out, _ = command("verify", ".")
    assert (code, "runs" in out) == (0, False)
    assert len(json.loads(command("predict", run, ".", "--json")[1])) == 12
    # A run that has just begun has neither checkpoints nor a configuration.
    for name in ("config.yaml", "checkpoints", "metrics.jsonl"):
        (run / name).rename(pets.parent / name)
    for name in (".lock", "run.log"):
        (run / name).touch()
    assert rj.load_dataset("folder", pets).fingerprint == before


def test_linked_folders_are_followed_and_end(pets, tmp_path, command):
    for seed in (50, 51):
        picture(tmp_path / "elsewhere" / "deep" / f"{seed}.png", seed)
    (pets / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    (pets / "cat" / "up").symlink_to(pets)
    code, out, _ = command("verify", pets)
    assert code == 0
    assert "cat (8 images)" in out
    assert "dog (6 images)" in out


def test_a_folder_without_permission_is_named(pets, unprivileged):
    closed = picture(pets / "cat" / "closed" / "4.png", 4).parent
    closed.chmod(0)
    done = unprivileged("verify", pets)
    closed.chmod(0o700)  # pytest removes it
    assert (done.returncode, "all of it" in done.stdout) == (1, False)
    assert f"{closed}: it cannot be read: Permission denied" in done.stdout
    assert len(done.stderr.splitlines()) == 1


def test_what_is_left_out_is_counted_by_ending(pets, command, finished_run, answers):
    for number in range(3):
        (pets / "cat" / f"{number}.HEIC").write_bytes(b"a picture of a phone")
    (pets / "dog" / "scan").write_bytes(b"a picture without an ending")
    picture(pets / "loose.png", 77)
    code, out, _ = command("verify", pets)
    assert "left out by ending: 3 .heic, 1 without" in out
    assert "left out, in no class folder: 1 .png" in out
    assert "all of it" not in out
    assert (code, "usable   12 images" in out) == (0, True)
    _, _, err = command("predict", finished_run.path, pets / "cat", "--csv")
    assert "left out by ending: 3 .heic" in err
    shutil.rmtree(pets / "cat")
    (pets / "cat").mkdir()
    (pets / "cat" / "0.heic").touch()
    assert "no image file but 1 .heic" in command("verify", pets)[2]


def test_predict_walks_as_training_does(pets, finished_run, command, answers):
    picture(pets / "cat" / "deep" / "x.png" / "inside.jpg", 60)
    for hidden in ("._0.png", ".thumbnails/0.png", "@eaDir/0.png/thumbnail.png"):
        (pets / "cat" / hidden).parent.mkdir(exist_ok=True, parents=True)
        (pets / "cat" / hidden).write_bytes(b"resource fork")
    code, out, err = command("predict", finished_run.path, pets, "--json")
    assert (code, err) == (0, "")
    assert out.count('"path"') == 13
    assert str(pets / "cat" / "deep" / "x.png" / "inside.jpg") in out
    code, out, _ = command("predict", finished_run.path, pets / "*", "--json")
    assert (code, out.count('"path"')) == (0, 13)


def test_only_regular_files_are_opened(pets, python):
    os.mkfifo(pets / "cat" / "pipe.png")
    (pets / "dog" / "device.png").symlink_to("/dev/null")
    done = python("-m", "resnet_jax", "verify", pets, code=1)  # must not wait for the pipe
    for name in ("cat/pipe.png", "dog/device.png"):
        assert f"{pets}/{name}: it cannot be read: no regular file" in done.stdout


def test_a_line_of_pixels_is_a_line(tmp_path, finished_run, command, answers):
    for size in ((400, 1), (1, 400)):
        Image.new("L", size, 255).save(tmp_path / "line.png")
        assert command("predict", finished_run.path, tmp_path / "line.png")[0] == 0
        found = read(tmp_path / "line.png")
        found = found if size[1] == 1 else found.T
        assert sorted(found.sum(1).tolist()) == [0] * 15 + [16 * 255]


def test_sound_files_that_others_misread_are_read(pets, finished_run, command, answers):
    """Levels are read right whatever is beside them: a tag of another type, megabytes of text."""
    for highest in (65535, 4095):
        levels = np.round(RAMP / 255.0 * highest).astype(">u2")
        content = b"P5 16 16 %d\n" % highest + levels.tobytes()
        (pets / "cat" / f"grey{highest}.pgm").write_bytes(content)
    shutil.copytree(CASES, pets / "cat", dirs_exist_ok=True)
    found = {path.name: path for path in (pets / "cat").iterdir()}
    code, out, _ = command("verify", pets)
    assert (code, f"cat ({len(found)} images)" in out) == (0, True)
    code, out, err = command("predict", finished_run.path, pets, "--json")
    assert (code, err, len(json.loads(out))) == (0, "", 6 + len(found))
    for name in ("grey16_white_is_zero.tif", "grey12_packed.tif", "grey65535.pgm", "grey4095.pgm"):
        np.testing.assert_array_equal(read(found[name]), RAMP)
    for name in ("exif_copyright_type.jpg", "exif_width_type.jpg"):
        with Image.open(found[name]) as image:
            upright = np.rot90(np.asarray(image), -1)  # orientation 6
        middle = Image.fromarray(upright[5:35]).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(read(found[name], fit="crop"), np.asarray(middle), atol=1)
    assert "long_text.png" in found


@pytest.mark.parametrize(
    ("bits", "colour"),
    [(1, False), (2, False), (4, False), (8, False), (16, False), (8, True), (16, True)],
)
def test_a_transparent_level_is_one_whatever_the_depth(bits, colour, tmp_path, caplog):
    highest, path = 2**bits - 1, tmp_path / "a.png"
    samples = 3 if colour else 1

    def write(levels: np.ndarray) -> None:
        """Write ``int[16, 16]`` levels, the highest of which (in each colour) is transparent."""
        places = levels.repeat(samples, axis=1)[..., None] >> np.arange(bits - 1, -1, -1) & 1
        rows = np.packbits(places.reshape(16, -1), axis=1)
        data = np.insert(rows, 0, 0, axis=1).tobytes()  # each row begins with filter type 0
        transparent = struct.pack(">H", highest) * samples
        path.write_bytes(png((16, 16), data, bits, 2 if colour else 0, tRNS=transparent))

    levels = np.round(np.linspace(0, highest, 16)).astype(int) * np.ones((16, 1), int)
    write(levels)
    assert "cannot be used" in refused(read, path)
    assert "transparent pixels" in caplog.text
    hidden = np.where(levels == highest, 100, levels * 255 // highest)
    np.testing.assert_allclose(read(path, background=100), hidden, atol=1)
    write(np.minimum(levels, highest - 2 ** max(0, bits - 8)))  # none is transparent in 8 bits
    assert read(path).shape == (16, 16)


@pytest.fixture
def large_run(own_run) -> Path:
    """The run on digits, edited to read pictures at 224x224 and resize them to 28x28."""
    document = yaml.safe_load((own_run / "config.yaml").read_text())
    document["data"]["image_shape"] = [224, 224, 1]
    document["config"]["data"]["image_size"] = 28
    (own_run / "config.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return own_run


def many(folder: Path, count: int) -> Path:
    """Make a folder in which one picture has so many names."""
    picture(folder / "0.png", 0, (224, 224), "L")
    for number in range(1, count):
        os.link(folder / "0.png", folder / f"{number}.png")
    return folder


def test_predict_holds_a_batch_of_pictures(large_run, command, answers, tmp_path):
    peaks = {}
    for count in (1, 40, 80):  # the first call imports what it needs
        folder = many(tmp_path / str(count), count)
        tracemalloc.start()
        try:
            code, out, _ = command("predict", large_run, folder, "--json")
            peaks[count] = tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()
        assert (code, len(json.loads(out))) == (0, count)
    assert sum(answers) == 121
    assert max(answers) == 20  # the run's batch
    assert peaks[80] < peaks[40] + 1, peaks  # 40 pictures are 2 MiB


@pytest.mark.slow
def test_memory_of_many_is_that_of_two_hundred(large_run, tmp_path, python):
    """Pillow's memory is bounded too: 5,000 of these pictures are 240 MiB."""
    program = "import sys, resource, worker; worker.shrink(); worker.main(sys.argv[1:]); "
    program += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    peaks = []
    for count in (200, 5_000):
        folder = many(tmp_path / str(count), count)
        done = python("-c", program, "predict", large_run, folder, "--json")
        assert f"{count - 1}.png" in done.stdout
        peaks.append(int(done.stderr.split()[-1]) / (2**20 if sys.platform == "darwin" else 2**10))
    assert peaks[1] < peaks[0] + 100, peaks


def test_an_explanation_is_never_over_another_file(
    pets, finished_run, command, answers, monkeypatch
):
    monkeypatch.setattr(classify, "explain", lambda run, images, **_: np.zeros(images.shape[:3]))
    monkeypatch.chdir(pets / "cat")
    files = {path: path.read_bytes() for path in Path().iterdir()}
    code, _, err = command("predict", finished_run.path, ".", "--explain", ".")
    assert {path: path.read_bytes() for path in Path().iterdir()} == files
    assert (code, len(err.splitlines())) == (1, 1)
    assert "--explain . would write over" in err
    picture(pets / "out" / "0.png", 5)  # neither an explanation nor an input
    whole = (pets / "out" / "0.png").read_bytes()
    assert command("predict", finished_run.path, "0.png", "--explain", pets / "out")[0] == 1
    assert (pets / "out" / "0.png").read_bytes() == whole
    # Its own earlier explanations are replaced.
    for _ in range(2):
        assert command("predict", finished_run.path, ".", "--explain", pets / "own")[0] == 0
        assert len(list((pets / "own").iterdir())) == 6
    # If the disk is full, no half-written picture is left.
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", mock.Mock(side_effect=OSError(28, "no space")))
        code, _, err = command("predict", finished_run.path, "0.png", "--explain", pets / "full")
    assert (code, "no space" in err, list((pets / "full").iterdir())) == (1, True, [])
    # Explanations do not replace each other if the disk, as on macOS, ignores case.
    for number, name in enumerate(("Cat.png", "cat.png")):
        picture(pets / "named" / str(number) / name, number)
    command("predict", finished_run.path, pets / "named", "--explain", pets / "apart")
    assert {path.name for path in (pets / "apart").iterdir()} == {"Cat.png", "cat-2.png"}
    # It does not write through a link, or over an explanation that has become an input.
    (pets / "own" / "0.png").unlink()
    (pets / "own" / "0.png").symlink_to(pets / "cat" / "2.png")
    assert command("predict", finished_run.path, "0.png", "--explain", pets / "own")[0] == 1
    own = (pets / "own" / "4.png").read_bytes()
    command("predict", finished_run.path, pets / "own" / "4.png", "--explain", pets / "own")
    assert (pets / "own" / "4.png").read_bytes() == own
    assert {path: path.read_bytes() for path in Path().iterdir()} == files


NAMES = [
    "scan:100:1",
    "[bold]b[bold]",
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "a" * 200,
    *[os.fsdecode(b"latin-\xe9")] * (sys.platform != "darwin"),  # macOS refuses it
    "\x1b]0;title\x07\x1b[2J",
    "line\nbreak",
    'a\u202eb,"quoted"',
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are_and_safely(name, tmp_path, finished_run, command, answers):
    for folder, seed in (("a", 0), ("b", 1), ("b", 2)):
        picture(tmp_path / folder / f"{seed}.png", seed)
    good = picture(tmp_path / "a" / f"{name}.png", 70)
    broken = tmp_path / "a" / f"{name}!.png"
    broken.write_bytes(b"no picture")
    a_class = os.fsencode(name).decode("utf-8", "replace")  # class names are UTF-8
    picture(tmp_path / a_class / "0.png", 71)
    code, out, err = command("predict", finished_run.path, good, broken)
    assert code == 1
    assert not {"\x1b", "\x07"} & set(out + err)
    assert len(err.splitlines()) == 2
    _, report, _ = command("verify", tmp_path)
    assert "\x1b" not in report
    assert report.count("\ndamaged ") == 1
    if name.isprintable():
        assert f"{good}" in out
        assert f"{broken}" in err
        assert f"damaged  {broken}: it is no image" in report
        assert f"{name} (1 images)" in report
    code, out, _ = command("predict", finished_run.path, good, "--json")
    assert json.loads(out)[0]["path"] == str(good)
    code, out, _ = command("predict", finished_run.path, good, "--csv")
    (row,) = csv.DictReader(io.StringIO(out, newline=""))
    assert row["path"] == os.fsencode(good).decode("utf-8", "backslashreplace")


def test_one_name_in_two_spellings_is_one_class(tmp_path, command):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    places = f"train/{composed} train/tea val/{decomposed} val/tea test/{composed}".split()
    for seed, place in enumerate(places):
        picture(tmp_path / "split" / place / f"{seed}.png", seed)
        picture(tmp_path / "flat" / Path(place).name / f"{seed}.png", seed)
    code, _, err = command("verify", tmp_path / "split")
    assert (code, err) == (0, "")
    data = rj.load_dataset("folder", tmp_path / "flat", validation=0)
    assert len(data.class_names) == 2
    assert data.train.labels.tolist().count(0) == 3
