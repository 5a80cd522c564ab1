"""Features of another kind of images are aligned to those of the training images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from etude.core.context import Context
from etude.core.predictions import Predictions
from etude.inference.alignment import FEWEST, LIMIT, Reference, aligned
from etude.models.classifier import Classifier
from picture_folders import picture, write_classes

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 40))


def features(labels: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(len(labels), 40))
    return (CENTRES[labels] + noise).astype(np.float32)


LABELS = np.arange(300) % 3
REFERENCE = Reference.of(features(LABELS, 1), LABELS)


def test_images_of_the_same_kind_have_no_shift_whatever_their_class_shares():
    assert REFERENCE.shift_of(features(LABELS, 2)) < 0.15
    for only in range(3):
        same = features(np.full(100, only), 3)
        assert REFERENCE.shift_of(same) < 0.15
        assert np.abs((same.mean(0) - REFERENCE.mean) / REFERENCE.deviation).mean() > 0.3  # which class shares explain


def test_a_shift_is_measured_in_deviations():
    moved = features(LABELS, 2) + np.float32(0.8) * REFERENCE.deviation * RNG.choice([-1, 1], 40)
    assert REFERENCE.shift_of(moved) == pytest.approx(0.8, abs=0.2)


def test_aligned_features_have_the_references_mean_and_deviation():
    moved = 3 * features(LABELS, 2) - 5
    found = REFERENCE.aligned(moved)
    np.testing.assert_allclose(found.mean(0), REFERENCE.mean, atol=1e-4)
    np.testing.assert_allclose(found.std(0), REFERENCE.deviation, rtol=1e-4)


def test_a_feature_that_never_varies_does_no_harm():
    x = np.column_stack([features(LABELS, 1), np.full(300, 2.0)])
    reference = Reference.of(x, LABELS)
    assert np.isfinite(reference.shift_of(x + 1))
    assert np.isfinite(reference.aligned(x + 1)).all()
    assert np.isfinite(reference.aligned(np.full_like(x, 7.0))).all()


def test_a_reference_is_read_as_it_was_written(tmp_path: Path):
    REFERENCE.save(tmp_path)
    read = Reference.load(tmp_path)
    assert read is not None
    assert all(
        np.array_equal(getattr(read, name), getattr(REFERENCE, name)) for name in ("mean", "deviation", "classes")
    )
    assert Reference.load(tmp_path / "nothing") is None


def predicted(x: np.ndarray, model: Classifier, views: int = 2) -> Predictions:
    logits = x @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    ids, classes = [f"{row}" for row in range(len(x))], ("a", "b", "c")
    return Predictions(ids=tuple(ids), classes=classes, logits=np.repeat(logits[None], views, 0), features=x)


def test_alignment_recovers_what_a_shift_destroys():
    model = Classifier(nn.Identity(), 40, 3)
    model.set_head(CENTRES, -0.5 * (CENTRES**2).sum(1))
    moved = 0.4 * features(LABELS, 2) + 4.0
    part, said = predicted(moved, model), list[str]()
    (found,) = aligned([part], [model], [REFERENCE], Context(warn=said.append))
    assert (part.predicted() == LABELS).mean() < 0.6
    assert (found.predicted() == LABELS).mean() > 0.95
    assert found.logits.shape == part.logits.shape
    assert len(said) == 1


@pytest.mark.parametrize(("rows", "shift"), [(FEWEST - 1, 4.0), (300, 0.0), (300, LIMIT / 3)])
def test_few_images_and_those_of_the_same_kind_stay_as_they_are(rows: int, shift: float):
    model = Classifier(nn.Identity(), 40, 3)
    part, said = predicted(features(LABELS[:rows], 2) + np.float32(shift), model), list[str]()
    assert aligned([part], [model], [REFERENCE], Context(warn=said.append)) == [part]
    assert aligned([part], [model], [None], Context(warn=said.append)) == [part]
    assert not said


def test_features_that_are_no_numbers_have_no_shift_that_could_be_too_large():
    x = features(LABELS, 2) + np.float32(4.0)
    x[7, 3] = np.inf
    assert not REFERENCE.shift_of(x) > LIMIT
    assert not Reference.of(np.ones((60, 4)), np.zeros(60, int)).shift_of(np.zeros((60, 4))) > LIMIT


def test_a_run_aligns_its_test_images_and_predicts_them_so_again(etude, tmp_path):
    train, test = write_classes(tmp_path / "train", count=60), tmp_path / "test"
    test.mkdir()
    for number in range(60):
        shade = np.asarray(picture(number % 2, 1_000 + number, 24), np.float64)
        Image.fromarray((255 - 0.25 * shade).astype(np.uint8)).save(test / f"{number:02d}.png")
    words = ("--recipe", "quick", "--set", "model.feature_size=32", "--set", "data.valid=0.5")
    ended = etude("fit", train, "--test", test, "--out", "run", *words)
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [one for one in record["warnings"] if "aligned" in one["text"]]
    assert etude("predict", "run", test, "--out", "again.npz").code == 0
    assert etude("predict", "run", test, "--no-align", "--out", "plain.npz").code == 0
    first, again, plain = (
        Predictions.load(tmp_path / name).probabilities() for name in ("run/test.npz", "again.npz", "plain.npz")
    )
    np.testing.assert_allclose(first, again, atol=1e-4)
    assert np.abs(first - plain).max() > 1e-3
    ended = etude("fit", train, "--test", test, "--out", "two", *words, "--set", "predict.align=never")
    assert ended.code == 0, ended.err
    never = Predictions.load(tmp_path / "two" / "test.npz").probabilities()
    np.testing.assert_allclose(never, plain, atol=1e-4)
    assert etude("predict", "two", test, "--out", "never.npz").code == 0  # as the run did
    np.testing.assert_allclose(Predictions.load(tmp_path / "never.npz").probabilities(), never, atol=1e-4)
