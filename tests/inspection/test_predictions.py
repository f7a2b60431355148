"""Calibration by hand and against scikit-learn, and a run's predictions against the run."""

import copy
import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.config import replaced
from resnet_jax.data.dataset import ArraySplit
from resnet_jax.inspection import Predictions, calibration, confusion_matrix, embedding, plots
from resnet_jax.training.metrics import Evaluation


def test_ece_by_hand():
    """Bins (0.5, 0.75] and (0.75, 1]: 2 examples at 0.6 and 0.75, half right; 2 at 0.9, all right.

    ECE = 2/4 |0.5 - 0.675| + 2/4 |1 - 0.9| = 0.1375.
    """
    top = np.asarray([0.6, 0.75, 0.9, 0.9])
    found = calibration(np.stack([top, 1 - top], 1), [0, 1, 0, 0], bins=4)
    assert found.counts.tolist() == [0, 0, 2, 2]  # 0.75 belongs to the bin that ends there
    np.testing.assert_allclose(found.confidence[2:], [0.675, 0.9])
    np.testing.assert_allclose(found.accuracy[2:], [0.5, 1.0])
    assert found.ece == pytest.approx(0.1375)


def test_bins_confusion_and_rates_agree_with_scikit_learn():
    from sklearn import metrics as sklearn_metrics
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.full(5, 0.4), 400), rng.integers(0, 5, 400)
    predictions = p.argmax(1)
    found = calibration(p, labels, bins=10)
    curve = calibration_curve(predictions == labels, p.max(1), n_bins=10)
    full = found.counts > 0
    np.testing.assert_allclose([found.accuracy[full], found.confidence[full]], curve)
    predictions[predictions == 3] = 2  # a class that is never predicted
    matrix = confusion_matrix(labels, predictions, 6)  # and one without labels
    np.testing.assert_array_equal(
        matrix, sklearn_metrics.confusion_matrix(labels, predictions, labels=range(6))
    )
    rows = Evaluation(0.0, matrix, tuple("abcdef")).per_class.values()
    precision, recall, _, count = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(6), zero_division=np.nan
    )
    as_numbers = [[np.nan if v is None else v for v in row.values()] for row in rows]
    np.testing.assert_allclose(as_numbers, np.stack([count, recall, precision], 1))


