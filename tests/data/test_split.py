"""Hold-out, folds and samples: disjoint, complete, stratified, equal groups on one side, same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.data.split import allocate, hold_out, k_folds, parse_amount, sample, shares_with_least

label_lists = st.lists(st.integers(0, 4), min_size=2, max_size=120).map(lambda labels: np.array(labels))
fractions = st.floats(0.02, 0.98)


def ignore(sentence: str) -> None:
    assert sentence


def has_a_splittable_class(labels: np.ndarray) -> bool:
    return bool((np.bincount(labels) >= 2).any())


@given(label_lists, fractions, st.integers(0, 3))
def test_hold_out_is_complete_and_stratified(labels: np.ndarray, fraction: float, seed: int) -> None:
    assume(has_a_splittable_class(labels))
    train, valid = hold_out(labels, range(len(labels)), fraction, Context(seed=seed, warn=ignore))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(valid) > 0).all()
    sizes = np.bincount(labels)
    held = np.bincount(labels[valid], minlength=len(sizes))
    splittable = sizes >= 2
    assert (np.abs(held - fraction * sizes)[splittable] <= 1 + 1e-9).all()
    assert (held[splittable] >= 1).all()
    assert (held < np.maximum(sizes, 1)).all()
    assert (held[~splittable] == 0).all()


@given(st.lists(st.integers(30, 60), min_size=1, max_size=5), st.floats(0.05, 0.95))
def test_hold_out_has_exactly_its_share(sizes: list[int], fraction: float) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    _, valid = hold_out(labels, range(len(labels)), fraction, Context(warn=ignore))
    assert len(valid) == round(fraction * len(labels))


@st.composite
def grouped_labels(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    labels = draw(label_lists)
    groups = draw(st.lists(st.integers(0, 40), min_size=len(labels), max_size=len(labels)))
    return labels, np.array(groups)


@given(grouped_labels(), fractions)
def test_hold_out_keeps_groups_together(case: tuple[np.ndarray, np.ndarray], fraction: float) -> None:
    labels, groups = case
    try:
        train, valid = hold_out(labels, groups.tolist(), fraction, Context(warn=ignore))
    except EtudeError:
        groups_of = [set(groups[labels == label]) for label in set(labels)]
        assert all(len(held) < 2 or len(groups_of) > 1 for held in groups_of)
        return
    assert not set(groups[train]) & set(groups[valid])
    assert len(train) + len(valid) == len(labels)
    assert set(labels[train]) == set(labels)


def test_copies_do_not_disturb_the_shares() -> None:
    labels = np.repeat([0, 1], 100)
    groups = [index // 2 if index % 10 < 4 else 1000 + index for index in range(200)]
    _, valid = hold_out(labels, groups, 0.2, Context(warn=ignore))
    assert np.bincount(labels[valid]).tolist() == [20, 20]
    assert any(np.bincount([groups[index] for index in valid]) == 2), "some copies are validated too"


def test_a_class_of_few_large_groups_is_still_validated() -> None:
    labels = np.repeat([0, 1], [20, 20])
    groups = [index // 10 if index < 20 else index for index in range(40)]
    _, valid = hold_out(labels, groups, 0.2, Context(warn=ignore))
    assert np.bincount(labels[valid]).tolist() == [10, 4]


def test_single_image_classes_train_only_and_are_told() -> None:
    told: list[str] = []
    labels = np.array([0] * 10 + [1] + [2] * 5)
    train, valid = hold_out(labels, range(16), 0.2, Context(warn=told.append), classes=("a", "lonely", "c"))
    assert 10 in train
    assert set(labels[valid]) == {0, 2}
    assert told == ["1 class with only one distinct image ('lonely') can be trained on, but not validated"]


def test_copies_of_one_image_count_as_one() -> None:
    told: list[str] = []
    labels = np.array([0] * 10 + [1] * 3)
    _, valid = hold_out(labels, [*range(10), "same", "same", "same"], 0.3, Context(warn=told.append))
    assert set(labels[valid]) == {0}
    assert len(told) == 1


def test_nothing_to_validate() -> None:
    with pytest.raises(EtudeError, match="no class has two distinct images"):
        hold_out(np.array([0, 1, 2]), range(3), 0.2, Context(warn=ignore))
    with pytest.raises(EtudeError, match="no class has two distinct images"):
        k_folds(np.array([0, 1, 2]), range(3), 2, Context(warn=ignore))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 20.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(EtudeError, match="must be above 0 and below 1"):
        hold_out(np.array([0, 0, 1, 1]), range(4), fraction, Context(warn=ignore))


def test_seeds_decide_and_repeat() -> None:
    labels = np.repeat([0, 1, 2], 50)
    groups = range(150)
    same = [hold_out(labels, groups, 0.2, Context(seed=7, warn=ignore))[1].tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != hold_out(labels, groups, 0.2, Context(seed=8, warn=ignore))[1].tolist()
    folds = [k_folds(labels, groups, 3, Context(seed=seed, warn=ignore))[0][1].tolist() for seed in (7, 7, 8)]
    assert folds[0] == folds[1] != folds[2]
    samples = [sample(labels, "10%", Context(seed=seed, warn=ignore)).tolist() for seed in (7, 7, 8)]
    assert samples[0] == samples[1] != samples[2]


@given(label_lists, st.integers(2, 6), st.integers(0, 3))
def test_folds_are_level(labels: np.ndarray, k: int, seed: int) -> None:
    sizes = np.bincount(labels)
    usable = int(sizes[sizes >= 2].sum())
    assume(usable >= k)
    folds = k_folds(labels, range(len(labels)), k, Context(seed=seed, warn=ignore))
    assert len(folds) == k
    validated = np.concatenate([valid for _, valid in folds])
    np.testing.assert_array_equal(np.sort(validated), np.flatnonzero(sizes[labels] >= 2))
    held = np.array([np.bincount(labels[valid], minlength=len(sizes)) for _, valid in folds])
    assert (np.ptp(held, axis=0) <= 1).all()
    assert np.ptp(held.sum(axis=1)) <= 1
    for train, valid in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(len(labels)))
        assert set(labels[train]) == set(labels)


@given(grouped_labels(), st.integers(2, 5))
def test_folds_keep_groups_together(case: tuple[np.ndarray, np.ndarray], k: int) -> None:
    labels, groups = case
    try:
        folds = k_folds(labels, groups.tolist(), k, Context(warn=ignore))
    except EtudeError:
        return
    seen: set[int] = set()
    for train, valid in folds:
        assert not set(groups[train]) & set(groups[valid])
        assert len(train) + len(valid) == len(labels)
        assert not seen & set(valid.tolist())
        seen |= set(valid.tolist())


def test_folds_tell_of_small_classes() -> None:
    told: list[str] = []
    labels = np.array([0] * 10 + [1] * 3 + [2])
    folds = k_folds(labels, range(14), 5, Context(warn=told.append), classes=("big", "small", "single"))
    assert any("'small'" in sentence and "fewer than 5" in sentence for sentence in told)
    assert any("'single'" in sentence and "not validated" in sentence for sentence in told)
    assert all(13 in train for train, _ in folds)


@pytest.mark.parametrize(("k", "told"), [(1, "must be 2 or more"), (5, "only 4 distinct images")])
def test_impossible_folds(k: int, told: str) -> None:
    with pytest.raises(EtudeError, match=told):
        k_folds(np.array([0, 0, 1, 1]), range(4), k, Context(warn=ignore))


@given(label_lists, st.integers(1, 130))
def test_sample_is_exact_and_stratified(labels: np.ndarray, amount: int) -> None:
    sizes = np.bincount(labels)
    assume(amount >= (sizes > 0).sum())
    chosen = sample(labels, str(amount), Context(warn=ignore))
    assert len(chosen) == min(amount, len(labels))
    assert (np.diff(chosen) > 0).all()
    held = np.bincount(labels[chosen], minlength=len(sizes))
    assert (held[sizes > 0] >= 1).all()
    if np.minimum(sizes, 2).sum() <= amount:
        assert (held >= np.minimum(sizes, 2)).all()
    share = min(amount, len(labels)) / len(labels)
    assert (held - share * sizes <= np.maximum(1, 2 - share * sizes) + 1e-9).all()


def test_sample_of_a_tenth() -> None:
    labels = np.repeat([0, 1, 2], [1000, 300, 6])
    assert np.bincount(labels[sample(labels, "10%", Context(warn=ignore))]).tolist() == [99, 30, 2]


def test_sample_of_more_than_everything_is_told() -> None:
    told: list[str] = []
    assert len(sample(np.array([0, 1, 0, 1]), "500", Context(warn=told.append))) == 4
    assert told == ["--sample asks for 500 images, but there are only 4: all of them are used"]
    assert len(sample(np.array([0, 1, 0, 1]), "100%", Context(warn=told.append))) == 4
    assert len(told) == 1


def test_sample_too_small_for_the_classes() -> None:
    with pytest.raises(EtudeError, match="--sample 2 is 2 images, too few for 3 classes; ask for at least 3 images"):
        sample(np.repeat([0, 1, 2], 10), "2", Context(warn=ignore))


@pytest.mark.each("amount", ["", "abc", "-5", "0", "10.5", "1e3", "%", "10 percent", "١٠", "0%", "110%", "-3%"])
def test_amounts_that_cannot_be_understood(amount: str) -> None:
    with pytest.raises(EtudeError, match="--sample is"):
        parse_amount(amount, 1000)


@pytest.mark.parametrize(
    ("amount", "count"), [("10%", 100), ("2.5%", 25), (" 500 ", 500), ("0.01%", 1), ("100%", 1000)]
)
def test_amounts(amount: str, count: int) -> None:
    assert parse_amount(amount, 1000) == count


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_apportioned_counts_add_up_within_bounds(sizes: list[int], data: st.DataObject) -> None:
    available = np.array(sizes)
    total = data.draw(st.integers(0, int(available.sum())))
    shares = available * (total / available.sum())
    counts = allocate(shares, total, np.zeros_like(available), available)
    assert counts.sum() == total
    assert (np.abs(counts - shares) < 1).all()
    least = np.minimum(available, 1)
    if total >= least.sum():
        raised = shares_with_least(available, total, least)
        assert raised.sum() == pytest.approx(total)
        assert (raised >= least - 1e-9).all()


def test_many_images_in_many_classes_split_exactly() -> None:
    labels = np.arange(100_000) % 100
    _, valid = hold_out(labels, range(100_000), 0.2, Context(warn=ignore))
    assert np.bincount(labels[valid]).tolist() == [200] * 100
