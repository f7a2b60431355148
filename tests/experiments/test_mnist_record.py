"""The MNIST record: no choice sees the test images, and a unit that has a row is not done again."""

import dataclasses
import json

import numpy as np
import pytest

import resnet_jax as rj
from experiments import units
from experiments.measuring import append_row, read_rows
from experiments.mnist_record import __main__ as record
from experiments.mnist_record import figure
from experiments.mnist_record.__main__ import Training, judged, moved, packed, trainings, unpacked
from experiments.tables import MISSING
from resnet_jax.config import differences


def test_each_ablation_changes_what_its_name_says_and_no_test_image_judges_it():
    names = [str(training) for training in trainings()]
    assert len(set(names)) == len(names)
    assert [training.part for training in trainings()[:4]] == ["plain"] * 3 + ["ablation"]
    base = dataclasses.replace(record.BASE, eval_every=record.SAVE_EVERY)
    for name, changes in record.ABLATIONS.items():
        config = Training("ablation", name).config
        assert differences(base, config).keys() == changes.keys()
    for training in trainings():
        assert training.tests == (training.part in ("plain", "final"))


@pytest.mark.parametrize("training", [Training("ablation", "base"), Training("final", "mnist")])
def test_a_training_has_only_the_images_that_it_learns_from(training):
    whole = rj.load_dataset("mnist_5k", validation=0 if training.tests else 100)
    data, judging = record.load(training, quick=True)
    assert (len(data.train), len(data.validation), len(data.test)) == (256, 0, 0)
    expected = whole.test if training.tests else whole.validation
    np.testing.assert_array_equal(judging.images, expected.images[:100])
    learnt = {image.tobytes() for image in data.train.images}
    assert learnt <= {image.tobytes() for image in whole.train.images}
    assert not learnt & {image.tobytes() for image in judging.images}


def test_what_has_a_row_is_not_done_again(tmp_path, capsys):
    path, done = tmp_path / "rows.jsonl", []
    trainings = [Training("plain", "mnist", n) for n in (3, 4, 1, 2)]

    def work(unit, folder):
        assert folder == tmp_path / "runs" / str(unit)
        done.append(unit.seed)
        if unit.seed == 3:  # meanwhile another process adds the next row, unnamed like old rows
            append_row(path, dataclasses.asdict(trainings[1]))
        return {"square": unit.seed**2}

    def carry_out(*arguments):
        where = ("--results", str(path), "--runs", str(tmp_path / "runs"))
        options = units.parsed("Title.", tmp_path / "not here.jsonl", [*where, *arguments])
        units.carry_out(trainings, options, work)

    carry_out("--only", "seed[12]")
    carry_out()
    assert done == [1, 2, 3]
    rows = read_rows(path)
    assert [row["name"] for row in rows[:3]] == [f"plain-mnist-seed{n}" for n in (1, 2, 3)]
    assert [row.get("square") for row in rows] == [1, 4, 9, None]
    path.write_text(json.dumps(rows[0]) + "\n")
    capsys.readouterr()
    carry_out("--list")
    listed = [f"{'done ' if n == 1 else 'to do'} plain-mnist-seed{n}" for n in (3, 4, 1, 2)]
    assert capsys.readouterr().out.splitlines() == listed
    assert done == [1, 2, 3]


@pytest.mark.slow
def test_a_quick_training_leaves_one_row_of_its_last_parameters(one_unit, tmp_path):
    quick = ["--quick", "--runs", str(tmp_path), "--only", "final-mnist-seed0"]
    record.main(quick)
    (row,) = read_rows(tmp_path / "quick.jsonl")
    _, judging = record.load(Training("final", "mnist"), quick=True)
    answers = unpacked(row["probabilities"]["thousandths"]).argmax(1)
    assert (answers == judging.labels).mean() == pytest.approx(row["accuracy"], abs=0.011)  # a tie
    assert len(row["wrong"]) == round(100 * (1 - row["accuracy"]))
    assert len(row["sha256"]) == 64
    assert row["steps"] == 4
    assert row["settings"]["augment.elastic"] == rj.PRESETS["record"].augment.elastic


def test_views_and_packed_probabilities_by_hand():
    images = np.zeros((2, 9, 9, 1), np.uint8)
    images[:, 3:6, 4] = 200
    np.testing.assert_array_equal(moved(images, 0, 1, 0), np.roll(images, -1, 1))
    np.testing.assert_array_equal(moved(images, 0, 0, -1), np.roll(images, 1, 2))
    np.testing.assert_array_equal(moved(images, 90, 0, 0), np.rot90(images, axes=(1, 2)))
    p = np.random.default_rng(0).dirichlet(np.full(10, 0.2), 50)
    assert np.abs(unpacked(packed(p)) - p).max() <= 0.0005 + 1e-9
    found = judged(np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]), np.array([0, 0, 0]))
    assert found["accuracy"] == 0.666667
    assert found["loss"] == round(-np.log(0.75 * 0.5 * 0.25) / 3, 5)
    digit = {"index": 2, "label": 0, "answer": 1, "probability": 0.75, "of_label": 0.25}
    assert found["wrong"] == [digit]


def test_tables_and_figures_of_made_up_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(figure, "RESULTS", tmp_path / "results.jsonl")
    assert figure.results() == figure.weights() == figure.choices() == MISSING
    labels = np.arange(200) % 10
    for part, recipe, seed, wrong in (
        ("ablation", "base", 0, 9), ("ablation", "base", 1, 7), ("ablation", "no affine", 1, 10),
        ("final", "mnist", 0, 3), ("final", "mnist", 1, 1),
    ):  # fmt: skip
        p = np.full((200, 10), 0.01)
        p[np.arange(200), np.where(np.arange(200) < wrong, labels + 1, labels) % 10] = 0.91
        row = {"part": part, "recipe": recipe, "seed": seed, "steps": 1000, "step_ms": 62.0}
        row |= judged(p, labels) | {"sha256": "ab" * 32, "test_time_averaging": {"accuracy": 1.0}}
        append_row(figure.RESULTS, row | {"machine": {"processor": "X", "cores": 2, "jax": "1"}})
    assert "| 2 | 99.00 % ± 0.71 | 98.50 99.50 |" in figure.results()
    assert "| no affine | 1 | 95.00 % |" in figure.choices()
    assert "-1.50 (-1.50)" in figure.choices()
    assert figure.weights().count("ab" * 32) == 2
    (axes,) = figure.draw_time().axes
    assert axes.lines[-1].get_xdata() == [62.0]
    texts = [text.get_text() for text in axes.texts]
    assert {text.split()[0] for text in texts} == {"quickstart", "fast", "mnist", "book", "record"}
    assert "record 99.00%" in texts
    shown = figure.draw_wrong(figure.rows_of("final", "mnist")[0], np.zeros((200, 28, 28, 1)))
    titles = [axes.get_title() for axes in shown.axes if axes.get_title()]
    assert titles == [f"is {k} (1%)\nsays {k + 1} (91%)" for k in range(3)]