def test_a_confusion_is_also_of_arrays_whose_size_is_a_method():
    """As that of PyTorch's tensors is; the refusal printed the method."""

    class Tensor(list):
        size = list.__len__

    assert confusion_matrix(Tensor([0, 0, 1]), Tensor([0, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]


def test_a_confusion_of_as_many_classes_as_a_small_type_counts():
    """The square of ``labels.max() + 1`` overflowed uint8, from 16 classes on."""
    labels = np.arange(20, dtype=np.uint8)
    found = confusion_matrix(labels, labels[::-1], labels.max() + 1)
    np.testing.assert_array_equal(found, np.fliplr(np.eye(20, dtype=int)))


def test_images_are_also_a_tensor_of_bytes(finished_run):
    """Its type is PyTorch's uint8, not NumPy's, and was refused as no uint8."""

    class Tensor:
        dtype, ndim, shape = "torch.uint8", 4, (1, 28, 28, 1)

        def __array__(self, dtype=None, copy=None):
            return np.full(self.shape, 7, np.uint8)

    for look in (finished_run.predict, partial(rj.inspection.explain, finished_run)):
        np.testing.assert_array_equal(look(Tensor()), look(np.asarray(Tensor())))


@pytest.mark.parametrize("maps", [{}, {"stem": np.zeros((1, 1, 1))}], ids=["own", "ours"])
def test_a_mistake_without_positive_evidence_says_so(maps):
    """Only where Grad-CAM was computed: the zeros of a user's own network say nothing."""
    saliency = np.zeros((2, 2, 2), np.float32)
    saliency[1, 0, 0] = 1
    images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.array([1, 1])
    logits = np.array([[2.0, 0], [1, 0]])
    found = Predictions(images, labels, ("a", "b"), logits, logits, saliency, maps)
    titles = [ax.get_title() for ax in plots.mistakes(found).axes]
    assert titles.count("no positive evidence") == (1 if maps else 0)
    assert titles[4] == ("no positive evidence" if maps else "")  # below the first mistake


def test_what_is_no_class_or_no_table_is_refused():
    for labels, predictions, said in (
        ([0], [2], "predictions are int64[1] from 2 to 2: give"),
        ([-1], [0], "labels are int64[1] from -1 to -1: give"),
        ([0.9], [1.2], "int[1], 0 to 1"),
        ([0], [0, 1], "int[1], 0 to 1"),
    ):
        assert said in refused(confusion_matrix, labels, predictions, 2)
    for probabilities, labels in (
        ([0.5, 0.5], [0, 1]),
        ([[np.nan, np.nan]], [0]),
        ([[3.0, -1.0]], [0]),  # logits
        (np.empty((0, 2)), np.empty(0, int)),
        (np.empty((3, 0)), [0, 0, 0]),
    ):
        assert "calibration needs" in refused(calibration, probabilities, labels)
    for label in ("a", -1, 2):  # -1: padding, which was counted as a mistake
        assert "one for each example, int[1], 0 to 1" in refused(calibration, [[1, 0]], [label])


def test_points_that_are_one_have_a_place():
    """If a network's last ReLUs are all dead, its features are equal; t-SNE ended the process."""
    np.testing.assert_array_equal(embedding(np.ones((30, 8))), np.zeros((30, 2)))


def test_the_evaluation_by_hand():
    """Three uniform predictions over eight classes; their top five are classes 0 to 4."""
    unused, logits = np.zeros((3, 1, 1, 1), np.uint8), np.zeros((3, 8), np.float32)
    labels = np.array([0, 4, 5], np.int32)
    found = Predictions(unused, labels, tuple("abcdefgh"), logits, logits, unused, {}).evaluation
    assert found.loss == pytest.approx(np.log(8))
    assert (found.correct, found.correct5) == (1, 2)
    assert sorted(zip(*found.confusion.nonzero(), strict=True)) == [(0, 0), (4, 0), (5, 0)]
    # A user's streamed dataset may have two classes of the same name.
    twice = dataclasses.replace(found, confusion=np.eye(2, dtype=int), class_names=("a", "a"))
    assert twice.per_class.keys() == {"#0 a", "#1 a"}


@pytest.mark.slow
def test_findings_are_those_of_the_run(finished_run):
    found = rj.inspection.examine(finished_run)
    expected = finished_run.evaluate("test")
    np.testing.assert_array_equal(found.evaluation.confusion, expected.confusion)
    assert found.evaluation.correct5 == expected.correct5
    assert found.evaluation.loss == pytest.approx(expected.loss, rel=1e-4)
    p = finished_run.predict(finished_run.split("test").images)
    np.testing.assert_allclose(found.probabilities, p, atol=1e-5)
    wrong = found.mistakes()
    assert set(wrong) == set(np.flatnonzero(found.predictions != found.labels))
    assert (np.diff(found.probabilities.max(1)[wrong]) <= 0).all()
    np.testing.assert_allclose(
        found.saliency, rj.inspection.explain(finished_run, found.images), atol=1e-4
    )


def test_maps_of_cropped_images_count_as_memory(finished_run, monkeypatch):
    """Maps grow to the picture in float32: a grey image with its map takes five times its bytes."""
    run = copy.copy(finished_run)
    run.config = replaced(run.config, {"data.center-crop": True, "data.image-size": 28})
    monkeypatch.setattr("resnet_jax.inspection.predictions.MAX_BYTES", 10 * 28 * 28)
    assert len(rj.inspection.examine(finished_run).labels) == 10
    assert len(rj.inspection.examine(run).labels) == 2


def test_predictions_and_a_report_need_no_transfers_that_the_user_forbids(finished_run):
    run = copy.copy(finished_run)
    run.config = replaced(run.config, {"data.center-crop": True, "data.image-size": 28})
    with jax.transfer_guard("disallow"), jax.numpy_rank_promotion("raise"):
        found = rj.inspection.examine(run)
        assert found.evaluation.correct == run.evaluate().correct
        np.testing.assert_allclose(found.probabilities, run.predict(found.images), atol=1e-5)


def test_a_notebook_shows_names_as_text_and_is_not_filled_with_classes():
    shown = Evaluation(0.5, np.eye(2, dtype=int), ("<b>bold</b>", "b"))._repr_html_()
    assert "&lt;b&gt;bold" in shown
    assert "accuracy 100.00% (2 of 2)" in shown
    many = Evaluation(0.5, np.eye(500, dtype=int), tuple(map(str, range(500))))
    assert many._repr_html_().count("<tr") < 100


def test_labels_without_a_name_are_refused(finished_run, monkeypatch):
    """Such labels were not counted at all, while `Run.evaluate` refuses them."""
    shifted = ArraySplit(np.zeros((2, 28, 28, 1), np.uint8), np.array([9, 10]))
    monkeypatch.setattr(rj.Run, "split", lambda *_: shifted)
    assert "labels must be 0 to 9" in refused(rj.inspection.examine, finished_run)
