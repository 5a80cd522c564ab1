"""The numbers of a report against plain counting, and against what other libraries compute."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.journal.report.scores import (
    Evaluated,
    calibration_bins,
    calibration_error,
    class_rows,
    confused_pairs,
    matrix_figure,
    scores_of,
    wilson,
)


def judged(count: int = 400, classes: int = 4, seed: int = 0, sure: float = 2.0) -> Evaluated:
    rng = rng_for(seed, "judged")
    labels = rng.integers(0, classes, count)
    logits = sure * np.eye(classes)[labels] + rng.normal(0, 1, (1, count, classes))
    names = tuple(f"c{number}" for number in range(classes))
    found = Evaluated.of(
        Predictions(tuple(str(row) for row in range(count)), names, logits.astype(np.float32), labels=labels)
    )
    assert found is not None
    return found


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_share_and_solves_its_equation(images: int, data: st.DataObject):
    hits = data.draw(st.integers(0, images))
    low, high = wilson(hits, images)
    share = hits / images
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):  # its ends are where the share lies 1.96 standard errors away
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / images), rel=1e-6)


def test_wilson_covers_as_often_as_it_says():
    rng = rng_for(0, "coverage")
    hits = rng.binomial(200, 0.93, 4000)
    covered = [low <= 0.93 <= high for low, high in (wilson(int(found), 200) for found in hits)]
    assert 0.935 <= np.mean(covered) <= 0.97


def test_scores_lie_in_their_intervals_and_say_how():
    found = {score.name: score for score in scores_of(judged())}
    assert list(found) == ["accuracy", "log loss", "balanced accuracy", "macro F1"]
    assert all(score.low < score.value < score.high for score in found.values())
    assert found["accuracy"].how == "Wilson"
    assert found["log loss"].how == "bootstrap"
    assert not found["log loss"].is_share


def test_bootstrap_of_log_loss_is_as_wide_as_its_standard_error():
    one = judged(2000)
    losses = -one.log_probabilities[np.arange(2000), one.labels]
    score = next(score for score in scores_of(one) if score.name == "log loss")
    assert score.value == pytest.approx(losses.mean())
    assert score.high - score.low == pytest.approx(2 * 1.96 * losses.std() / np.sqrt(2000), rel=0.12)


def test_two_classes_have_an_area_under_the_curve():
    assert [score.name for score in scores_of(judged(100, 2))][-1] == "ROC AUC"


def test_unlabelled_images_are_left_out():
    logits = np.zeros((1, 3, 2), np.float32)
    partly = Evaluated.of(Predictions(tuple("abc"), ("x", "y"), logits, labels=np.array([0, -1, 1])))
    assert partly is not None
    assert partly.ids == ("a", "c")
    assert Evaluated.of(Predictions(tuple("abc"), ("x", "y"), logits, labels=np.array([-1, -1, -1]))) is None
    assert Evaluated.of(Predictions(tuple("abc"), ("x", "y"), logits)) is None


def test_classes_and_confusions_agree_with_scikit_learn():
    one = judged(sure=1.0)
    rows = {row.name: row for row in class_rows(one)}
    precision, recall, f1, images = map(np.asarray, precision_recall_fscore_support(one.labels, one.guesses))
    for k in range(4):
        row = rows[f"c{k}"]
        assert (row.precision, row.recall, row.f1) == pytest.approx((precision[k], recall[k], f1[k]))
        assert row.images == images[k]
        assert row.low < recall[k] < row.high
    assert [row.f1 for row in class_rows(one)] == pytest.approx(sorted(f1))


def test_one_class_alone_has_a_matrix_without_a_warning(recwarn: pytest.WarningsRecorder):
    alone = Evaluated.of(
        Predictions(("a", "b"), ("c0", "c1"), np.zeros((1, 2, 2), np.float32), labels=np.array([0, 0]))
    )
    assert alone is not None
    assert "2 validation images, 0 of them wrong" in str(matrix_figure(alone).svg)
    assert list(recwarn) == []


def test_confused_pairs_are_the_matrix_without_its_diagonal():
    one = judged(sure=1.0)
    matrix = confusion_matrix(one.labels, one.guesses)
    pairs = confused_pairs(one)
    assert [often for _, _, often in pairs] == sorted((often for _, _, often in pairs), reverse=True)
    assert {(label, guess): often for label, guess, often in pairs} == {
        (i, j): matrix[i, j] for i in range(4) for j in range(4) if i != j and matrix[i, j]
    }
    worst = {row.name: row.confused for row in class_rows(one)}
    assert worst[f"c{pairs[0][0]}"] == (f"c{pairs[0][1]}", pairs[0][2])


def test_a_class_that_was_never_labelled_or_never_predicted_has_no_share():
    logits = np.log(np.array([[[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]]))
    one = Evaluated.of(Predictions(tuple("abc"), ("x", "y", "z"), logits, labels=np.array([0, 1, 0])))
    assert one is not None
    rows = {row.name: row for row in class_rows(one)}
    assert (rows["y"].recall, rows["y"].precision) == (0.0, None)
    assert (rows["z"].recall, rows["z"].precision) == (None, 0.0)
    assert (rows["z"].low, rows["z"].high) == (0.0, 1.0)


def test_calibration_error_is_zero_of_a_model_that_knows_how_sure_to_be():
    rng = rng_for(0, "calibrated")
    sure = rng.uniform(0.5, 1.0, 40_000)
    labels = (rng.random(40_000) > sure).astype(np.int64)
    known = Predictions.from_probabilities(
        [str(k) for k in range(40_000)], ["a", "b"], np.stack([sure, 1 - sure], 1), labels
    )
    one = Evaluated.of(known)
    assert one is not None
    bins = calibration_bins(one)
    assert len(bins) == 5
    assert sum(one.images for one in bins) == 40_000
    assert calibration_error(bins) < 0.01
    assert all(one.start <= one.confidence <= one.end for one in bins)


def test_calibration_error_of_a_boaster():
    known = Predictions.from_probabilities(list("abcd"), ["x", "y"], [[0.99, 0.01]] * 4, np.array([0, 0, 1, 1]))
    one = Evaluated.of(known)
    assert one is not None
    assert calibration_error(calibration_bins(one)) == pytest.approx(0.49)
