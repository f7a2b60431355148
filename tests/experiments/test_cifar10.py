"""The figure of arXiv 1512.03385 on CIFAR-10: the trainings, and what is made of their rows."""

from functools import partial

import pytest
from make_datasets import picture

from experiments.cifar10 import figure
from experiments.cifar10.__main__ import main, trainings
from experiments.measuring import append_row, read_rows
from experiments.tables import MISSING
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.models import VARIANTS, ResNet20

IMAGES = 50_000


def test_every_training_is_one_of_its_own_with_the_updates_of_its_recipe():
    names = [str(training) for training in trainings()]
    assert len(set(names)) == len(names)
    updates = {"short": 4_000, "cifar10_fast": 40 * IMAGES // 128}
    for training in trainings():
        config = training.config(None, IMAGES)
        expected = updates.get(training.recipe.split()[0], 64_000)  # the paper's
        assert EpochSampler(IMAGES, 128, 0).steps(config.epochs) == expected
        assert (config.model.residual, config.seed) == (training.residual, training.seed)


@pytest.mark.slow
def test_a_training_ends_with_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "resnet20", partial(ResNet20, stage_sizes=(1,)))
    for part, count in (("train", 512), ("test", 100)):
        for number in range(count):
            place = tmp_path / "images" / part / ("cat", "dog")[number % 2]
            picture(place / f"{number}.jpg", number, (32, 32))
    rows = tmp_path / "rows.jsonl"
    command = [str(tmp_path / "images"), "--quick", "--only", "short-plain-20.*seed0"]
    main([*command, "--results", str(rows)])
    (row,) = read_rows(rows)
    assert row["name"] == "short-plain-20-pad-seed0"
    assert [step for step, _ in row["train"]] == [1, 2, 3]
    assert row["test"][-1] == [3, row["test_error"]]  # the error of the last parameters


def test_without_images_one_line_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.delenv("CIFAR10_FOLDER", raising=False)
    rows = tmp_path / "rows.jsonl"
    for folder, said in (([], "give the folder of images"), ([tmp_path / "no"], "-seed0: .*no")):
        with pytest.raises(SystemExit, match=said):
            main([*map(str, folder), "--quick", "--results", str(rows)])
    assert not rows.exists()


def test_tables_and_figure_show_the_mean_over_seeds(tmp_path, monkeypatch):
    rows = tmp_path / "results.jsonl"
    monkeypatch.setattr(figure, "RESULTS", rows)
    assert figure.errors() == figure.recipes() == MISSING
    for training in trainings():
        error = 0.1 + 0.01 * training.seed
        curve = [[100, 0.9], [200, error]]
        row = {"name": str(training), **vars(training), "train": curve, "test": curve}
        row |= {"test_error": error, "seconds": 60.4, "machine": {"processor": "a CPU"}}
        append_row(rows, row)
    lines = figure.errors().splitlines()
    assert lines[2].startswith("| plain 20 | 3 | 11.00% (8.52%")
    assert any(line.startswith("| residual 20 with option B | 3 |") for line in lines)
    preset = "| `cifar10_fast` | **89.00%** | 90.00% 89.00% 88.00% | 60 s 60 s 60 s | a CPU |"
    assert preset in figure.recipes()
    labels = figure.draw().axes[0].get_legend_handles_labels()[1]
    assert labels[:2] == ["plain 20", "residual 20"]
    assert len(labels) == 8
