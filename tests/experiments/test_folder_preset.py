"""The experiment behind the preset `folder`: its folders of pictures, its units, a miniature."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import resnet_jax as rj
from experiments.folder_preset import __main__ as command
from experiments.folder_preset.pictures import folder_of
from experiments.measuring import append_row, read_rows

CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder laid out as the copy of CIFAR-10, with 9 made-up pictures for each class."""
    root = tmp_path_factory.mktemp("cifar")
    draw = np.random.default_rng(0)
    for name in CLASSES:
        (root / "train" / name).mkdir(parents=True)
        pattern = draw.integers(0, 200, (32, 32, 3), np.uint8)
        for number in range(9):
            pixels = pattern + draw.integers(0, 40, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{number:04d}.jpg")
    return root


def pictures(folder, split):
    return {path.relative_to(folder / split) for path in (folder / split).rglob("*.jpg")}


def test_folders_are_balanced_and_nested_and_hold_out_the_same(cifar, tmp_path):
    small, large = (folder_of("cifar", count, 30, tmp_path, cifar) for count in (20, 60))
    assert pictures(small, "train") < pictures(large, "train")
    assert pictures(small, "val") == pictures(large, "val")
    assert not pictures(large, "train") & pictures(large, "val")
    for split, each in (("train", 6), ("val", 3)):
        found = Counter(path.parent.name for path in pictures(large, split))
        assert found == dict.fromkeys(CLASSES, each)
    data = rj.load_dataset("folder", large, fit="crop")
    assert [len(data.train), len(data.validation), len(data.test)] == [60, 30, 0]
    # The two halves have no class in common.
    for name, classes in (("first5", CLASSES[:5]), ("last5", CLASSES[5:])):
        half = folder_of(name, 10, 5, tmp_path, cifar)
        assert sorted(path.name for path in (half / "val").iterdir()) == classes
    with pytest.raises(rj.ResNetJaxError, match="7 \\+ 3 pictures of airplane, got 9"):
        folder_of("cifar", 70, 30, tmp_path, cifar)
    for nowhere in (None, tmp_path / "nowhere"):
        with pytest.raises(rj.ResNetJaxError, match="give the folder with train/"):
            folder_of("cifar", 20, 10, tmp_path, nowhere)


def test_digits_are_files_of_their_pixels(tmp_path):
    folder = folder_of("digits", 50, 20, tmp_path, None)
    data = rj.load_dataset("folder", folder, fit="crop")
    assert (data.image_shape, len(data.train), len(data.validation)) == ((8, 8, 1), 50, 20)
    assert data.class_names == tuple("0123456789")
    assert data.train.batch(np.arange(50))[0].max() == 255


def test_units_are_named_apart_and_the_preset_as_it_was_comes_first(capsys):
    command.main(["--list"])
    names = re.findall(r"^(?:done |to do) (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(set(names)) == len(names) == len(command.all_units())
    trained = [name for name in names if not re.match("baseline|first5", name)]
    assert len({name.split("-none-0.1-30x64-atown")[0] for name in trained[:7]}) == 7
    assert all("-none-0.1-30x64-atown-seed0" in name for name in trained[:7])


@pytest.mark.slow
def test_quick_trains_from_scratch_and_from_weights(cifar, tmp_path, one_unit):
    only = (
        "^(baseline-cifar-200|(cifar-200|last5-200-weights)-flipcrop0.35-0.05-30x64-atown-seed0)$"
    )
    arguments = ["--quick", "--runs", str(tmp_path), "--only", only, str(cifar)]
    command.main(arguments)
    baseline, scratch, weights = read_rows(tmp_path / "quick.jsonl")
    assert baseline["best"] == 1.0
    for row in (scratch, weights):
        assert row["steps"] == row["by_step"][-1][0] == 3
        assert 0 <= row["last"] <= row["best"] <= 1
        assert row["recipe"]["rate"] == 0.05
    assert (scratch["weights"], weights["weights"]) == (False, True)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_recipe_is_measured_against_the_best_of_each_set(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(command, "RESULTS", path)
    earlier, base = command.EARLIER, command.BASE
    for data, recipe, weights, accuracies in (
        ("cifar", earlier, False, (0.30, 0.34)),  # a mean of 32: 8 points behind 40
        ("cifar", base, False, (0.40, 0.40)),
        ("last5", earlier, True, (0.70,)),
        ("last5", base, True, (0.67,)),  # 3 points behind 70
        ("last5", base, False, (0.50,)),
    ):
        for seed, best in enumerate(accuracies):
            unit = command.Training(data, 200, recipe, weights, seed)
            append_row(path, dataclasses.asdict(unit) | {"best": best})
    append_row(path, dataclasses.asdict(command.Baseline("cifar", 200)) | {"best": 0.29})
    cells = [[c.strip() for c in line.split("|")] for line in command.accuracies().splitlines()[2:]]
    assert [[name, *filter(None, rest)] for _, name, *rest in cells] == [
        ["logistic regression", "29.0"],
        [str(earlier), "32.0 ± 2.8", "70.0", "8.0 (CIFAR-10 200)"],
        [str(base), "40.0 ± 0.0", "67.0", "3.0 (weights 200)"],
        [f"{base}, without weights", "50.0"],
    ]
