from __future__ import annotations

import json
from typing import ClassVar, Self

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.core.files import read_checked_json, write_json
from etude.core.metrics import metric_named
from etude.core.predictions import Predictions
from etude.refine.base import Refiner, require_labelled, with_log_probabilities
from etude.refine.calibration import Temperature
from etude.refine.chain import DEFAULT_ORDER, Chain, in_order
from etude.refine.chain_steps import standard_steps
from etude.refine.thresholds import Thresholds


def model_output(
    seed: int,
    count: int,
    shares: list[float] | None = None,
    *,
    sure: float = 1.0,
    views: int = 1,
    features: bool = False,
) -> Predictions:
    """Calibrated predictions (under equal shares) of a model on images of these class shares, sharpened by ``sure``."""
    rng = np.random.default_rng(seed)
    shares = shares or [1 / 3] * 3
    labels = rng.choice(3, count, p=shares)
    seen = np.eye(3)[labels] + rng.normal(scale=0.7, size=(views, count, 3))
    return Predictions(
        [f"{seed}-{i}" for i in range(count)],
        ["x", "y", "z"],
        seen / 0.49 * sure,
        seen[0].astype(np.float32) if features else None,
        labels,
    )


class Told(Refiner):
    """Knows the labels of the images that it was fitted on by heart, and nothing of others."""

    fits_on: ClassVar[frozenset[str]] = frozenset({"labelled"})

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        require_labelled(labelled, "Told")
        assert labelled is not None
        assert labelled.labels is not None
        self.known_ = dict(zip(labelled.ids, labelled.labels.tolist(), strict=True))
        self.classes_ = labelled.classes
        return self

    def _refined(self, predictions: Predictions) -> np.ndarray:
        log_p = predictions.log_probabilities()
        for row, name in enumerate(predictions.ids):
            if name in self.known_:
                log_p[row, self.known_[name]] += 50
        return log_p

    def _described(self) -> str:
        return "labels by heart"


class Halved(Refiner):
    """Divides logits by two, or by the number it is given."""

    fits_on: ClassVar[frozenset[str]] = frozenset({"labelled"})

    def __init__(self, by: float = 2.0) -> None:
        self.by = by

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        assert labelled is not None
        self.classes_ = labelled.classes
        return self

    def _refined(self, predictions: Predictions) -> np.ndarray:
        return predictions.log_probabilities() / self.by

    def _described(self) -> str:
        return f"divided by {self.by}"


def accuracy(predictions: Predictions) -> float:
    return float((predictions.predicted() == predictions.labels).mean())


def test_what_learns_labels_by_heart_gains_nothing():
    chain = Chain([("told", Told())]).fit(model_output(0, 200))
    assert [(row.name, row.kept, row.gain) for row in chain.rows_] == [("told", False, 0.0)]
    assert chain.kept_ == ()
    assert chain.described == "nothing helps beyond noise"
    other = model_output(1, 50)
    np.testing.assert_allclose(chain.transform(other).probabilities(), other.probabilities(), atol=1e-6)


def test_a_step_that_follows_does_not_see_held_out_labels_through_the_one_before():
    chain = Chain([("told", Told()), ("temperature", Temperature())], metric="log_loss")
    rows = chain.fit(model_output(0, 300, sure=3.0)).rows_
    assert {row.name: row.kept for row in rows} == {"told": False, "temperature": True}


def test_what_helps_is_kept_and_what_harms_is_dropped():
    labelled = model_output(0, 400, sure=2.0)
    chain = Chain([("halved", Halved()), ("more", Halved(4.0))], metric="log_loss").fit(labelled)
    assert [row.kept for row in chain.rows_] == [True, False]
    first, second = chain.rows_
    assert first.gain is not None
    assert second.gain is not None
    assert first.gain > 0 > second.gain
    halved = with_log_probabilities(labelled, labelled.log_probabilities() / 2)
    loss = metric_named("log_loss")
    expected = [loss.value(one.log_probabilities(), one.labels) for one in (labelled, halved)]
    assert first.gain == pytest.approx(expected[0] - expected[1], abs=1e-5)
    assert chain.total_.gain == pytest.approx(first.gain)
    np.testing.assert_allclose(chain.transform(labelled).probabilities(), halved.probabilities(), atol=1e-6)


