"""Paired comparisons: intervals that cover the truth, errors that count seeds and images, verdicts over many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.metrics import metric_named
from etude.core.paired import Comparison, Scored, compare, holm, paired_metric, scored, verdicts
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for


def sides(
    rng: np.random.Generator,
    *,
    gain: float = 0.0,
    seeds: int = 5,
    images: int = 200,
    by_seed: float = 0.0,
    by_image: float = 0.0,
    rest: float = 1.0,
    shared: bool = True,
) -> tuple[list[Scored], list[Scored]]:
    """Two sides whose true difference is known: gain + seed + image + rest."""
    pool = images if shared else images * seeds
    effect = rng.normal(0, by_image, pool) if by_image else np.zeros(pool)
    before: list[Scored] = []
    after: list[Scored] = []
    for seed in range(seeds):
        rows = np.arange(images) if shared else np.arange(images) + seed * images
        ids = tuple(f"i{row}" for row in rows)
        base = rng.normal(0, 1, images)
        moved = gain + rng.normal(0, by_seed) + effect[rows] + rng.normal(0, rest, images)
        before.append(Scored(ids, base))
        after.append(Scored(ids, base + moved))
    return before, after


SOURCES = {
    "images alone": {},
    "seeds": {"by_seed": 0.3},
    "shared images": {"by_image": 1.0, "rest": 0.3},
    "images of their own": {"by_image": 1.0, "rest": 0.3, "shared": False},
    "all together": {"by_seed": 0.1, "by_image": 0.7},
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_intervals_cover_the_truth(source):
    """Of 400 intervals at 95%, fewer than 91.5% covering has a chance of 1 in 1,000."""
    covered = 0
    for number in range(400):
        found = compare(*sides(rng_for(number, "paired"), gain=0.5, **source))
        low, high = found.interval() or (0.0, 0.0)
        covered += low <= 0.5 <= high
    assert covered >= 366


def test_one_more_variance_than_seeds_alone_know():
    """Where all seeds validate on the same images, the seeds agree on an error that images alone reveal."""
    before, after = sides(rng_for(0, "paired"), by_image=1.0, rest=0.01, images=100)
    means = [float((new.values - old.values).mean()) for old, new in zip(before, after, strict=True)]
    by_seeds_alone = np.std(means, ddof=1) / np.sqrt(len(means))
    assert compare(before, after).error > 10 * by_seeds_alone


def test_seeds_that_agree_by_chance_are_not_believed():
    """Each seed gains just one image of twenty: between the seeds nothing differs, within them something does."""
    ids = tuple(map(str, range(20)))
    before = [Scored(ids, np.zeros(20)) for _ in range(3)]
    after = [Scored(ids, np.eye(20)[seed]) for seed in range(3)]
    found = compare(before, after)
    assert found.gain == pytest.approx(0.05)
    assert found.error > 0.02
    assert verdicts([found])[0][1] == "cannot tell"


def test_of_the_same_twice_nothing_can_be_told():
    before, _ = sides(rng_for(0, "paired"))
    found = compare(before, before)
    assert (found.gain, found.error, found.p, found.interval()) == (0.0, 0.0, 1.0, None)
    assert verdicts([found]) == [(1.0, "cannot tell")]
    assert (found.power(0.01), found.detectable()) == (0.0, None)


def test_images_are_paired_by_their_ids():
    rng = rng_for(0, "paired")
    before, after = sides(rng, gain=0.2)
    turned = [Scored(one.ids[::-1], one.values[::-1]) for one in after]
    assert compare(before, turned) == compare(before, after)


@given(st.floats(-2, 2), st.floats(0.1, 10))
def test_gain_and_error_follow_shift_and_scale(shift: float, scale: float):
    before, after = sides(rng_for(1, "paired"), by_seed=0.2)
    first = compare(before, after)
    moved = [
        Scored(old.ids, old.values + scale * (new.values - old.values) + shift)
        for old, new in zip(before, after, strict=True)
    ]
    second = compare(before, moved)
    assert second.gain == pytest.approx(scale * first.gain + shift)
    assert second.error == pytest.approx(scale * first.error)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda before, after: (before[:1], after[:1]), "2 seeds or more"),
        (lambda before, after: (before, after[:3]), "5 and 3"),
        (lambda before, after: (before, [Scored(("x", *one.ids[1:]), one.values) for one in after]), "'i0', 'x'"),
    ],
)
def test_what_cannot_be_paired_is_refused(change, told: str):
    with pytest.raises(EtudeError, match=told):
        compare(*change(*sides(rng_for(0, "paired"), shared=True)))


def test_scores_of_images_by_metric():
    predictions = Predictions.from_probabilities(["a", "b"], ["x", "y"], [[0.9, 0.1], [0.6, 0.4]], np.array([0, 1]))
    assert scored(predictions, metric_named("accuracy")).values.tolist() == [1.0, 0.0]
    np.testing.assert_allclose(scored(predictions, metric_named("log_loss")).values, np.log([0.9, 0.4]), rtol=1e-6)
    with pytest.raises(EtudeError, match="'auc' is no mean over images"):
        paired_metric("auc")
    assert paired_metric("map@3").name == "map@3"
    unlabelled = Predictions(("a",), ("x", "y"), np.zeros((1, 1, 2)), labels=np.array([-1]))
    with pytest.raises(EtudeError, match="lack some"):
        scored(unlabelled, metric_named("accuracy"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_plain_p_values_and_bonferronis(p: list[float]):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1.0, np.array(p) * len(p)) + 1e-12).all()
    assert adjusted.min() == pytest.approx(min(1.0, len(p) * min(p)))
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_twenty_placebos_are_seldom_believed():
    """Uncorrected, one of twenty is called an effect in four families of ten; corrected, in one of twenty at most."""
    wrong = plain = 0
    for number in range(60):
        found = [compare(*sides(rng_for(number, "family", k), by_seed=0.1, images=60)) for k in range(20)]
        wrong += any(verdict != "cannot tell" for _, verdict in verdicts(found))
        plain += any(one.p <= 0.05 for one in found)
    assert wrong <= 9
    assert plain >= 15


def test_verdicts_have_the_sign_of_the_gain():
    clear = [Comparison(gain, 0.001, 4.0, 5, 800) for gain in (0.05, -0.05)]
    assert [verdict for _, verdict in verdicts(clear)] == ["helps", "hurts"]


def test_power_is_kept():
    """A true gain at the size that is said to be found four times of five is found about that often."""
    found, stated = 0, []
    for number in range(300):
        one = compare(*sides(rng_for(number, "power"), gain=0.35, by_seed=0.15, images=400))
        found += verdicts([one])[0][1] == "helps"
        stated.append(one.power(0.35))
    assert found / 300 == pytest.approx(np.mean(stated), abs=0.1)
    assert 0.5 < np.mean(stated) < 1.0


@pytest.mark.parametrize("images", [24, 40])
def test_all_images_won_by_all_seeds_is_a_gain(images: int):
    ids = tuple(f"i{row}" for row in range(images))
    before, after = ([Scored(ids, np.full(images, value))] * 3 for value in (0.0, 1.0))
    found = compare(before, after)
    assert found.p < 0.05
    assert verdicts([found])[0][1] == "helps"
