"""A head on several views of each image."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from etude.models.head import fit_head


def images(count: int = 90, width: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return rng.normal(size=(count, width)) + 1.5 * np.eye(3, width)[labels], labels


def test_equal_views_change_nothing():
    plain, labels = images()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(labels))
    one = fit_head(plain, labels, 3, candidates=(0.01, 0.1, 1.0), weights=weights)
    four = fit_head(np.stack([plain] * 4), labels, 3, candidates=(0.01, 0.1, 1.0), weights=weights)
    assert four.inverse_regularization == one.inverse_regularization
    assert four.cross_entropy == pytest.approx(one.cross_entropy, rel=1e-3)
    np.testing.assert_allclose(four.logits(plain), one.logits(plain), atol=0.02)


def test_one_view_given_as_such_is_the_plain_fit():
    plain, labels = images()
    one, same = (fit_head(x, labels, 3, candidates=(0.01, 0.1)) for x in (plain, plain[None]))
    np.testing.assert_array_equal(one.weight, same.weight)
    assert one.cross_entropy == same.cross_entropy


def test_no_view_of_a_held_out_image_is_learned_from(monkeypatch: pytest.MonkeyPatch):
    """Each image carries its number in all of its views, so the rows of every fit tell their images."""
    numbers = np.arange(30.0)
    views = np.stack([np.stack([numbers, np.full(30, view)], 1) for view in range(4)])
    fits: list[np.ndarray] = []
    held: list[np.ndarray] = []
    plain_fit, predict = LogisticRegression.fit, LogisticRegression.predict_proba
    monkeypatch.setattr(
        LogisticRegression,
        "fit",
        lambda model, x, *given, **weights: fits.append(x) or plain_fit(model, x, *given, **weights),
    )
    monkeypatch.setattr(LogisticRegression, "predict_proba", lambda model, x: held.append(x) or predict(model, x))
    fit_head(views, np.arange(30) % 2, 2, candidates=(0.1, 0.2), folds=3)
    assert len(held) == 6  # three folds of two candidates; the last fit is on everything
    for learned, judged in zip(fits, held, strict=False):
        counts = np.unique(learned[:, 0], return_counts=True)[1]
        assert (counts == 4).all()  # all views of an image, or none
        assert len(learned) + 4 * len(judged) == 120
        assert not np.isin(judged[:, 0], learned[:, 0]).any()
        assert len(np.unique(judged[:, 1])) == 1  # judged by the plain view alone
    assert len(fits[-1]) == 120


def test_views_teach_what_they_leave_alone():
    """The first feature gives the class away in the plain view only; a head on views learns the second one."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    sign = 2.0 * labels - 1
    honest = sign + rng.normal(size=200)
    views = np.stack([np.stack([5 * sign if view == 0 else rng.normal(size=200), honest], 1) for view in range(8)])
    plain = fit_head(views[0], labels, 2, candidates=(0.1,))
    taught = fit_head(views, labels, 2, candidates=(0.1,))
    fresh = np.stack([5 * rng.normal(size=400), np.tile([-1.0, 1.0], 200)], 1)
    truth = np.arange(400) % 2
    assert (taught.logits(fresh).argmax(1) == truth).mean() > (plain.logits(fresh).argmax(1) == truth).mean() + 0.1
