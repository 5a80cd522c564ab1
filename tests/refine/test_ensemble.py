from __future__ import annotations

import numpy as np
import pytest

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.metrics import log_loss
from etude.core.predictions import Predictions
from etude.refine.ensemble import (
    METHODS,
    Ensemble,
    average,
    geometric_mean,
    majority_vote,
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