def test_a_gain_within_noise_is_none():
    chain = Chain([("halved", Halved(1.03))], metric="log_loss").fit(model_output(0, 60))
    assert not chain.rows_[0].kept


def test_steps_have_one_order_whatever_order_they_come_in():
    steps = [(name, Halved()) for name in ("mine", *reversed(DEFAULT_ORDER), "yours")]
    assert [name for name, _ in in_order(steps)] == [*DEFAULT_ORDER, "mine", "yours"]
    with pytest.raises(EtudeError, match="several steps named 'knn'"):
        in_order([("knn", Halved()), ("knn", Halved())])


def test_the_result_does_not_depend_on_the_order_of_rows():
    labelled = model_output(0, 150, sure=2.0)
    turned = labelled.take(np.random.default_rng(0).permutation(150))
    steps = [("temperature", Temperature()), ("thresholds", Thresholds(draws=100))]
    one, other = (Chain(steps, metric="log_loss", draws=100).fit(given) for given in (labelled, turned))
    assert [row.gain for row in one.rows_] == pytest.approx([row.gain for row in other.rows_])


def test_a_shift_of_the_target_is_found_and_its_gain_told_at_its_shares():
    labelled, target = model_output(0, 600), model_output(1, 500, [0.9, 0.05, 0.05])
    steps = standard_steps(labelled, ["prior"], prior="estimate")
    chain = Chain(steps).fit(labelled, target)
    (row,) = chain.rows_
    assert row.kept
    assert row.at_target_prior
    gained = accuracy(chain.transform(target)) - accuracy(target)
    assert gained > 0.02
    assert row.gain == pytest.approx(gained, abs=0.04)
    assert "*" in chain.as_table()[1][0][2]


def test_where_nothing_shifted_nothing_is_corrected():
    labelled, target = model_output(0, 400), model_output(1, 400)
    chain = Chain(standard_steps(labelled, ["prior"], prior="estimate")).fit(labelled, target)
    assert not chain.rows_[0].kept
    assert "no shift worth correcting" in chain.rows_[0].described


def test_known_counts_are_assigned():
    labelled, target = model_output(0, 600, [0.8, 0.1, 0.1]), model_output(1, 300)
    skewed = [
        with_log_probabilities(one, one.log_probabilities() + np.log([0.8, 0.1, 0.1])) for one in (labelled, target)
    ]
    chain = Chain(standard_steps(labelled, ["assignment"], prior="uniform")).fit(*skewed)
    assert [row.kept for row in chain.rows_] == [True]
    refined = chain.transform(skewed[1])
    assert np.bincount(refined.predicted()).tolist() == [100, 100, 100]
    assert accuracy(refined) > accuracy(skewed[1])


def test_steps_after_a_shift_work_at_the_shares_of_the_target():
    seen: list[np.ndarray] = []

    class Watching(Halved):
        def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
            assert labelled is not None
            seen.append(np.bincount(labelled.labels, minlength=3) / len(labelled))  # type: ignore[arg-type]
            return super().fit(labelled, target)

    labelled, target = model_output(0, 600), model_output(1, 500, [0.9, 0.05, 0.05])
    steps = [*standard_steps(labelled, ["prior"], prior="estimate"), ("watching", Watching())]
    chain = Chain(steps).fit(labelled, target)
    assert [name for name, _ in chain.kept_] == ["prior"]
    assert len(seen) == 1 + 5  # on all labelled images, then on each fold
    assert min(shares[0] for shares in seen) > 0.75
    assert chain.rows_[1].at_target_prior


def test_steps_without_their_target_are_told():
    labelled = model_output(0, 100)
    chain = Chain(standard_steps(labelled, ["prior", "temperature"], prior="estimate")).fit(labelled)
    assert chain.rows_[1].reason == "no target to fit on"
    assert chain.as_table()[1][1] == ("prior", "no", "", "", "0", "no target to fit on")


def test_too_few_images_tell_nothing():
    chain = Chain([("halved", Halved())], metric="log_loss").fit(model_output(0, 9, sure=50.0))
    assert chain.rows_[0].reason == "too few labelled images (9) to tell"


