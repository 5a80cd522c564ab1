from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from etude.core.errors import EtudeError
from etude.core.metrics import METRICS, ClassCounts, metric_named, ranks_of
from etude.core.paired import Gain, paired_bootstrap
from etude.core.predictions import Predictions
from etude.refine.tables import read_probabilities

NAMES = (*METRICS, "map@1", "map@3")


def drawn(seed: int, count: int = 200, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    scores = rng.normal(size=(count, classes)).round(1) + 1.2 * np.eye(classes)[labels]
    return scores - np.log(np.exp(scores).sum(1, keepdims=True)), labels


def by_sklearn(name: str, log_p: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    guesses, classes, options = log_p.argmax(1), np.arange(log_p.shape[1]), {"sample_weight": weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match name:
            case "accuracy":
                return sk.accuracy_score(labels, guesses, **options)
            case "balanced_accuracy":
                return sk.balanced_accuracy_score(labels, guesses, **options)
            case "macro_f1":
                return sk.f1_score(labels, guesses, average="macro", **options)
            case "log_loss":
                return sk.log_loss(labels, np.exp(log_p), labels=classes, **options)
            case "kappa":
                return sk.cohen_kappa_score(labels, guesses, labels=classes, weights="quadratic", **options)
            case "auc" if len(classes) == 2:
                return sk.roc_auc_score(labels, log_p[:, 1].round(9), **options)  # the last digits of ties differ
            case "auc":
                one_hot = np.eye(len(classes))[labels]
                return sk.roc_auc_score(one_hot, log_p.round(9), average="macro", **options)
    k = int(name.removeprefix("map@"))
    value = sk.label_ranking_average_precision_score(np.eye(len(classes))[labels], log_p, **options)
    return value if k >= len(classes) else float("nan")


@pytest.mark.each("name", [*METRICS, "map@4"])
@pytest.mark.each("classes", [2, 4])
def test_each_metric_is_scikit_learns(name: str, classes: int):
    for seed in range(5):
        log_p, labels = drawn(seed, classes=classes)
        if name == "map@4":  # scikit-learn ranks ties last, so there may be none
            log_p = log_p + np.random.default_rng(seed).normal(size=log_p.shape) * 1e-6
        assert metric_named(name).value(log_p, labels) == pytest.approx(by_sklearn(name, log_p, labels), abs=1e-9)


@pytest.mark.parametrize("name", list(METRICS))
def test_each_metric_weighs_images_as_scikit_learn_does(name: str):
    log_p, labels = drawn(7)
    weights = np.random.default_rng(8).integers(0, 4, len(labels)).astype(float)
    expected = by_sklearn(name, log_p, labels, weights)
    assert metric_named(name).value(log_p, labels, weights) == pytest.approx(expected, abs=1e-9)


@pytest.mark.each("name", NAMES)
def test_counting_an_image_twice_is_having_it_twice(name: str):
    log_p, labels = drawn(3, count=40)
    counts = np.random.default_rng(0).integers(0, 3, 40)
    rows = np.repeat(np.arange(40), counts)
    metric = metric_named(name)
    assert metric.scorer(log_p, labels)(counts.astype(float)) == pytest.approx(metric.value(log_p[rows], labels[rows]))


@given(st.integers(0, 10_000))
def test_ranks_put_the_first_class_first_on_a_tie(seed: int):
    log_p, labels = drawn(seed, count=20)
    order = np.argsort(-log_p, axis=1, kind="stable")
    expected = [list(row).index(label) + 1 for row, label in zip(order, labels, strict=True)]
    assert ranks_of(log_p, labels).tolist() == expected


def test_map_at_k_by_hand():
    log_p = np.log([[0.5, 0.3, 0.2]] * 3)
    labels = np.array([0, 1, 2])
    assert metric_named("map@1").value(log_p, labels) == pytest.approx(1 / 3)
    assert metric_named("map@2").value(log_p, labels) == pytest.approx((1 + 1 / 2) / 3)
    assert metric_named("MAP@3").value(log_p, labels) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def rounded(seed: int, classes: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are whole parts, such as tenths; zeros are among them. And labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 40)
    truth = rng.dirichlet(np.full(classes, 0.4), 40) + 0.4 * np.eye(classes)[labels]
    return np.array([rng.multinomial(parts, row / row.sum()) for row in truth]), labels


def auc_of_parts(counts: np.ndarray, labels: np.ndarray) -> float:
    """The AUC by scikit-learn, on whole numbers: ties are ties."""
    columns = [1] if counts.shape[1] == 2 else range(counts.shape[1])
    return float(np.mean([sk.roc_auc_score(labels == c, counts[:, c]) for c in columns]))


@pytest.mark.each("classes", [2, 3, 7])
@pytest.mark.each("parts", [2, 10, 1000])
@pytest.mark.each("seed", range(4))
def test_auc_counts_ties_of_rounded_and_zero_probabilities_as_half(classes: int, parts: int, seed: int, tmp_path: Path):
    counts, labels = rounded(seed, classes, parts)
    expected, metric = auc_of_parts(counts, labels), metric_named("auc")
    with np.errstate(divide="ignore"):
        assert metric.value(np.log(counts / parts), labels) == pytest.approx(expected, abs=1e-12)
    ids, names = [str(row) for row in range(len(labels))], [f"c{c}" for c in range(classes)]
    kept = Predictions.from_probabilities(ids, names, counts / parts)
    kept.save(tmp_path / "p.npz")
    lines = [",".join([i, *map(str, row / parts)]) for i, row in zip(ids, counts, strict=True)]
    (tmp_path / "p.csv").write_text("\n".join([",".join(["id", *names]), *lines]), encoding="utf-8")
    other = Predictions.from_probabilities(ids, names, 3 * counts)  # rows are divided by their sum
    twice = Predictions(kept.ids, kept.classes, np.concatenate([kept.logits, other.logits]))
    through = (kept, other, twice, Predictions.load(tmp_path / "p.npz"), read_probabilities(tmp_path / "p.csv"))
    for one in through:
        assert metric.value(one.log_probabilities(), labels) == pytest.approx(expected, abs=1e-12)


def test_auc_ranks_also_what_is_all_but_certain():
    logits = np.array([40.0, 41.0, 42.0, 43.0])
    sure = Predictions(tuple("abcd"), ("no", "yes"), np.stack([-logits, logits], axis=1)[None])
    labels = np.array([0, 0, 1, 1])
    for log_p in (sure.log_probabilities(), sure.log_probabilities()[:, ::-1]):
        assert metric_named("auc").value(log_p, labels if log_p[0, 1] > log_p[0, 0] else 1 - labels) == 1.0


def test_a_resample_of_tied_images_is_scored_as_scikit_learn_does():
    counts, labels = rounded(5, 3, 10)
    weights = np.random.default_rng(0).integers(0, 3, len(labels)).astype(float)
    log_p = Predictions.from_probabilities([str(i) for i in range(40)], list("xyz"), counts).log_probabilities()
    areas = [sk.roc_auc_score(labels == c, counts[:, c], sample_weight=weights) for c in range(3)]
    assert metric_named("auc").value(log_p, labels, weights) == pytest.approx(np.mean(areas), abs=1e-12)


def test_which_metrics_thresholds_help():
    assert {name for name in NAMES if metric_named(name).needs_thresholds} == {"balanced_accuracy", "macro_f1", "kappa"}
    assert {name for name in NAMES if metric_named(name).sign < 0} == {"log_loss"}


def test_a_class_alone_and_a_sure_mistake_have_finite_scores():
    alone = np.zeros((3, 1)), np.zeros(3, int)
    values = {name: metric_named(name).value(*alone) for name in NAMES}
    one = dict.fromkeys(NAMES, 1.0)
    assert values == one | {"auc": 0.5, "log_loss": 0.0}
    sure = np.array([[0.0, -np.inf]])
    assert metric_named("log_loss").value(sure, [1]) == pytest.approx(-np.log(1e-15))
    assert metric_named("auc").value(np.log([[0.5, 0.5], [0.2, 0.8]]), [1, 1]) == 0.5


def test_tallies_of_many_decisions_are_those_of_each():
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 3, 30), rng.integers(0, 3, (5, 30))
    each = [ClassCounts.of(one, labels, 3) for one in guesses]
    fields = ("labelled", "predicted", "hits", "distance")
    stacked = ClassCounts(*(np.stack([getattr(one, name) for one in each]) for name in fields))
    for metric in METRICS.values():
        if metric.of_counts is not None:
            np.testing.assert_allclose(metric.of_counts(stacked), [float(metric.of_counts(one)) for one in each])


@pytest.mark.parametrize(
    ("name", "told"),
    [("acuracy", "Did you mean 'accuracy'"), ("map@0", "map@k with any k"), ("f", "the metrics are accuracy")],
)
def test_an_unknown_metric_is_told_the_nearest(name: str, told: str):
    with pytest.raises(EtudeError, match=told):
        metric_named(name)


def test_names_are_read_as_people_write_them():
    assert metric_named(" Macro-F1 ").name == "macro_f1"
    assert metric_named("balanced accuracy").name == "balanced_accuracy"


@pytest.mark.parametrize(
    ("log_p", "labels", "told"),
    [
        ([[0.0, 0.0]], [-1], "-1 to -1 came"),
        ([[0.0, 0.0]], [2], "between 0 and 1"),
        ([[0.0, np.nan]], [0], "NaN"),
        (np.zeros((0, 2)), np.zeros(0, int), "at least one"),
        ([[0.0, 0.0]], [0, 1], r"\(1, 2\) and \(2,\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(log_p: np.ndarray, labels: np.ndarray, told: str):
    with pytest.raises(EtudeError, match=told):
        metric_named("accuracy").value(log_p, labels)


@pytest.mark.each("name", NAMES)
def test_no_change_is_no_gain(name: str):
    log_p, labels = drawn(1)
    assert paired_bootstrap(metric_named(name), log_p, log_p, labels, draws=20) == Gain(0.0, 0.0, 0.0, 0.5)


@pytest.mark.each("name", NAMES)
def test_a_gain_turns_its_sign_when_the_sides_are_swapped(name: str):
    log_p, labels = drawn(2)
    better = log_p + 0.8 * np.eye(4)[labels]
    better -= np.log(np.exp(better).sum(1, keepdims=True))
    metric = metric_named(name)
    up = paired_bootstrap(metric, log_p, better, labels, draws=100)
    down = paired_bootstrap(metric, better, log_p, labels, draws=100)
    assert up.beyond_noise
    assert not down.beyond_noise
    assert (up.gain, up.low, up.high) == pytest.approx((-down.gain, -down.high, -down.low))
    assert up.gain == pytest.approx(metric.sign * (metric.value(better, labels) - metric.value(log_p, labels)))
    assert up.low <= up.gain <= up.high


def test_the_interval_is_that_of_the_normal_theory():
    rng = np.random.default_rng(0)
    labels = np.zeros(2000, int)
    right = rng.random((2, 2000)) < np.array([[0.8], [0.82]])
    before, after = (np.log(np.where(hit[:, None], [[0.9, 0.1]], [[0.1, 0.9]])) for hit in right)
    change = right[1].astype(float) - right[0]
    error = change.std() / np.sqrt(2000)
    found = paired_bootstrap(metric_named("accuracy"), before, after, labels)
    assert found.high - found.low == pytest.approx(2 * 1.645 * error, rel=0.1)
    wide = paired_bootstrap(metric_named("accuracy"), before, after, labels, level=0.99)
    assert wide.high - wide.low > 1.3 * (found.high - found.low)


def test_draws_depend_on_the_seed_alone():
    log_p, labels = drawn(4, count=50)
    after = drawn(5, count=50)[0]
    runs = [paired_bootstrap(metric_named("macro_f1"), log_p, after, labels, draws=50, seed=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_an_image_without_weight_does_not_count():
    log_p, labels = drawn(6, count=60)
    after = log_p.copy()
    after[30:] = after[30:, ::-1]
    weights = np.repeat([1.0, 0.0], 30)
    found = paired_bootstrap(metric_named("accuracy"), log_p, after, labels, draws=50, weights=weights)
    assert found == Gain(0.0, 0.0, 0.0, 0.5)


@pytest.mark.parametrize(("centre", "spread"), [(0.0, 0.003), (-4.6, 0.05), (0.0, 1.0)])
def test_many_close_scores_are_no_tie(centre: float, spread: float):
    rng = np.random.default_rng(0)
    labels = (rng.random(100_000) < 0.3).astype(np.int64)
    odds = rng.normal(centre, spread, len(labels)) + spread * labels
    log_p = np.stack([-np.logaddexp(0.0, odds), -np.logaddexp(0.0, -odds)], axis=1)
    assert metric_named("auc").value(log_p, labels) == pytest.approx(sk.roc_auc_score(labels, odds), abs=1e-5)
