"""``Stacking``: a second model that learns from the out-of-fold predictions of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from etude.core.errors import EtudeError, listed, nearest
from etude.core.metrics import FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.core.seeds import derive_seed
from etude.refine.base import (
    BoolArray,
    normalised,
    occurring,
    only_among,
    optional_package,
    require_classes,
    with_log_probabilities,
)  # fmt: skip
from etude.refine.cross_fit import choose, fold_numbers, fold_sums, out_of_fold
from etude.refine.ensemble import aligned, average, geometric_mean, labelled_models
from etude.refine.last_layer import Standardised, fit_head
from etude.refine.neighbours.knn import mixed, row_gains

Learner = Literal["logistic", "lightgbm"]

_LOWEST = float(np.log(1e-7))  # lower log probabilities mean nothing more, and would dominate a linear model
_TREES = {"n_estimators": 150, "learning_rate": 0.05, "num_leaves": 15, "min_child_samples": 20}


@dataclass(eq=False, repr=False)
class Stacking:
    """Learns from log p of M models, and further columns, where to trust which of them; scikit-learn style.

    ``"logistic"``: log p = Σ_m log p_m / M + x W + b, normalised, with x the standardised columns: a regression that
    corrects the geometric mean, and stays there without evidence. ``"lightgbm"``: λ p_trees + (1 - λ) p_mean. The stack
    is kept only if its cross-fitted gain over the mean of the models in log loss exceeds two standard errors; else
    ``transform`` returns that mean.

    Args:
        learner: ``"logistic"`` or ``"lightgbm"``, which needs the package of that name.
        strengths, weights: values of scikit-learn's ``C`` (``"logistic"``) and of λ (``"lightgbm"``) to choose from.
        folds: of the cross-fitting.
        seed: of the trees.

    Attributes:
        stacked_: whether the stack beats the mean beyond noise.
        chosen_: strength or λ.
        gain_, error_: the cross-fitted gain in log loss over the mean, and its standard error.

    Source: Wolpert 1992, Stacked generalization; Ting & Witten 1999, Issues in stacked generalization.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(2, size=300)
    >>> ids, turned = [str(row) for row in range(300)], np.eye(2)[1 - labels] + rng.normal(scale=0.5, size=(300, 2))
    >>> models = [Predictions(ids, ["x", "y"], z[None], labels=labels) for z in (turned, np.zeros((300, 2)))]
    >>> stack = Stacking().fit(models)
    >>> stack.stacked_, bool((stack.transform(models).predicted() == labels).mean() > 0.8)
    (True, True)
    """

    learner: Learner = "logistic"
    _: KW_ONLY
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)
    weights: Sequence[float] = (0.25, 0.5, 0.75, 1.0)
    folds: int = 5
    seed: int = 0

    def fit(self, models: Sequence[Predictions], extra: Mapping[str, ArrayLike] | None = None) -> Self:
        """Learn from out-of-fold predictions of M models on the same images; labels may come from any of them.

        ``extra`` holds further columns by name, (N,) numbers in the order of the first model's images, such as image
        size, blur or the distance to the nearest neighbour.
        """
        self._check()
        labelled, labels, known = labelled_models(models, "Stacking")
        columns = _columns(aligned(models), extra)[known]
        self.models_, self.classes_, self.extra_ = len(models), models[0].classes, tuple(extra or ())
        self.stacked_, self.chosen_, self.gain_, self.error_ = False, self._grid[0], 0.0, 0.0
        if len(self.classes_) > 1:
            self._choose(labelled, columns, labels)
        return self

    def transform(self, models: Sequence[Predictions], extra: Mapping[str, ArrayLike] | None = None) -> Predictions:
        """Return the stack's predictions, in one view and without features; the models' mean where it is no better."""
        if not hasattr(self, "stacked_"):
            raise EtudeError("Stacking is not fitted yet: call fit with out-of-fold predictions of the models first")
        if len(models) != self.models_ or tuple(extra or ()) != self.extra_:
            raise EtudeError(
                f"Stacking was fitted on {self.models_} models and the extra columns {listed(self.extra_) or 'none'}, "
                f"and got {len(models)} and {listed(extra or ()) or 'none'}: give the same, in that order"
            )
        require_classes(self.classes_, models[0], "Stacking")
        together, mean = aligned(models), average(models)
        columns = _columns(together, extra)
        if self.stacked_:
            mean = with_log_probabilities(mean, self._answer(self._learner, together, columns, self.chosen_))
        return mean

    @property
    def described(self) -> str:
        """Such as ``"logistic, C = 0.01"``."""
        if not self.stacked_:
            error = f"standard error {self.error_:.4f}"
            return f"mean of the models: stacking gains {self.gain_:+.4f} ({error}), not more than noise"
        return f"{self.learner}, {'C' if self.learner == 'logistic' else 'λ'} = {self.chosen_:g}"

    @property
    def _grid(self) -> tuple[float, ...]:
        return tuple(self.strengths if self.learner == "logistic" else self.weights)

    def _check(self) -> None:
        if self.learner not in get_args(Learner):
            hint = nearest(self.learner, get_args(Learner))
            raise EtudeError(f"the learner of Stacking must be 'logistic' or 'lightgbm', not {self.learner!r}.{hint}")
        if not self._grid or not min(self._grid) > 0 or self.folds < 2 or max(self.weights) > 1:
            raise EtudeError("Stacking needs strengths above 0, values of λ above 0 up to 1, and at least 2 folds")
        if self.learner == "lightgbm":
            _lightgbm()

    def _choose(self, labelled: Sequence[Predictions], columns: FloatArray, labels: IntArray) -> None:
        numbers, mean = fold_numbers(labelled[0], self.folds), average(labelled).probabilities()
        if not numbers.any():  # a single image: nothing to learn from
            return

        def of_others(train: BoolArray, held: BoolArray) -> FloatArray:
            learned = self._learned([one.take(train) for one in labelled], columns[train], labels[train])
            part = [one.take(held) for one in labelled]
            return np.exp(np.stack([self._answer(learned, part, columns[held], one) for one in self._grid], axis=1))

        held_out = out_of_fold(numbers, of_others)
        gains = np.concatenate(
            [row_gains(held_out[:, one], mean, labels, (1.0,), "log_loss") for one in range(len(self._grid))]
        )
        choice = choose(fold_sums(gains, numbers), lambda one: gains[one], numbers)
        self.gain_, self.error_, self.stacked_ = choice.gain, choice.error, choice.best is not None
        if choice.best is not None:
            self.chosen_ = self._grid[choice.best]
            self._learner = self._learned(labelled, columns, labels)

    def _learned(self, models: Sequence[Predictions], columns: FloatArray, labels: IntArray) -> Any:
        """What was learned: a head for each strength with its scaling, or the trees and their classes."""
        if self.learner == "lightgbm":
            if len(np.unique(labels)) < 2:
                return None
            seed = derive_seed(self.seed, "stacking") % 2**31
            trees = _lightgbm().LGBMClassifier(**_TREES, random_state=seed, deterministic=True, verbosity=-1, n_jobs=1)
            return trees.fit(columns, labels)
        scaling = Standardised.of(columns, same_unit=len(models) * len(self.classes_))  # extra columns have other units
        offset = geometric_mean(models).log_probabilities()
        rows, learned = scaling.apply(columns), occurring(labels, offset.shape[1])
        places, among = np.cumsum(learned) - 1, normalised(offset[:, learned])
        known = places[labels]
        heads = {one: fit_head(rows, known, among.shape[1], one, offset=among) for one in self.strengths}
        return scaling, heads, learned

    def _answer(self, learned: Any, models: Sequence[Predictions], columns: FloatArray, candidate: float) -> FloatArray:
        if learned is None:  # trees need two classes
            return average(models).log_probabilities()
        if self.learner == "lightgbm":
            vote, mean = np.zeros((len(columns), len(self.classes_))), average(models).log_probabilities()
            vote[:, np.asarray(learned.classes_, dtype=np.int64)] = learned.predict_proba(columns)
            return only_among(occurring(learned.classes_, len(self.classes_)), mixed(vote, mean, candidate), mean)
        scaling, heads, known = learned
        offset = geometric_mean(models).log_probabilities()
        after = np.zeros(offset.shape)
        after[:, known] = heads[candidate].log_probabilities(scaling.apply(columns), normalised(offset[:, known]))
        return only_among(known, after, offset)


def _lightgbm() -> Any:
    return optional_package("lightgbm", "learner 'lightgbm'", "learner 'logistic'")


def _columns(together: Sequence[Predictions], extra: Mapping[str, ArrayLike] | None) -> FloatArray:
    """Log probabilities of all models and the further columns, (N, M C + columns)."""
    parts = [np.maximum(one.log_probabilities(), _LOWEST) for one in together]
    for name, given in (extra or {}).items():
        values = np.asarray(given)
        if values.shape != (len(together[0]),) or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            raise EtudeError(
                f"the column {name!r} must hold {len(together[0]):,} finite numbers, one an image, "
                f"not {values.dtype} of {values.shape}: leave it out or fill in what is missing"
            )
        parts.append(values.astype(np.float64)[:, None])
    return np.concatenate(parts, axis=1)
