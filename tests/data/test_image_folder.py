"""A person's own folder of images: classes, splits, and what is wrong with the files."""

import hashlib
import re
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from make_datasets import examples, flip, picture, refusal
from PIL import Image

from resnet_jax.config import DataConfig, TrainConfig
from resnet_jax.data import image_folder
from resnet_jax.data.load import load_dataset, load_splits


def parts(data):
    return data.train, data.validation, data.test


def sizes(data):
    return [len(part) for part in parts(data)]


def test_every_cut_is_stratified(flat):
    for validation in (3, 6, 9, 12):
        data = load_dataset("folder", flat, validation=validation)
        assert Counter(data.test.labels.tolist()) == {0: 4, 1: 2}
        counts = Counter(data.validation.labels.tolist())
        assert abs(counts[0] - 2 * validation / 3) < 1.01
        assert counts.total() == validation


def test_the_split_hangs_on_contents_alone(flat, tmp_path):
    before = load_dataset("folder", flat)
    assert sizes(before) == [49, 5, 6]
    moved = tmp_path / "elsewhere"
    shutil.copytree(flat, moved)
    for number, path in enumerate(sorted(moved.rglob("*.png"))):
        path.rename(path.with_name(f"renamed {number * 7 % 61}.png"))
    after = load_dataset("folder", moved)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.test.images, before.test.images)
    picture(moved / "cat" / "new.png", 99)
    grown = load_dataset("folder", moved)
    assert grown.fingerprint != before.fingerprint
    # One more picture moves hardly any of the others to another split.
    kept = {image.tobytes() for image in before.test.images}
    assert sum(image.tobytes() in kept for image in grown.test.images) >= 4
    cat, dog = flat / "cat" / "0.png", flat / "dog" / "40.png"
    content = cat.read_bytes(), dog.read_bytes()
    dog.write_bytes(content[0])
    cat.write_bytes(content[1])
    exchanged = load_dataset("folder", flat)
    # The dataset has the pixels of every file once, with the label of its class.
    pairs = zip(*examples(*parts(exchanged)), strict=True)
    files = [(np.asarray(Image.open(path)), path.parent.name == "dog") for path in flat.glob("*/*")]
    held, expected = (sorted((i.tobytes(), label) for i, label in p) for p in (pairs, files))
    assert held == expected
    picture(dog, 1000)
    other = [load_dataset("folder", flat, size=size).fingerprint for size in (None, 8, 16)]
    assert len({before.fingerprint, exchanged.fingerprint, *other}) == 5


