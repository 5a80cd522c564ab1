"""The chain: refinement steps in a fixed order, each kept only if its cross-fitted gain is more than noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np

from etude.core.arrays import Arrays, load_arrays, save_arrays
from etude.core.errors import EtudeError, listed
from etude.core.files import read_checked_json, reading, write_checked_json
from etude.core.metrics import Gain, metric_named, paired_bootstrap
from etude.core.predictions import Predictions
from etude.core.tally import FloatArray
from etude.refine.assignment import BalancedAssignment
from etude.refine.base import Refiner, require_classes, require_labelled, with_log_probabilities
from etude.refine.chain_folds import Folds, resampled, weights_of
from etude.refine.chain_rows import COLUMNS, StepRow, table_rows
from etude.refine.cross_fit import FEWEST_ROWS
from etude.refine.rows import known_rows, without_labels
from etude.refine.saved import decoded, encoded

DEFAULT_ORDER = (
    "views",  # first: everything after works on one view
    "knn",  # adds what the features know and the head does not
    "last_layer",  # likewise; a blend with the network's own answer
    "temperature",  # calibrate after averaging, not before
    "vector_scaling",
    "prior",  # needs calibrated probabilities
    "assignment",  # to the class counts of the corrected prior
    "thresholds",  # last: what comes out is for deciding
)
"""The order of steps by name, whatever order they are given in; steps of other names come last, as given."""

_FORMAT = 1


class Chain(Refiner):
    """Fits steps one after the other and keeps those that help; a refiner itself.

    The gain of a step is cross-fitted: for each fold the step is fitted on the other folds, already refined by the
    steps kept so far (which were fitted there too), and scored on the fold. Nothing is scored on labels it has seen.
    A step is kept when the whole interval of its gain is above zero, by the paired bootstrap, or the exact test where
    fewer than 30 images have changed (:func:`etude.core.metrics.paired_bootstrap`); then it is fitted again on all
    labelled images. As steps are chosen by these gains, the gain of the whole chain is a little flattering.

    A step that fits on the target is given, in each fold, the held-out images without their labels as a target. If it
    finds that the target has other class shares than the labelled images (it has a fitted ``prior_`` and did not reject
    it by a test of its own), then labelled images cannot tell its gain as they are: held-out images are drawn to those
    shares for a simulated target, and weighted to them in the score. Such gains are marked; they hold if the shares do.
    Steps after it are fitted and scored at these shares too.

    Args:
        steps: (name, refiner) pairs; they are applied in :data:`DEFAULT_ORDER`.
        metric: by which gains are measured, a name for :func:`etude.core.metrics.metric_named`.
        folds: of the cross-fit.
        seed: of folds and bootstrap.
        draws: of the bootstrap.
        level: of the interval; 0.9 is a one-sided test at 5%.

    >>> from etude.refine.calibration import Temperature
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 300)
    >>> logits = 6.0 * (np.eye(3)[labels] + rng.normal(size=(300, 3)))
    >>> sure = Predictions([str(i) for i in range(300)], ["x", "y", "z"], logits[None], labels=labels)
    >>> chain = Chain([("temperature", Temperature())], metric="log_loss").fit(sure)
    >>> chain.described, chain.rows_[0].gain > 0.1
    ('temperature', True)
    """

    fits_on: ClassVar[frozenset[str]] = frozenset({"labelled"})

    def __init__(
        self,
        steps: Sequence[tuple[str, Refiner]],
        metric: str = "accuracy",
        folds: int = 5,
        seed: int = 0,
        draws: int = 1000,
        level: float = 0.9,
    ) -> None:
        self.steps, self.metric, self.folds = steps, metric, folds
        self.seed, self.draws, self.level = seed, draws, level

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Fit and judge each step; ``rows_`` tells what became of it, ``kept_`` holds those that are applied.

        Raises:
            EtudeError: there are no labels, or a step cannot work on these predictions; it is named.
        """
        if self.folds < 2:
            raise EtudeError(f"a chain cross-fits over 2 folds or more, not {self.folds}")
        require_labelled(labelled, "Chain")
        assert labelled is not None
        if target is not None:
            require_classes(labelled.classes, target, "Chain")
        run = _Progress(self, known_rows(labelled), None if target is None else without_labels(target))
        self.labelled_images_, self.classes_ = len(run.labelled), labelled.classes
        self.rows_ = [run.tried(name, step) for name, step in in_order(self.steps)]
        self.kept_, self.total_ = tuple(run.kept), run.total()
        return self

    def transform(self, predictions: Predictions) -> Predictions:
        """Return the predictions after every kept step."""
        self.require_fitted()
        require_classes(self.classes_, predictions, "Chain")
        if not self.kept_:
            return with_log_probabilities(predictions, predictions.log_probabilities())
        for _, step in self.kept_:
            predictions = step.transform(predictions)
        return predictions

    @property
    def described(self) -> str:
        """The names of the kept steps, in order."""
        self.require_fitted()
        return self.total_.described

    def as_table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the columns and the rows, a step each and one for all, as texts."""
        self.require_fitted()
        return COLUMNS, table_rows([*self.rows_, self.total_])

    def to_json(self) -> dict[str, Any]:
        """Return settings and rows as JSON values."""
        self.require_fitted()
        return {
            "metric": metric_named(self.metric).name,
            "level": self.level,
            "folds": self.folds,
            "seed": self.seed,
            "labelled_images": self.labelled_images_,
            "classes": list(self.classes_),
            "order": list(DEFAULT_ORDER),
            "steps": [row.as_dict() for row in self.rows_],
            "all_kept": self.total_.as_dict(),
        }

    def save(self, path: Path | str) -> None:
        """Write the chain into ``path``, a .json file for reading and applying, and the .npz of its arrays beside it.

        Raises:
            EtudeError: a kept step holds something other than plain values and arrays.
        """
        path = Path(path)
        arrays: Arrays = {}
        kept = [[name, encoded(step, arrays)] for name, step in self.kept_]
        save_arrays(path.with_suffix(".npz"), arrays)
        write_checked_json(path, {"format": _FORMAT, **self.to_json(), "kept": kept})

    @classmethod
    def load(cls, path: Path | str) -> Chain:
        """Read what :meth:`save` wrote: a fitted chain of the kept steps.

        Raises:
            EtudeError: a file is missing, damaged, or of another kind.
        """
        path = Path(path)
        tree = _tree_in(path)
        arrays = load_arrays(path.with_suffix(".npz"), "fitted steps", optional=None)
        with reading(path, "fitted steps", "it was damaged: refine again"):
            kept = [(str(name), cast(Refiner, decoded(step, arrays))) for name, step in tree["kept"]]
            made = cls(kept, tree["metric"], tree["folds"], tree["seed"], level=tree["level"])
            made.rows_, made.total_ = [StepRow(**row) for row in tree["steps"]], StepRow(**tree["all_kept"])
            made.kept_, made.classes_ = tuple(kept), tuple(tree["classes"])
            made.labelled_images_ = tree["labelled_images"]
        return made


class _Progress:
    """How far the chain has come, on all labelled images, on the target and in every fold."""

    def __init__(self, chain: Chain, labelled: Predictions, target: Predictions | None) -> None:
        self.chain, self.labelled, self.target = chain, labelled, target
        self.metric = metric_named(chain.metric)
        self.folds = self.start = Folds.of(labelled, chain.folds, chain.seed)
        self.kept: list[tuple[str, Refiner]] = []
        self.clock = time.perf_counter()

    def tried(self, name: str, step: Refiner) -> StepRow:
        """Judge one step, and apply it everywhere if it helps."""
        start = time.perf_counter()
        try:
            return self._judged(name, step, start)
        except EtudeError as error:
            raise EtudeError(f"step {name!r} of the chain cannot work here: {error}") from None

    def total(self) -> StepRow:
        """Return the row of all kept steps together."""
        words = ", ".join(name for name, _ in self.kept) or "nothing helps beyond noise"
        return self._measured("all kept", words, self.clock, self.start, self.folds)

    def _judged(self, name: str, step: Refiner, start: float) -> StepRow:
        if self.target is None and "target" in step.fits_on:
            return StepRow(name, False, "", 0.0, reason="no target to fit on")
        if len(self.labelled) < FEWEST_ROWS:
            return StepRow(name, False, "", 0.0, reason=f"too few labelled images ({len(self.labelled)}) to tell")
        fitted = step.clone().fit(labelled=self._seen(), target=self.target)
        after_labelled = fitted.transform(self.labelled)
        after_target = None if self.target is None else fitted.transform(self.target)
        if _same(self.labelled, after_labelled) and _same(self.target, after_target):
            unchanged = Gain(0.0, 0.0, 0.0, 0.5)
            return StepRow.measured(name, unchanged, fitted.described, time.perf_counter() - start, weighted=False)
        shares = _shares_found(fitted, len(self.labelled.classes))
        shares = self.folds.shares if shares is None else shares
        if shares is not None and not weights_of(self.folds.labels, shares).any():
            return StepRow(name, False, fitted.described, 0.0, reason="no labelled image is of the target's classes")
        folds = self.folds.after(step, shares, None if self.target is None else len(self.target))
        row = self._measured(name, fitted.described, start, self.folds, folds)
        if row.kept:
            self.labelled, self.target, self.folds = after_labelled, after_target, folds
            self.kept.append((name, fitted))
        return row

    def _seen(self) -> Predictions:
        shares = self.folds.shares
        if shares is None:
            return self.labelled
        return resampled(self.labelled, shares, len(self.labelled), self.chain.seed, "labelled")

    def _measured(self, name: str, described: str, start: float, before: Folds, after: Folds) -> StepRow:
        chain, weights = self.chain, after.weights()
        gain = paired_bootstrap(
            self.metric, before.log_probabilities(), after.log_probabilities(), before.labels,
            chain.draws, chain.seed, level=chain.level, weights=weights,
        )  # fmt: skip
        return StepRow.measured(name, gain, described, time.perf_counter() - start, weighted=weights is not None)


def _tree_in(path: Path) -> dict[str, Any]:
    tree = read_checked_json(path)
    if tree.get("format") != _FORMAT:
        raise EtudeError(f"{path} is no chain of this version of etude: give the .json that etude refine wrote")
    return tree


def in_order(steps: Sequence[tuple[str, Refiner]]) -> list[tuple[str, Refiner]]:
    """Return the steps in :data:`DEFAULT_ORDER`; those of other names stay behind them, as given.

    Raises:
        EtudeError: two steps have the same name.
    """
    names = [name for name, _ in steps]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise EtudeError(f"a chain has several steps named {listed(repeated)}: give each a name of its own")
    place = {name: number for number, name in enumerate(DEFAULT_ORDER)}
    return sorted(steps, key=lambda step: place.get(step[0], len(place)))


def _shares_found(fitted: Refiner, classes: int) -> FloatArray | None:
    """Return the class shares of the target that a fitted step has adapted to, None when there are none."""
    if isinstance(fitted, BalancedAssignment):
        return np.bincount(fitted.labels_, minlength=classes) / len(fitted.labels_)
    prior = getattr(fitted, "prior_", None)
    if not getattr(fitted, "corrects_", True) or not isinstance(prior, np.ndarray):
        return None
    shares = cast(FloatArray, prior)
    return shares if shares.shape == (classes,) else None


def _same(before: Predictions | None, after: Predictions | None) -> bool:
    if before is None or after is None:
        return True
    return bool(np.abs(before.probabilities() - after.probabilities()).max() < 1e-6)