def test_a_step_that_cannot_work_is_named():
    class Broken(Halved):
        def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
            raise EtudeError("it is cold")

    with pytest.raises(EtudeError, match="step 'snow' of the chain cannot work here: it is cold"):
        Chain([("snow", Broken())]).fit(model_output(0, 50))
    with pytest.raises(EtudeError, match="2 folds or more, not 1"):
        Chain([], folds=1).fit(model_output(0, 50))


def whole(metric: str = "log_loss") -> tuple[Chain, Predictions]:
    labelled = model_output(0, 400, sure=0.5, views=2, features=True)
    target = model_output(1, 300, [0.8, 0.1, 0.1], sure=0.5, views=2, features=True)
    steps = standard_steps(labelled, metric=metric, prior="estimate")
    assert [name for name, _ in steps] == ["views", "knn", "temperature", "vector_scaling", "prior"]
    return Chain(steps, metric, draws=200).fit(labelled, target), target


def test_a_saved_chain_does_the_same(tmp_path):
    chain, target = whole()
    assert [name for name, _ in chain.kept_] == ["views", "temperature", "prior"]
    chain.save(tmp_path / "refine.json")
    again = Chain.load(tmp_path / "refine.json")
    np.testing.assert_array_equal(again.transform(target).logits, chain.transform(target).logits)
    assert again.to_json() == chain.to_json()
    assert again.as_table() == chain.as_table()
    with np.load(tmp_path / "refine.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays)


def test_what_is_told_as_json_has_a_row_for_each_step():
    chain, _ = whole()
    told = json.loads(json.dumps(chain.to_json()))
    assert [row["name"] for row in told["steps"]] == ["views", "knn", "temperature", "vector_scaling", "prior"]
    assert told["metric"] == "log_loss"
    assert told["all_kept"]["gain"] > 0
    assert told["order"] == list(DEFAULT_ORDER)
    assert all(row["seconds"] >= 0 for row in told["steps"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: "{}", "no chain of this version"),
        (lambda text: text.replace('"etude.refine.', '"os.path.'), "did not come from etude"),
        (lambda text: text.replace("calibration:Temperature", "calibration:Nothing"), "this version of etude has no"),
        (lambda text: text.replace("calibration:Temperature", "calibration:log_loss"), "which is no class"),
        (lambda text: text.replace('"kept"', '"lost"'), "damaged"),
        (lambda text: text[:-10], "not valid JSON"),
    ],
)
def test_a_file_that_is_no_chain_is_refused(tmp_path, change, sentence):
    path = tmp_path / "refine.json"
    Chain([("temperature", Temperature())], metric="log_loss").fit(model_output(0, 200, sure=3.0)).save(path)
    write_json(path, read_checked_json(path))  # whoever changes a file can leave its checksum out
    path.write_text(change(path.read_text()))
    with pytest.raises(EtudeError, match=sentence):
        Chain.load(path)


def test_a_chain_without_its_numbers_is_refused(tmp_path):
    path = tmp_path / "refine.json"
    Chain([]).fit(model_output(0, 20)).save(path)
    (tmp_path / "refine.npz").unlink()
    with pytest.raises(EtudeError, match=r"refine.npz does not exist"):
        Chain.load(path)


def test_a_step_of_a_stranger_cannot_be_saved(tmp_path):
    chain = Chain([("halved", Halved())], metric="log_loss").fit(model_output(0, 400, sure=2.0))
    with pytest.raises(EtudeError, match="Halved cannot be saved"):
        chain.save(tmp_path / "refine.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["knnn"], "Did you mean 'knn'"),
        (["knn"], "step 'knn' needs the features"),
        (["last_layer"], "--train FILE.npz"),
        (["assignment"], "--prior uniform"),
    ],
)
def test_steps_that_cannot_be_made_are_told(names, sentence):
    with pytest.raises(EtudeError, match=sentence):
        standard_steps(model_output(0, 20), names)


def test_training_images_give_a_last_layer():
    train, labelled, target = (model_output(seed, 200, features=True) for seed in range(3))
    steps = standard_steps(labelled, train=train)
    assert [name for name, _ in steps] == ["knn", "last_layer", "temperature", "vector_scaling"]
    names = [row.name for row in Chain([steps[1]], draws=50, folds=2).fit(labelled, target).rows_]
    assert names == ["last_layer"]
