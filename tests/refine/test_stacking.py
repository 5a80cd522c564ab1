from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.core.metrics import log_loss
from etude.core.predictions import Predictions
from etude.refine.ensemble import average, geometric_mean
from etude.refine.stacking import Stacking

CLASSES = ("x", "y", "z")


def models_of(seed: int, n: int = 300, noise: float = 1.0) -> list[Predictions]:
    """Two models: one mistakes x for y and y for x, the other knows nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    confused = 3 * np.eye(3)[np.array([1, 0, 2])[labels]] + rng.normal(scale=noise, size=(n, 3))
    ids = tuple(f"{seed}-{row}" for row in range(n))
    return [Predictions(ids, CLASSES, z[None], labels=labels) for z in (confused, rng.normal(size=(n, 3)))]


def honest(seed: int, n: int = 200) -> list[Predictions]:
    """Two calibrated models whose geometric mean is the best that can be said."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    ids = tuple(f"{seed}-{row}" for row in range(n))
    made = [np.eye(3)[labels] * 1.5 + rng.normal(scale=np.sqrt(1.5), size=(n, 3)) for _ in range(2)]
    return [Predictions(ids, CLASSES, z[None], labels=labels) for z in made]


def loss_of(predictions: Predictions) -> float:
    assert predictions.labels is not None
    return log_loss(predictions.probabilities(), predictions.labels)


def test_a_model_that_confuses_classes_is_set_right():
    stack = Stacking().fit(models_of(0))
    test = models_of(1)
    assert stack.stacked_
    assert stack.gain_ > 2 * stack.error_ > 0
    assert stack.described == f"logistic, C = {stack.chosen_:g}"
    out = stack.transform(test)
    assert loss_of(out) < loss_of(average(test)) - 0.5
    np.testing.assert_allclose(out.probabilities().sum(axis=1), 1)
    assert out.logits.shape == (1, 300, 3)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_stays_where_stacking_gains_nothing(seed: int):
    models = [honest(seed)[0]] * 2
    stack = Stacking(strengths=(1e-3, 10.0)).fit(models)
    assert not stack.stacked_
    assert "not more than noise" in stack.described
    np.testing.assert_array_equal(stack.transform(models).logits, average(models).logits)


def test_no_strength_is_the_geometric_mean():
    models = models_of(0)
    stack = Stacking(strengths=(1e-12,)).fit(models)
    told = stack._answer(
        stack._learned(models, np.zeros((300, 1)), np.asarray(models[0].labels)), models, np.zeros((300, 1)), 1e-12
    )
    np.testing.assert_allclose(np.exp(told), geometric_mean(models).probabilities(), atol=1e-6)


def test_further_columns_are_learned_from():
    train, test = honest(0, 400), honest(1, 400)
    labels, answers = np.asarray(train[0].labels), np.asarray(test[0].labels)
    rng = np.random.default_rng(0)
    sizes = labels + rng.normal(scale=0.3, size=400), answers + rng.normal(scale=0.3, size=400)
    with_size = Stacking().fit(train, {"size": sizes[0]})
    assert loss_of(with_size.transform(test, {"size": sizes[1]})) < loss_of(Stacking().fit(train).transform(test)) - 0.1
    for extra in (None, {"blur": sizes[1]}, {"size": sizes[1], "blur": sizes[1]}):
        with pytest.raises(EtudeError, match="extra columns 'size', and got"):
            with_size.transform(test, extra)


def test_the_order_of_images_and_classes_does_not_matter():
    train, test = models_of(0), models_of(1)
    rows, columns = np.random.default_rng(0).permutation(300), [2, 0, 1]

    def turned(one: Predictions) -> Predictions:
        names = tuple(CLASSES[column] for column in columns)
        labels = np.argsort(columns)[np.asarray(one.labels)]
        return Predictions(one.ids, names, one.logits[:, :, columns], labels=labels).take(rows)

    plain = Stacking().fit(train).transform(test).probabilities()
    other = Stacking().fit([turned(one) for one in train]).transform([turned(one) for one in test]).probabilities()
    np.testing.assert_allclose(other, plain[rows][:, columns], atol=1e-4)