def test_fingerprint_and_order_of_a_folder_are_for_good(tmp_path):
    """Both are as in commit 0705210: otherwise a run would no longer recognise its data."""
    y, x = np.mgrid[:6, :8]
    for seed in range(30):
        grey = ((x * 29 + y * 17 + seed * 41) % 256).astype(np.uint8)
        path = picture(tmp_path / "pets" / ("café" if seed % 3 else "dog") / f"{seed}.bmp", seed)
        Image.fromarray(np.stack([grey, 255 - grey, grey // 2], -1)).save(path)
    cropped = {"size": 12, "fit": "crop", "background": 255}
    for options, fingerprint, order in (
        ({}, "182c127b41f1ad67", "138334093c35bad7"),
        (cropped, "49d9d33197bc78a7", "feab03d3948dcefa"),
        (cropped | {"size": np.int64(12)}, "49d9d33197bc78a7", "feab03d3948dcefa"),
        (cropped | {"background": np.int64(255)}, "49d9d33197bc78a7", "feab03d3948dcefa"),
    ):
        data = load_dataset("folder", tmp_path / "pets", **options)
        assert data.fingerprint.startswith(fingerprint)
        content = b"".join(p.images.tobytes() + p.labels.tobytes() for p in parts(data))
        assert hashlib.sha256(content).hexdigest().startswith(order)


def test_train_val_and_test_are_taken_as_they_are(tmp_path, caplog):
    for split, count in (("training_set", 6), ("Val", 3), ("test", 2)):
        for label, name in enumerate(("a", "b")):
            for k in range(count):
                picture(tmp_path / split / name / f"{k}.png", 100 * label + 10 * count + k)
    assert sizes(load_dataset("folder", tmp_path)) == [12, 6, 4]
    for split in ("test", "Val"):
        shutil.rmtree(tmp_path / split)
    data = load_dataset("folder", tmp_path)
    assert "left out, neither train, val nor test: own-cache in" in caplog.text
    assert sizes(data) == [11, 1, 0]
    assert data.test.images.shape == (0, 6, 8, 3)
    picture(tmp_path / "test" / "c" / "0.png", 5)
    assert re.search("test/c is no class .*: expected one of a, b$", refusal(tmp_path, "folder"))


def test_a_class_may_be_called_train(tmp_path):
    for seed in range(8):
        picture(tmp_path / ("train" if seed % 2 else "plane") / f"{seed}.png", seed)
    picture(tmp_path / "train" / "more" / "8.png", 8)
    assert load_dataset("folder", tmp_path).class_names == ("plane", "train")


@pytest.mark.parametrize(
    "places", [("val/a", "val/b", "test/a", "test/b"), ("Train", "valid")], ids=" ".join
)
def test_splits_alone_are_not_classes(places, tmp_path):
    """Without ``train``, or without classes in it, a network learnt to tell the splits apart."""
    for seed in range(12):
        picture(tmp_path / "root" / places[seed % len(places)] / f"{seed}.png", seed)
    said = "holds 0 class folders: expected two or more, .*or folders train, val and test that hold"
    assert re.search(said, refusal(tmp_path / "root", "folder"))


def test_a_loose_picture_makes_no_classes_of_the_splits(flat, tmp_path, caplog):
    root = tmp_path / "root"
    for split in ("train", "val", "test"):
        shutil.copytree(flat, root / split)
        picture(root / "train" / "montage.png", 99)
        assert load_dataset("folder", root).class_names == ("cat", "dog")
        assert "left out, in no class folder: 1 .png" in caplog.text


def test_grey_pictures_make_one_channel_and_any_colour_three(tmp_path):
    root = tmp_path / "images"
    for seed in range(8):
        picture(root / f"{seed % 2}" / f"{seed}.png", seed, mode="L")
    assert load_dataset("folder", root).image_shape == (6, 8, 1)
    picture(root / "0" / "colour.jpg", 9)
    data = load_dataset("folder", root)
    assert data.image_shape == (6, 8, 3)
    assert sum((image == image[..., :1]).all() for image in examples(*parts(data))[0]) == 8


def test_pictures_of_several_sizes_need_one(flat):
    for name, size in (("wide", (40, 20)), ("tall", (20, 40))):
        Image.new("RGB", size, (255, 255, 255)).save(flat / "cat" / f"{name}.png")
    assert re.search("8x6 to 20x40 pixels, .*--data.image-size", refusal(flat, "folder"))
    for fit, white in (("pad", 0.5), ("crop", 1.0)):
        data = load_dataset("folder", flat, size=10, fit=fit)
        assert data.image_shape == (10, 10, 3)
        images, _ = examples(*parts(data))
        bright = [(i == 255).mean() for i in images if (i[5, 5] == 255).all()]
        assert [share for share in bright if share > 0.4] == [white, white]


def test_a_class_of_which_every_picture_is_held_out_is_named(tmp_path, caplog):
    root = tmp_path / "pictures"
    for number in range(20):
        picture(root / "train" / f"{number:02}" / "0.png", number)
        picture(root / "test" / f"{number:02}" / "0.png", 100 + number)
    data = load_dataset("folder", root)
    lost = sorted({*range(20)} - {*data.train.labels.tolist()})
    assert len(lost) == 2
    assert f"2 classes have no training image, first {lost[0]:02}" in caplog.text
    caplog.clear()
    assert len(load_dataset("folder", root, validation=0).train) == 20
    assert not caplog.text


def test_a_crop_of_nothing_is_said(flat, caplog):
    config = TrainConfig(data=DataConfig("folder", str(flat), image_size=6, center_crop=True))
    load_splits(config.data)
    assert "--data.center-crop crops nothing" in caplog.text


@pytest.fixture
def faulty(flat):
    """The pets with broken, empty and missing files, a twin, and a picture that is cat and dog."""
    whole = (flat / "cat" / "0.png").read_bytes()
    (flat / "cat" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (flat / "dog" / "empty.jpg").touch()
    (flat / "dog" / "gone.png").symlink_to("nowhere")
    shutil.copy(flat / "cat" / "1.png", flat / "cat" / "twin.png")
    shutil.copy(flat / "cat" / "2.png", flat / "dog" / "both.png")
    (flat / "cat" / "notes.txt").touch()
    (flat / ".thumbnails").mkdir()
    return flat


def test_what_is_wrong_is_listed_and_left_out_only_when_asked(faulty, caplog, monkeypatch):
    shown = refusal(faulty, "folder")
    assert "3 of 65 image files " in shown
    assert "--data.skip-bad" in shown
    listed = "\n".join(caplog.messages)
    assert f"{faulty}/cat/broken.png: it cannot be read" in listed
    assert f"{faulty}/dog/empty.jpg: it is an empty file" in listed
    assert f"{faulty}/dog/gone.png: it cannot be read: No such file" in listed
    assert f"{faulty}/cat/twin.png: the same picture as {faulty}/cat/1.png" in listed
    for name in ("cat/2.png", "dog/both.png"):
        assert f"{faulty}/{name}: the same picture is in classes cat, dog" in listed
    caplog.clear()
    monkeypatch.setattr(image_folder, "SHOWN", 1)
    assert sum(sizes(load_dataset("folder", faulty, skip_bad=True))) == 59
    first, more = caplog.messages[-2:]
    assert first.startswith(f"left out: {faulty}/cat/")
    assert more == f"and 5 more: `resnet-jax verify {shlex.quote(str(faulty))}` lists all"
    for name in ("cat/broken.png", "dog/empty.jpg", "dog/gone.png"):
        (faulty / name).unlink()
    # Twins can be trained on: they are only warned of.
    assert sum(sizes(load_dataset("folder", faulty))) == 62


def test_of_twins_in_two_splits_the_tests_one_stays(tmp_path):
    for split, seeds in (("train", range(6)), ("test", range(4, 8))):
        for seed in seeds:
            picture(tmp_path / split / f"{seed % 2}" / f"{seed}.png", seed)
    left_out = {Path(file.path) for file in image_folder.scan(tmp_path).files if file.problem}
    assert left_out == {tmp_path / "train" / f"{k % 2}" / f"{k}.png" for k in (4, 5)}


def test_verify_lists_every_file_and_looks_past_the_cache(faulty, command):
    refusal(faulty, "folder")
    flip(faulty / "cat" / "3.png", 60)
    code, out, err = command("verify", faulty)
    assert code == 1
    assert "dog (20 images)" in out
    assert out.count("damaged  ") == 7
    assert "3.png" in out
    assert "7 of the files in" in err
    assert "58 images, without the others by --data.skip-bad" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "is no folder: give one with a folder a class (--data.dir)"),
        ([], "holds 0 class folders"),
        (["a.png"], "holds 0 class folders"),
        (["cat/a.png"], "holds 1 class folders"),
        (["cat/a.png", "dog"], "dog holds no image file"),
        *[(["cat/a.png", "d\udcffg"], "not UTF-8")] * (sys.platform != "darwin"),  # refuses it
        (["cat/empty.png", "dog/empty.png"], "has no usable image: `resnet-jax verify"),
        # Of twenty classes with one picture each, the last tenth has only test images.
        ([f"{seed}/{seed}.png" for seed in range(20)], "has no usable training image"),
    ],
)
def test_what_is_no_folder_of_images_is_one_line(names, message, tmp_path):
    root = tmp_path / "images"
    if names is not None:
        root.mkdir()
    for seed, path in enumerate(root / name for name in names or ()):
        picture(path, seed) if path.suffix else path.mkdir()
        if path.stem == "empty":
            path.write_bytes(b"")
    assert message in refusal(root, "folder", skip_bad=True)
    assert "--data.dir DIR" in refusal(None, "folder")


@pytest.mark.parametrize("name", ["cow", "001.Black_footed_Albatross", "loop", "test"])
def test_a_class_or_a_split_whose_drive_is_gone_is_named(name, flat, tmp_path):
    root = tmp_path / "split" if name == "test" else flat
    if name == "test":
        shutil.copytree(flat, root / "train")
    (root / "labels.csv").symlink_to(tmp_path / "unmounted.csv")  # not a class
    assert load_dataset("folder", root).class_names == ("cat", "dog")
    (root / name).symlink_to("loop" if name == "loop" else tmp_path / "unmounted")
    assert re.search(rf"/{name}\b", refusal(root, "folder"))


def test_small_files_are_read_by_one_thread_and_others_by_one_a_core(tmp_path):
    paths = [f"{tmp_path}/{number}.jpg" for number in range(3)]  # the last is not there
    for path, size in zip(paths, (2000, 5000), strict=False):
        Path(path).write_bytes(bytes(size))
    assert [image_folder._threads(paths[k:]) for k in range(3)] == [1, None, None]
