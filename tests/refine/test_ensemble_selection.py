from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.refine.ensemble import forward_selection, mixture_weights, scored, select_ensemble

Score = Callable[[np.ndarray], float]
SEEDS = st.integers(0, 10_000)


def drawn(seed: int, models: int = 3, images: int = 12, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (M, N, C) that favour the labels (N,), the more the later the model."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    skill = np.arange(models)[:, None, None] / 2
    logits = rng.normal(size=(models, images, classes)) + skill * np.eye(classes)[labels]
    weights = np.exp(logits)
    return weights / weights.sum(axis=2, keepdims=True), labels


def brute_force(models: np.ndarray, score: Score, size: int, sorted_start: bool) -> list[float]:
    """Caruana's procedure word for word, with the whole bag averaged anew each time."""

    def value(bag: list[int]) -> float:
        return round(score(np.mean([models[one] for one in bag], axis=0)), 12)

    bag: list[int] = []
    if sorted_start:
        ranked = sorted(range(len(models)), key=lambda one: -value([one]))
        starts = [ranked[:count] for count in range(1, min(size, len(models)) + 1)]
        bag = max(starts, key=value)
    seen = [list(bag)] if bag else []
    while len(bag) < size:
        bag = max(([*bag, one] for one in range(len(models))), key=value)
        seen.append(bag)
    best = max(seen, key=value)
    return [best.count(one) / len(best) for one in range(len(models))]


# --- forward selection ---


@given(
    SEEDS, st.integers(1, 4), st.integers(1, 7), st.booleans(), st.sampled_from(["log_loss", "accuracy", "macro_f1"])
)
def test_forward_selection_is_the_published_procedure(seed: int, models: int, size: int, start: bool, metric: str):
    probabilities, labels = drawn(seed, models)
    seen, score = scored(list(probabilities), labels, metric)
    weights = forward_selection(seen, score, size, start)
    np.testing.assert_allclose(weights, brute_force(np.stack(seen), score, size, start))
    assert weights.sum() == pytest.approx(1)


def test_the_scores_are_those_of_the_metric():
    probabilities, labels = drawn(0)
    for metric, expected in (
        ("log_loss", np.log(probabilities[0][np.arange(12), labels]).mean()),
        ("accuracy", (probabilities[0].argmax(axis=1) == labels).mean()),
    ):
        seen, score = scored(list(probabilities), labels, metric)
        assert score(seen[0]) == pytest.approx(expected)


def test_ties_go_to_the_earlier_model_and_the_smaller_bag():
    same = [np.ones(3), np.ones(3), np.ones(3)]
    assert forward_selection(same, lambda mean: mean.sum()).tolist() == [1, 0, 0]
    assert forward_selection(same, lambda mean: mean.sum(), sorted_start=False).tolist() == [1, 0, 0]


def test_a_model_that_knows_everything_is_taken_alone():
    labels = np.arange(10) % 2
    right = np.eye(2)[labels] * 0.98 + 0.01
    assert select_ensemble([1 - right, right, np.full((10, 2), 0.5)], labels).tolist() == [0, 1, 0]


def test_bags_are_the_same_for_the_same_seed_and_average():
    probabilities, labels = drawn(3, models=6, images=60)
    models = list(probabilities)
    first = select_ensemble(models, labels, bags=4, share=0.5, context=Context(seed=1))
    np.testing.assert_array_equal(first, select_ensemble(models, labels, bags=4, share=0.5, context=Context(seed=1)))
    assert (first != select_ensemble(models, labels, bags=4, share=0.5, context=Context(seed=2))).any()
    assert first.sum() == pytest.approx(1)
    assert (first >= 0).all()
    plain = select_ensemble(models, labels, bags=1)
    seen, score = scored(models, labels, "log_loss")
    np.testing.assert_array_equal(plain, forward_selection(seen, score))


def test_a_small_share_still_keeps_a_model_in_each_bag():
    probabilities, labels = drawn(0, models=2)
    assert select_ensemble(list(probabilities), labels, bags=5, share=1e-9).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"size": 0}, "size of at least 1"), ({"bags": 0}, "at least one bag"), ({"share": 0}, "share above 0"),
     ({"share": 1.5}, "share above 0"), ({"metric": "acuracy"}, "accuracy")],
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_one_sentence(options: dict[str, object], sentence: str):
    probabilities, labels = drawn(0)
    with pytest.raises(EtudeError, match=sentence):
        select_ensemble(list(probabilities), labels, **options)  # type: ignore[arg-type]


# --- the mixture of greatest likelihood ---


@given(SEEDS, st.integers(1, 6))
def test_every_step_raises_the_likelihood(seed: int, models: int):
    probabilities, labels = drawn(seed, models)
    given_p = probabilities[:, np.arange(12), labels]
    likelihoods = list[float]()
    for steps in range(30):
        weights = mixture_weights(given_p, tolerance=0.0, most=steps)
        likelihoods.append(float(np.log(weights @ given_p).mean()))
        assert weights.sum() == pytest.approx(1)
    assert (np.diff(likelihoods) >= -1e-12).all()


@settings(max_examples=20)
@given(SEEDS)
def test_no_weights_have_a_smaller_log_loss(seed: int):
    probabilities, labels = drawn(seed)
    given_p = probabilities[:, np.arange(12), labels]

    def loss(weights: np.ndarray) -> float:
        return -float(np.log(np.maximum(weights @ given_p, 1e-15)).mean())

    weights = mixture_weights(given_p)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)
    found = optimize.minimize(
        loss, np.full(3, 1 / 3), method="SLSQP", bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
    )  # fmt: skip
    assert loss(weights) <= found.fun + 2e-6
    for one in np.eye(3):
        assert loss(weights) <= loss(one) + 2e-6


def test_mixture_weights_by_hand():
    # Each model is sure of its own images: the weights are their shares.
    assert mixture_weights(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).round(4).tolist() == [0.6667, 0.3333]
    assert mixture_weights(np.array([[0.2, 0.9]])).tolist() == [1]
    assert mixture_weights(np.full((4, 3), 0.5)).tolist() == [0.25] * 4
    assert mixture_weights(np.zeros((2, 3))).tolist() == [0.5, 0.5]


@given(SEEDS, st.permutations(range(4)))
@settings(max_examples=20)
def test_weights_go_with_the_models(seed: int, order: list[int]):
    probabilities, labels = drawn(seed, models=4)
    given_p = probabilities[:, np.arange(12), labels]
    np.testing.assert_allclose(mixture_weights(given_p[order]), mixture_weights(given_p)[order], atol=1e-9)
