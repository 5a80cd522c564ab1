"""The contract of ``etude.refine.base.Refiner``, held to every refiner in ``refiners.ALL``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine.base import Refiner
from refine.refiners import ALL, Case

CLASSES = ("dog", "cat", "eel", "ant")
every_refiner = pytest.mark.each("case", ALL, ids=[case.name for case in ALL])


def model_output(name: str, n: int, *, classes: tuple[str, ...] = CLASSES, views: int = 2) -> Predictions:
    """Predictions of a model that is right more often than not, with features and with labels, some unknown."""
    rng, size = rng_for(0, name), len(classes)
    labels = rng.integers(size, size=n)
    own = np.eye(size)[labels]
    logits = 2 * own + rng.normal(size=(views, n, size))
    features = np.concatenate([own, rng.normal(size=(n, 3))], axis=1) + rng.normal(size=(n, size + 3)) / 2
    labels[5:8] = -1
    ids = tuple(f"{name}-{number}" for number in rng.permutation(n))
    return Predictions(ids, classes, logits, features.astype(np.float32), labels)


LABELLED, TARGET = model_output("labelled", 60), model_output("target", 40)


def remade(one: Predictions, **changed: Any) -> Predictions:
    """``one`` with some of its fields replaced."""
    fields = ("ids", "classes", "logits", "features", "labels")
    return Predictions(**{name: getattr(one, name) for name in fields} | changed)


def without_labels(one: Predictions) -> Predictions:
    return remade(one, labels=None)


def fitted(case: Case, labelled: Predictions = LABELLED, target: Predictions = TARGET) -> Refiner:
    return case.make().fit(labelled=labelled, target=without_labels(target))


def refined(case: Case, labelled: Predictions = LABELLED, target: Predictions = TARGET) -> np.ndarray:
    return fitted(case, labelled, target).transform(target).probabilities()


def assert_sound(refined: Predictions, given: Predictions) -> None:
    """One view on the simplex, of the same images and classes."""
    assert refined.logits.shape == (1, len(given.ids), len(given.classes))
    np.testing.assert_allclose(refined.probabilities().sum(axis=1), 1, atol=1e-6)
    assert (refined.ids, refined.classes) == (given.ids, given.classes)


def with_columns(one: Predictions, order: list[int]) -> Predictions:
    """The same predictions with the classes in another order."""
    position = np.append(np.argsort(order), -1)  # the last entry keeps -1, unknown, as it is
    assert one.labels is not None
    return remade(
        one,
        classes=tuple(one.classes[column] for column in order),
        logits=one.logits[:, :, order],
        labels=position[one.labels],
    )


@every_refiner
def test_what_comes_out_is_on_the_simplex_and_keeps_the_rest(case: Case):
    done = fitted(case)
    for given in (TARGET, LABELLED):
        out = done.transform(given)
        assert_sound(out, given)
        np.testing.assert_array_equal(out.labels, given.labels)
        np.testing.assert_array_equal(out.features, given.features)
    assert done.described


@every_refiner
def test_the_input_is_not_changed(case: Case):
    kept = {id(one): {name: np.array(value) for name, value in vars(one).items()} for one in (LABELLED, TARGET)}
    case.make().fit(labelled=LABELLED, target=TARGET).transform(TARGET)
    for one in (LABELLED, TARGET):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, kept[id(one)][name])


@every_refiner
def test_fitting_again_equals_fitting_a_clone(case: Case):
    first, second = model_output("elsewhere", 50), model_output("there", 30)
    used = case.make().fit(labelled=first, target=without_labels(second))
    clone = used.clone()
    assert type(clone) is type(used)
    assert repr(clone) == repr(used)
    with pytest.raises(EtudeError, match="not fitted"):
        clone.transform(TARGET)
    again = used.fit(labelled=LABELLED, target=without_labels(TARGET))
    assert again is used
    clone.fit(labelled=LABELLED, target=without_labels(TARGET))
    np.testing.assert_array_equal(again.transform(TARGET).logits, clone.transform(TARGET).logits)
    assert again.described == clone.described


@every_refiner
def test_fitting_leaves_the_arguments_as_they_were(case: Case):
    untouched = case.make()
    assert repr(fitted(case)) == repr(untouched)


@every_refiner
def test_a_refiner_that_is_not_fitted_says_so(case: Case):
    with pytest.raises(EtudeError, match="not fitted"):
        case.make().transform(TARGET)
    with pytest.raises(EtudeError, match="not fitted"):
        _ = case.make().described


@every_refiner
def test_what_fit_needs_is_asked_for(case: Case):
    assert case.make().fits_on <= {"labelled", "target"}
    if case.make().fits_on:
        with pytest.raises(EtudeError):
            case.make().fit()
    if "labelled" in case.make().fits_on:
        with pytest.raises(EtudeError, match="label"):
            case.make().fit(labelled=without_labels(LABELLED), target=TARGET)
        with pytest.raises(EtudeError, match="label"):
            case.make().fit(labelled=remade(LABELLED, labels=np.full(60, -1)), target=TARGET)


@every_refiner
def test_features_are_asked_for_where_they_are_needed(case: Case):
    assert case.make().needs_features == case.needs_features
    bare = [remade(one, features=None) for one in (LABELLED, TARGET)]
    if case.needs_features:
        with pytest.raises(EtudeError, match="features"):
            fitted(case, *bare)
    else:
        assert_sound(fitted(case, *bare).transform(bare[1]), bare[1])


@every_refiner
def test_the_labels_of_the_target_are_not_read(case: Case):
    told = case.make().fit(labelled=LABELLED, target=TARGET).transform(TARGET)
    np.testing.assert_array_equal(told.logits, fitted(case).transform(without_labels(TARGET)).logits)


@every_refiner
def test_the_order_of_images_does_not_matter(case: Case):
    rows = rng_for(1, "rows").permutation(len(TARGET))
    shuffled = refined(case, LABELLED.take(rng_for(1, "others").permutation(len(LABELLED))), TARGET.take(rows))
    np.testing.assert_allclose(shuffled, refined(case)[rows], atol=1e-4)


@every_refiner
def test_the_order_of_classes_does_not_matter(case: Case):
    order = [2, 0, 3, 1]
    turned = refined(case, with_columns(LABELLED, order), with_columns(TARGET, order))
    np.testing.assert_allclose(turned, refined(case)[:, order], atol=1e-4)


@every_refiner
@pytest.mark.each("classes", [("dog", "cat", "ant", "eel"), ("dog", "cat", "eel"), ("dog", "cat", "eel", "ape")])
def test_other_classes_are_refused(case: Case, classes: tuple[str, ...]):
    with pytest.raises(EtudeError, match="classes"):
        fitted(case).transform(model_output("other", 10, classes=classes))


@every_refiner
def test_one_class_stays_certain(case: Case):
    given = [model_output(name, n, classes=("only",)) for name, n in (("labelled", 20), ("target", 15))]
    np.testing.assert_allclose(refined(case, *given), 1)


@every_refiner
def test_two_images_are_enough(case: Case):
    pair = LABELLED.take([0, 1]), TARGET.take([0, 1])
    assert_sound(fitted(case, *pair).transform(pair[1]), pair[1])


def hard(one: Predictions) -> Predictions:
    """Ones and zeros, as a decision tree gives, half of them wrong."""
    return remade(
        one, logits=np.log(np.maximum(np.eye(4)[rng_for(2, "hard").integers(4, size=len(one))], 1e-300))[None]
    )


def tied(one: Predictions) -> Predictions:
    """No class is more probable than another."""
    return remade(one, logits=np.zeros((1, *one.logits.shape[1:])), features=np.ones_like(one.features))


def half_tied(one: Predictions) -> Predictions:
    """Every other image is a copy of the first, the rest have two classes of the same probability."""
    logits = one.logits[:1].copy()
    logits[:, ::2] = logits[:, :1]
    logits[:, 1::2, 1] = logits[:, 1::2, 0]
    return remade(one, logits=logits)


def separable(one: Predictions) -> Predictions:
    """Every label is right and certain, and one class never occurs."""
    labels = np.arange(len(one)) % 3
    return remade(one, logits=300 * np.eye(4)[labels][None], labels=labels)


def huge(one: Predictions) -> Predictions:
    return remade(one, logits=one.logits * np.float32(1e6))


@every_refiner
@pytest.mark.each("change", [hard, tied, half_tied, separable, huge])
def test_zeros_ties_and_certainties_are_survived(case: Case, change: Callable[[Predictions], Predictions]):
    given = change(LABELLED), change(TARGET)
    assert_sound(fitted(case, *given).transform(given[1]), given[1])
    assert_sound(fitted(case, *given).transform(TARGET), TARGET)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_never_reaches_a_refiner(value: float):
    logits = LABELLED.logits.copy()
    logits[0, 3, 1] = value
    with pytest.raises(EtudeError, match="NaN"):
        remade(LABELLED, logits=logits)