def test_fitting_again_forgets_and_unlabelled_images_do_not_count():
    stack, train = Stacking(), models_of(0)
    stack.fit(models_of(5)).fit(train)
    np.testing.assert_array_equal(stack.transform(train).logits, Stacking().fit(train).transform(train).logits)
    labels = np.where(np.arange(300) < 200, np.asarray(train[0].labels), -1)
    some = [Predictions(one.ids, one.classes, one.logits, labels=labels) for one in train]
    few = Stacking().fit([one.take(range(200)) for one in train])
    np.testing.assert_allclose(Stacking().fit(some).transform(train).logits, few.transform(train).logits, atol=1e-5)


@pytest.mark.parametrize("learner", ["logistic", "lightgbm"])
def test_one_image_and_one_class_are_survived(learner: Any, trees: FakeTrees):
    train = models_of(0)
    single = [one.take([0]) for one in train]
    assert not Stacking(learner).fit(single).stacked_
    same = [one.take(np.flatnonzero(np.asarray(one.labels) == 1)[:3]) for one in train]
    assert not Stacking(learner).fit(same).stacked_
    only = [Predictions(("a", "b"), ("x",), np.zeros((1, 2, 1)), labels=np.zeros(2, int))] * 2
    np.testing.assert_allclose(Stacking(learner).fit(only).transform(only).probabilities(), 1)


# --- trees, with a stand-in for LightGBM ---


class FakeTrees:
    """Stands in for lightgbm: its classifier answers with the share of labels near each row's first column."""

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []
        outer = self

        class LGBMClassifier:
            def __init__(self, **settings: Any) -> None:
                outer.settings.append(settings)

            def fit(self, rows: np.ndarray, labels: np.ndarray) -> LGBMClassifier:
                assert len(np.unique(labels)) > 1
                self.rows, self.labels, self.classes_ = rows, labels, np.unique(labels)
                return self

            def predict_proba(self, rows: np.ndarray) -> np.ndarray:
                near = np.abs(rows[:, None, :3] - self.rows[None, :, :3]).sum(axis=2).argsort(axis=1)[:, :15]
                return (self.labels[near][..., None] == self.classes_).mean(axis=1)

        self.module = SimpleNamespace(LGBMClassifier=LGBMClassifier)


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> FakeTrees:
    fake = FakeTrees()
    monkeypatch.setitem(sys.modules, "lightgbm", fake.module)  # type: ignore[arg-type]
    return fake


def test_trees_are_blended_with_the_mean(trees: FakeTrees):
    stack = Stacking("lightgbm", seed=3).fit(models_of(0))
    test = models_of(1)
    assert stack.stacked_
    assert stack.described == f"lightgbm, λ = {stack.chosen_:g}"
    assert stack.chosen_ in (0.25, 0.5, 0.75, 1.0)
    assert loss_of(stack.transform(test)) < loss_of(average(test)) - 0.5
    assert len(trees.settings) == 6  # five folds and all
    assert all(given == trees.settings[0] for given in trees.settings)
    assert trees.settings[0]["deterministic"] is True


def test_a_class_that_the_trees_never_saw_keeps_the_means_share(trees: FakeTrees):
    train = models_of(0)
    two = [one.take(np.flatnonzero(np.asarray(one.labels) < 2)) for one in train]
    stack = Stacking("lightgbm", weights=(0.5,)).fit(two)
    assert stack.stacked_
    out = stack.transform(train).probabilities()
    np.testing.assert_allclose(out[:, 2], average(train).probabilities()[:, 2], atol=1e-6)


def test_a_missing_lightgbm_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(
        EtudeError, match="needs the package lightgbm.* pip install lightgbm, or take learner 'logistic'"
    ):
        Stacking("lightgbm").fit(models_of(0))


# --- what is refused ---


def test_mistakes_are_told_in_one_sentence():
    models = models_of(0)
    with pytest.raises(EtudeError, match="not fitted"):
        Stacking().transform(models)
    with pytest.raises(EtudeError, match="Did you mean 'logistic'"):
        Stacking("logistics").fit(models)  # type: ignore[arg-type]
    with pytest.raises(EtudeError, match="strengths above 0"):
        Stacking(strengths=(0.0,)).fit(models)
    with pytest.raises(EtudeError, match="none has a label"):
        Stacking().fit([Predictions(one.ids, one.classes, one.logits) for one in models])
    with pytest.raises(EtudeError, match="fitted on 2 models"):
        Stacking().fit(models).transform(models[:1])
    for column in ([1.0], np.full(300, np.nan), np.full(300, "x")):
        with pytest.raises(EtudeError, match="column 'size' must hold 300 finite numbers"):
            Stacking().fit(models, {"size": column})
