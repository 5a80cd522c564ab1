"""Few changed images: a gain counts by the exact test, in whatever metric, and no seed decides."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from etude.core.metrics import METRICS, metric_named
from etude.core.paired import FEW, Gain, Scored, compare, paired_bootstrap, sign_flips, verdicts
from etude.core.seeds import rng_for
from etude.refine.cross_fit import exceeds_noise


def changed(wins: int, losses: int, images: int = 200, metric: str = "accuracy", **options) -> Gain:
    """Return the gain of predictions that are mended on ``wins`` images and spoilt on ``losses``."""
    labels = np.arange(images) % 2
    right = np.log(np.where(np.eye(2)[labels] > 0, 0.8, 0.2))
    before, after = right.copy(), right.copy()
    before[:wins] = right[:wins, ::-1]
    after[wins : wins + losses] = right[wins : wins + losses, ::-1]
    return paired_bootstrap(metric_named(metric), before, after, labels, draws=50, **options)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_few_wins_and_losses_pass_as_mcnemars_exact_test_says(level: float):
    for wins, losses in product(range(FEW), range(FEW)):
        if wins + losses >= FEW:
            continue
        found = sign_flips([1.0] * wins + [-1.0] * losses, level)
        exact = binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
        assert found.p == pytest.approx(exact, abs=1e-12), (wins, losses)
        assert (found.low > 0) == (exact <= (1 - level) / 2), (wins, losses)
        assert found.low <= wins - losses <= found.high


@pytest.mark.parametrize(
    ("wins", "losses", "passes"), [(3, 0, False), (4, 0, False), (5, 0, True), (7, 1, True), (6, 1, False)]
)
def test_no_seed_decides_about_few(wins: int, losses: int, passes: bool):
    """Drawn, 3 to 0 passed with every other seed."""
    found = [changed(wins, losses, seed=seed) for seed in range(6)]
    assert {one.beyond_noise for one in found} == {passes}
    assert len(set(found)) == 1
    assert found[0].gain == pytest.approx((wins - losses) / 200)


def test_at_95_percent_a_sixth_win_is_needed():
    assert not changed(5, 0, level=0.95).beyond_noise
    assert changed(6, 0, level=0.95).beyond_noise


@pytest.mark.parametrize("metric", [*METRICS, "map@2"])
def test_every_metric_has_the_rule(metric: str):
    assert not changed(4, 0, metric=metric).beyond_noise
    assert changed(12, 0, metric=metric).beyond_noise
    assert not changed(0, 12, metric=metric).beyond_noise


def test_unequal_shares_agree_with_all_flips_counted():
    rng = rng_for(0, "flips")
    for _ in range(20):
        shares = rng.normal(0.3, 1.0, 9)
        sums = np.array([np.dot(signs, np.abs(shares)) for signs in product((-1, 1), repeat=9)])
        found = sign_flips(shares, 0.9)
        assert found.p == pytest.approx((sums >= shares.sum() - 1e-9).mean(), abs=2 / 2**9)
        assert (found.low > 0) == (found.p <= 0.05)


@pytest.mark.each(
    ("metric", "images", "share"),
    [
        *((metric, 20, 1.0) for metric in ("accuracy", "log_loss", "macro_f1", "balanced_accuracy", "auc", "kappa")),
        ("macro_f1", 150, 0.1),
        ("accuracy", 400, 0.3),
        ("log_loss", 100, 1.0),
    ],
)
def test_a_step_that_does_nothing_passes_in_a_twentieth_of_cases(metric: str, images: int, share: float):
    """Of 200, more than 22 at a level of 5% have a chance of 1 in 7,000: few changed images and many."""
    passed = 0
    for number in range(200):
        rng = rng_for(number, "null")
        labels = np.arange(images) % 3
        sides = 2.0 * np.eye(3)[labels] + rng.normal(0, 1.5, (2, images, 3))
        same = rng.random(images) >= share
        sides[1][same] = sides[0][same]
        found = paired_bootstrap(metric_named(metric), sides[0], sides[1], labels, draws=100, seed=number)
        passed += found.beyond_noise
    assert passed <= 22


def test_weights_are_taken_into_account():
    weights = np.ones(200)
    weights[0] = 50.0
    assert changed(6, 0).beyond_noise
    assert not changed(1, 0, weights=weights).beyond_noise


def test_refiners_with_a_rule_of_their_own_count_few_alike():
    """4 to 0 of 100 lies above two standard errors, and comes by chance in 6% of cases."""
    assert not exceeds_noise([1.0] * 4 + [0.0] * 96)
    assert exceeds_noise([1.0] * 6 + [0.0] * 94)
    assert not exceeds_noise([-1.0] * 6 + [0.0] * 94)


def test_an_ablation_needs_as_many_changed_images():
    """Two images that every seed wins: no seed and no image differs, and yet two images say nothing."""
    ids = ("a", "b")
    found = compare([Scored(ids, np.zeros(2))] * 3, [Scored(ids, np.ones(2))] * 3)
    low, high = found.interval()
    assert low <= 0 < found.gain < high
    assert found.p == pytest.approx(0.5)
    assert verdicts([found])[0][1] == "cannot tell"
    ids = tuple(map(str, range(40)))
    won = np.where(np.arange(40) < 12, 1.0, 0.0)
    assert verdicts([compare([Scored(ids, np.zeros(40))] * 3, [Scored(ids, won)] * 3)])[0][1] == "helps"


def test_placebos_of_an_ablation_on_few_images_are_seldom_believed():
    wrong = 0
    for number in range(400):
        rng = rng_for(number, "few")
        sides: list[list[Scored]] = [[], []]
        for _ in range(3):
            base = rng.random(16) < 0.7
            for side in sides:
                flip = rng.random(16) < 0.08
                side.append(Scored(tuple(map(str, range(16))), (base ^ flip).astype(float)))
        wrong += compare(*sides).p <= 0.05
    assert wrong <= 36
