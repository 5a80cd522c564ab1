from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.metrics import log_loss
from etude.core.predictions import Predictions
from etude.refine.ensemble import (
    METHODS,
    Ensemble,
    average,
    blend_views,
    geometric_mean,
    log_linear,
    log_linear_weights,
    majority_vote,
    mean_of_blends,
    mixture_weights,
    rank_mean,
    select_ensemble,
)

CLASSES = ("x", "y", "z")


def models_of(name: str, noises: tuple[float, ...], n: int = 150, labelled: bool = True) -> list[Predictions]:
    """Models whose logits tell the label up to their noise."""
    rng = np.random.default_rng(len(name))
    labels = rng.integers(3, size=n)
    ids = [f"{name}-{row:03}" for row in range(n)]
    logits = [2 * np.eye(3)[labels] + rng.normal(scale=noise, size=(n, 3)) for noise in noises]
    return [Predictions(tuple(ids), CLASSES, z[None], labels=labels if labelled else None) for z in logits]


@pytest.mark.each("method", METHODS)
def test_every_way_gives_probabilities_and_keeps_one_model(method: str):
    models = models_of("valid", (1, 2))
    blend = Ensemble(method).fit(models)  # type: ignore[arg-type]
    out = blend.transform(models_of("test", (1, 2), labelled=False))
    np.testing.assert_allclose(out.probabilities().sum(axis=1), 1)
    assert blend.weights_.sum() == pytest.approx(1)
    assert str(len(models)) in blend.described or f"{blend.weights_[0]:.2f}" in blend.described
    alone = Ensemble(method).fit(models[:1]).transform(models[:1]).probabilities()  # type: ignore[arg-type]
    expected = {"rank": rank_mean, "vote": majority_vote}.get(method, lambda models: models[0])(models[:1])
    np.testing.assert_allclose(alone, expected.probabilities(), atol=1e-6)


def test_each_way_is_what_it_says():
    models = models_of("valid", (1, 1, 3))
    labels = models[0].labels
    assert labels is not None
    for method, mean in (("mean", average), ("geometric", geometric_mean), ("rank", rank_mean)):
        np.testing.assert_array_equal(Ensemble(method).fit(models).transform(models).logits, mean(models).logits)  # type: ignore[arg-type]
    p = np.stack([one.probabilities() for one in models])
    likelihood = Ensemble("likelihood").fit(models)
    np.testing.assert_allclose(likelihood.weights_, mixture_weights(p[:, np.arange(150), labels]), atol=1e-5)
    selection = Ensemble("selection", "accuracy", size=9, bags=3, seed=5).fit(models)
    expected = select_ensemble(list(p), labels, metric="accuracy", size=9, bags=3, context=Context(seed=5))
    np.testing.assert_allclose(selection.weights_, expected)
    weighted = average(models, selection.weights_.tolist())
    losses = [log_loss(one, labels) for one in p]
    np.testing.assert_array_equal(Ensemble("best", "log_loss").fit(models).weights_, np.eye(3)[np.argmin(losses)])
    np.testing.assert_array_equal(selection.transform(models).logits, weighted.logits)


def test_copies_of_a_model_are_averaged():
    blend = Ensemble().fit(models_of("valid", (1.5,)) * 2)
    assert blend.method_ == "mean"
    assert set(blend.gains_) == {"geometric", "likelihood", "selection", "best"}
    assert not any(gain.beyond_noise for gain in blend.gains_.values())


def test_a_useless_model_is_weighed_down():
    valid, test = models_of("valid", (1, 12, 12), n=400), models_of("test", (1, 12, 12), n=400)
    blend = Ensemble().fit(valid)
    assert blend.method_ in ("likelihood", "selection", "best")
    assert blend.weights_[0] > 0.8
    labels = test[0].labels
    assert labels is not None
    better = log_loss(blend.transform(test).probabilities(), labels)
    assert better < log_loss(average(test).probabilities(), labels) - 0.1


def test_the_order_of_images_does_not_matter():
    models = models_of("valid", (1, 2, 4))
    rows = np.random.default_rng(0).permutation(150)
    for method in ("auto", "selection", "likelihood"):
        plain, turned = Ensemble(method).fit(models), Ensemble(method).fit([one.take(rows) for one in models])  # type: ignore[arg-type]
        assert plain.method_ == turned.method_
        np.testing.assert_allclose(plain.weights_, turned.weights_, atol=1e-9)


