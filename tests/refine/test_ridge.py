from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from etude.health import label_errors as ridge
from etude.health.label_errors import landmark_features, leave_one_out, principal


def test_principal_axes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 3)) @ rng.normal(size=(3, 20)) + 0.01 * rng.normal(size=(80, 20)) + 5
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    theirs = PCA(3).fit_transform(standard)
    found = principal(rows.astype(np.float32), 3)
    np.testing.assert_allclose(np.abs(found), np.abs(theirs), atol=2e-3)


def test_columns_that_do_not_vary_count_for_nothing():
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float16)
    wider = np.concatenate([rows, np.full((30, 2), 1000, np.float16)], axis=1)
    np.testing.assert_allclose(np.abs(principal(wider, 4)), np.abs(principal(rows, 4)), atol=1e-4)
    assert np.isfinite(principal(np.ones((5, 3)), 2)).all()


def test_leaving_one_out_is_fitting_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ridge, "PENALTIES", (0.3,))
    rng = np.random.default_rng(0)
    z, targets = rng.normal(size=(25, 4)) + 2, rng.normal(size=(25, 2))
    found = leave_one_out(z, targets)
    centred = z - z.mean(axis=0)
    alpha = 0.3 * np.linalg.eigvalsh(centred.T @ centred).mean()
    for row in range(25):
        rest = np.arange(25) != row
        other = Ridge(alpha=alpha).fit(z[rest], targets[rest])
        np.testing.assert_allclose(found[row], other.predict(z[[row]])[0], atol=1e-8)


def test_the_penalty_is_chosen_by_the_error_left_out():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 30))
    noise = rng.normal(size=(400, 1))
    assert np.abs(leave_one_out(z, noise) - noise.mean()).max() < 0.3  # all is shrunk away where nothing is to learn
    clear = z[:, :1] * 2
    np.testing.assert_allclose(leave_one_out(z, clear), clear, atol=0.1)


def test_features_that_are_all_the_same_predict_the_mean():
    targets = np.array([[0.0], [1.0], [1.0], [0.0]])
    found = leave_one_out(np.zeros((4, 2)), targets)
    np.testing.assert_allclose(found[:, 0], [2 / 3, 1 / 3, 1 / 3, 2 / 3])


def test_with_all_rows_as_landmarks_the_products_are_the_kernel():
    z = np.random.default_rng(0).normal(size=(40, 6))
    apart = ((z[:, None] - z) ** 2).sum(axis=2)
    found = landmark_features(z, 40, 0.75)
    np.testing.assert_allclose(found @ found.T, np.exp(-0.75 * apart / np.median(apart)), atol=1e-3)
    assert landmark_features(z, 10, 0.75).shape == (40, 10)
    assert np.isfinite(landmark_features(np.ones((5, 3)), 4, 0.75)).all()


def test_a_fit_that_bends_at_will_does_not_repeat_the_target_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ridge, "PENALTIES", (1e-5,))
    rng = np.random.default_rng(0)
    rows = landmark_features(rng.normal(size=(200, 50)), 200, 2.0)
    targets = np.eye(2)[rng.integers(0, 2, 200)]
    assert (leave_one_out(rows, targets).argmax(axis=1) == targets.argmax(axis=1)).mean() < 0.65
