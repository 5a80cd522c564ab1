"""What keeps unlabelled images from fooling a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etude.core.context import Context, Silent
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.data.dataset import Dataset, open_dataset
from etude.data.scan import scan_images
from etude.data.sources import read_unlabelled
from etude.study.unlabelled.guards import (
    EvaluatedModel,
    apart_from_validation,
    collapsed,
    compare_student,
    label_shift,
    views_to_compare,
)
from etude.study.unlabelled.pool import Pool, PoolPart
from picture_folders import picture

CLASSES = ("a", "b", "c")


def dataset(folder: Path, cache: Path) -> Dataset:
    images = read_unlabelled(folder)
    scanned = scan_images(images, Silent())
    return open_dataset(images, scanned, 32, Context(Silent(), print, cache), fit="squash")


def predictions(labels: np.ndarray, sure: float, seed: int = 0, wrong: float = 0.0, known: bool = True) -> Predictions:
    """Predictions of the labels, ``wrong`` of them of the next class instead."""
    rng = np.random.default_rng(seed)
    shown = np.where(rng.random(len(labels)) < wrong, (labels + 1) % len(CLASSES), labels)
    logits = sure * np.eye(len(CLASSES))[shown] + rng.normal(0, 0.3, (len(labels), len(CLASSES)))
    ids = tuple(f"{'v' if known else 'u'}{row}" for row in range(len(labels)))
    return Predictions(ids, CLASSES, logits[None], labels=labels if known else None)


def labels_of(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(CLASSES)), counts)


def seen(wrong: float, pool: np.ndarray, seed: int = 0, count: int = 40) -> EvaluatedModel:
    valid = predictions(labels_of(count, count, count), 3.0, seed, wrong)
    return EvaluatedModel.calibrated(valid, predictions(pool, 3.0, seed + 1, wrong, known=False))


EVEN = np.full(3, 1 / 3)


def test_copies_of_validation_images_are_kept_apart(tmp_path: Path):
    """Saved anew, in another size, lighter: a copy; the same grating at another phase is none."""
    for name in ("labelled", "pool"):
        (tmp_path / name).mkdir()
    for number in range(8):
        picture(number % 2, number, 64).save(tmp_path / "labelled" / f"{number}.png")
        picture(number % 2, 100 + number, 64).save(tmp_path / "pool" / f"other-{number}.png")
    picture(0, 2, 64).save(tmp_path / "pool" / "again.jpg", quality=80)
    picture(1, 3, 64).resize((48, 48), Image.Resampling.LANCZOS).save(tmp_path / "pool" / "small.png")
    picture(0, 4, 64).point(lambda level: level * 0.8 + 30).save(tmp_path / "pool" / "lighter.png")
    picture(1, 5, 64).save(tmp_path / "pool" / "trained-on.jpg", quality=80)
    labelled, others = dataset(tmp_path / "labelled", tmp_path), dataset(tmp_path / "pool", tmp_path)
    pool = Pool((PoolPart("unlabeled", others, np.arange(len(others))),))
    kept = apart_from_validation(pool, labelled, valid=np.array([2, 3, 4]))
    left_out = {others.images.ids[row] for row in set(range(len(others))) - set(kept.tolist())}
    assert left_out == {"again.jpg", "small.png", "lighter.png"}


def test_features_propose_copies_and_pixels_confirm_them(tmp_path: Path):
    """A crop is found by its features; of two pictures with the same features but other pixels none is a copy."""
    for name in ("labelled", "pool"):
        (tmp_path / name).mkdir()
        for number in range(30):
            picture(number % 2, number + 50 * (name == "pool"), 32).save(tmp_path / name / f"{number:02d}.png")
    picture(1, 3, 32).crop((1, 0, 32, 31)).save(tmp_path / "pool" / "07.png")
    picture(0, 20, 32).crop((1, 0, 32, 31)).save(tmp_path / "pool" / "09.png")  # of a training image
    labelled, others = dataset(tmp_path / "labelled", tmp_path), dataset(tmp_path / "pool", tmp_path)
    pool = Pool((PoolPart("test", others, np.arange(len(others))),))
    rng = np.random.default_rng(0)
    own, theirs = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    for copy, image in ((7, 3), (9, 20), (11, 4)):
        theirs[copy] = own[image] + 0.001
    kept = apart_from_validation(pool, labelled, np.arange(6), (theirs, own))
    assert set(range(30)) - set(kept.tolist()) == {7}
    assert len(apart_from_validation(pool, labelled, np.arange(6))) == 30


def test_shifted_classes_are_told_and_estimated():
    pool = labels_of(300, 60, 40)
    shift = label_shift(seen(0.05, pool), labels_of(50, 50, 50), rng=rng_for(0, "unlabelled shift"))
    assert shift.is_there
    np.testing.assert_allclose(shift.estimated, [0.75, 0.15, 0.10], atol=0.06)
    assert "most of all 'a': 33% of the labels" in shift.described(CLASSES)
    np.testing.assert_allclose(shift.prior("estimate"), shift.estimated, atol=1e-3)
    np.testing.assert_allclose(shift.prior("labeled"), EVEN)
    np.testing.assert_allclose(shift.prior("uniform"), EVEN)
    assert shift.prior("none") is None


def test_equal_classes_are_left_as_they_are():
    shift = label_shift(
        seen(0.05, labels_of(130, 130, 130), seed=4), labels_of(50, 50, 50), rng=rng_for(0, "unlabelled shift")
    )
    assert not shift.is_there
    assert "agree" in shift.described(CLASSES)
    np.testing.assert_allclose(shift.prior("estimate"), EVEN)


def test_a_class_without_labels_has_some_share():
    shift = label_shift(seen(0.05, labels_of(100, 100, 0)), labels_of(50, 50, 0), rng=rng_for(0, "unlabelled shift"))
    prior = shift.prior("labeled")
    assert prior is not None
    assert prior[2] > 0


@pytest.mark.parametrize(("before", "after", "kept"), [(0.3, 0.02, True), (0.02, 0.3, False), (0.1, 0.1, False)])
def test_only_a_better_student_is_kept(before: float, after: float, kept: bool):
    pool = labels_of(100, 100, 100)
    old, new = seen(before, pool), seen(after, pool, seed=0 if before == after else 7)
    decision = compare_student(old, new, EVEN, keep_at=0.8)
    assert decision.keeps == kept
    assert decision.text.startswith("kept:" if kept else "thrown away:")
    assert "120 validation images" in decision.text
    assert decision.as_dict()["kept"] == kept


def test_what_few_images_say_must_be_plain():
    """One more right of 15 is no evidence; with 1,500 images the same share is."""
    pool = labels_of(50, 50, 50)
    few, many = (compare_student(seen(0.2, pool, 1, n), seen(0.14, pool, 2, n), EVEN, keep_at=0.9) for n in (5, 500))
    assert many.keeps
    assert 0.01 < few.gain.probability < many.gain.probability


def test_confidence_alone_makes_no_difference():
    """A student that says the same more boldly is calibrated to the same."""
    pool = labels_of(50, 50, 50)
    valid = predictions(labels_of(40, 40, 40), 3.0, 0, 0.1)
    bold = Predictions(valid.ids, CLASSES, 4 * valid.logits, labels=valid.labels)
    shown = predictions(pool, 3.0, known=False)
    decision = compare_student(
        EvaluatedModel.calibrated(valid, shown), EvaluatedModel.calibrated(bold, shown), EVEN, keep_at=0.8
    )
    assert abs(decision.gain.gain) < 0.01


def test_views_of_few_images_tell_what_the_images_alone_do_not():
    """Both are right about every image as it is; one of them loses half of the images in half of the views."""
    rng = np.random.default_rng(0)
    labels = labels_of(4, 3, 3)
    shown = predictions(labels_of(50, 50, 50), 3.0, known=False)

    def through_views(wrong: float) -> EvaluatedModel:
        logits = np.repeat(3.0 * np.eye(3)[labels][None], 8, 0) + rng.normal(0, 0.3, (8, 10, 3))
        lost = (np.arange(8)[:, None] % 2 == 1) & (rng.random(10) < wrong)[None]
        logits[lost] = logits[lost][:, [1, 2, 0]]
        valid = Predictions(tuple(map(str, range(10))), CLASSES, logits, labels=labels)
        return EvaluatedModel.calibrated(valid, shown)

    before, after = through_views(0.5), through_views(0.0)
    assert (before.valid.predicted() == labels).all()
    assert (after.valid.predicted() == labels).all()
    assert compare_student(before, after, EVEN, keep_at=0.95).keeps
    assert not compare_student(after, before, EVEN, keep_at=0.5).keeps


def test_only_few_images_are_judged_through_views():
    assert [views_to_compare(count) for count in (1, 20, 125, 400, 1_000, 50_000)] == [8, 8, 8, 2, 1, 1]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ((100, 100, 100), (95, 110, 95), ""),
        ((100, 100, 100), (200, 95, 5), "class 'c' is predicted for 1.7%"),
        ((100, 100, 100), (190, 55, 55), "predicted class shares are 30% away from the expected ones (0% before)"),
        ((200, 50, 50), (195, 55, 50), ""),  # as far away as before: the shift is the images' own
        ((150, 149, 1), (150, 150, 0), ""),  # the teacher has lost it before
    ],
)
def test_collapse_is_seen_without_labels(before, after, told):
    old, new = (predictions(labels_of(*counts), 9.0, known=False) for counts in (before, after))
    found = collapsed(old, new, EVEN)
    assert found.startswith(told)
    assert bool(found) == bool(told)


def test_a_collapsed_student_is_thrown_away_whatever_validation_says():
    old, new = seen(0.3, labels_of(100, 100, 100)), seen(0.02, labels_of(298, 1, 1), seed=7)
    decision = compare_student(old, new, EVEN, keep_at=0.8)
    assert decision.gain.probability > 0.8
    assert not decision.keeps
    assert "thrown away: class" in decision.text