def test_unlabelled_images_are_left_out():
    models = models_of("valid", (1, 3))
    labels = models[0].labels
    assert labels is not None
    some = [
        Predictions(one.ids, one.classes, one.logits, labels=np.where(np.arange(150) < 80, labels, -1))
        for one in models
    ]
    few = [one.take(range(80)) for one in models]
    np.testing.assert_array_equal(Ensemble("likelihood").fit(some).weights_, Ensemble("likelihood").fit(few).weights_)


def test_what_needs_no_labels_gets_none():
    models = models_of("valid", (1, 2), labelled=False)
    assert Ensemble("mean").fit(models).transform(models).labels is None
    for method in ("auto", "likelihood", "selection", "best"):
        with pytest.raises(EtudeError, match="needs labelled images"):
            Ensemble(method).fit(models)  # type: ignore[arg-type]


def test_mistakes_are_told_in_one_sentence():
    models = models_of("valid", (1, 2))
    with pytest.raises(EtudeError, match="not fitted"):
        Ensemble().transform(models)
    with pytest.raises(EtudeError, match="Did you mean 'geometric'"):
        Ensemble("geometrc").fit(models)  # type: ignore[arg-type]
    with pytest.raises(EtudeError, match="metric"):
        Ensemble("mean", "nothing").fit(models)
    with pytest.raises(EtudeError, match="fitted on 2 models and got 1"):
        Ensemble("mean").fit(models).transform(models[:1])
    with pytest.raises(EtudeError, match="nothing to blend"):
        Ensemble("mean").fit([])
    other = Predictions(("a",), ("x", "y"), np.zeros((1, 1, 2)))
    with pytest.raises(EtudeError, match="classes"):
        Ensemble("mean").fit(models).transform([other, other])


def log_probabilities_of(models: list[Predictions]) -> np.ndarray:
    return np.stack([one.log_probabilities() for one in models])


def test_log_linear_weights_are_the_least_of_their_loss():
    """Against scipy without gradient and bounds, on models of which none is useless."""
    models = models_of("log-linear", (1.0, 1.5, 2.0))
    labels, log_p = models[0].labels, log_probabilities_of(models)
    assert labels is not None

    def loss(weights: np.ndarray) -> float:
        mixed = log_softmax(np.einsum("m,mnc->nc", weights, log_p), axis=1)
        return float(-mixed[np.arange(len(labels)), labels].sum() + 12.0 * ((weights - 1 / 3) ** 2).sum())

    expected = minimize(loss, np.ones(3), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}).x
    np.testing.assert_allclose(log_linear_weights(log_p, labels), expected, atol=1e-3)


def test_log_linear_weights_calibrate():
    """A model that is three times too sure gets a third of the weight; without images all weights are equal."""
    (model,) = models_of("sure", (1.0,), n=4_000)
    labels, log_p = model.labels, log_probabilities_of([model])
    assert labels is not None
    fair, sure = (float(log_linear_weights(k * log_p, labels, prior=0.0)[0]) for k in (1.0, 3.0))
    assert sure == pytest.approx(fair / 3, rel=1e-3)
    np.testing.assert_allclose(log_linear_weights(np.repeat(log_p, 4, 0)[:, :0], labels[:0]), 1 / 4)


def test_impossible_classes_stay_finite():
    log_p = np.log(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]) + 1e-300)
    assert np.isfinite(log_linear(log_p, log_linear_weights(log_p, np.array([0])))).all()


def test_a_run_of_folds_predicts_the_mean_of_its_blends():
    first, second, third = (replace(one, logits=np.repeat(one.logits, 2, 0)) for one in models_of("runs", (1, 2, 3)))
    blended = blend_views([first, second], [0.7, 0.4])
    assert blended.logits.shape == first.logits.shape
    logits = 0.7 * first.log_probabilities() + 0.4 * second.log_probabilities()
    np.testing.assert_allclose(blended.probabilities(), softmax(logits, axis=1), atol=1e-6)
    found = mean_of_blends([first, second, third], [[0.7, 0.4], [1.0]])
    np.testing.assert_allclose(found.probabilities(), average([blended, third]).probabilities(), atol=1e-6)
    assert mean_of_blends([first], None) is first
    np.testing.assert_array_equal(mean_of_blends([first, third], None).logits, average([first, third]).logits)
