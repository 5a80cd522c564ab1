"""The chain: refinement steps in a fixed order, each kept only if its cross-fitted gain is more than noise."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from etude.core.arrays import Arrays, load_arrays, save_arrays
from etude.core.context import Context
from etude.core.errors import EtudeError, listed
from etude.core.files import read_checked_json, reading, write_checked_json
from etude.core.metrics import FloatArray, IntArray, metric_named
from etude.core.paired import paired_bootstrap
from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine.base import (
    Refiner,
    known_rows,
    labels_of,
    require_classes,
    require_labelled,
    without_labels,
)
from etude.refine.cross_fit import FEWEST_ROWS, fold_numbers
from etude.refine.prior.assignment import BalancedAssignment


@dataclass(frozen=True, slots=True)
class StepRow:
    """What became of one step."""

    name: str
    kept: bool
    described: str  # what was fitted on all labelled images
    seconds: float  # of fitting, on all labelled images and on every fold
    gain: float | None = None  # cross-fitted, a core.paired.Gain like the next three; None: not measured
    low: float | None = None
    high: float | None = None
    probability: float | None = None
    at_target_prior: bool = False  # whether labelled images were weighted to the target's class shares to measure it
    reason: str = ""  # why a step that was not measured is left out

    def cells(self) -> tuple[str, ...]:
        """Return texts for :data:`COLUMNS`; a star marks gains at the target's class shares."""
        fitted = ": ".join(text for text in (self.described, self.reason) if text)
        gain = interval = ""
        if self.gain is not None and self.low is not None and self.high is not None:
            gain = f"{self.gain + 0.0:+.4f}{'*' if self.at_target_prior else ''}"
            interval = f"{self.low + 0.0:+.4f} {self.high + 0.0:+.4f}"
        return self.name, "yes" if self.kept else "no", gain, interval, f"{self.seconds:.2g}", fitted


COLUMNS = ("step", "kept", "gain", "interval", "s", "fitted")
_LARGEST_TARGET = 20_000  # images of a simulated target; more sharpen nothing


@dataclass(frozen=True)
class Folds:
    """All folds of the labelled images, refined by the steps kept so far."""

    parts: tuple[tuple[Predictions, Predictions], ...]  # of each fold: the other folds, to fit steps on, and its own
    seed: int
    shares: FloatArray | None = None  # (C,) of the classes in the target, once a kept step has adapted to them

    @property
    def labels(self) -> IntArray:
        """The labels of all held-out images."""
        return np.concatenate([labels_of(held) for _, held in self.parts])

    def log_probabilities(self) -> FloatArray:
        """Return the held-out log probabilities, in the order of :attr:`labels`."""
        return np.concatenate([held.log_probabilities() for _, held in self.parts])

    def drawn(self, predictions: Predictions, shares: FloatArray | None, size: int, name: str) -> Predictions:
        """Return ``size`` rows drawn with replacement so that classes have ``shares``, as far as they occur."""
        if shares is None or not (weights := weights_of(labels_of(predictions), shares)).any():
            return predictions
        rows = rng_for(self.seed, f"chain {name}").choice(len(predictions), size, p=weights / weights.sum())
        features = predictions.features
        return replace(
            predictions,
            ids=tuple(f"{number}/{predictions.ids[row]}" for number, row in enumerate(rows.tolist())),
            logits=predictions.logits[:, rows],
            features=None if features is None else features[rows],
            labels=labels_of(predictions)[rows],
        )

    def after(self, step: Refiner, shares: FloatArray | None, target_size: int | None) -> Folds:
        """Return the folds refined by ``step``, fitted anew for each on the others."""
        done: list[tuple[Predictions, Predictions]] = []
        for fold, (train, held) in enumerate(self.parts):
            labelled, target = self.drawn(train, self.shares, len(train), f"train {fold}"), None
            if "target" in step.fits_on and target_size is not None:
                target = without_labels(self.drawn(held, shares, min(target_size, _LARGEST_TARGET), f"target {fold}"))
            fitted = step.clone().fit(labelled=labelled, target=target)
            done.append((fitted.transform(train), fitted.transform(held)))
        return replace(self, parts=tuple(done), shares=shares)


def weights_of(labels: IntArray, shares: FloatArray) -> FloatArray:
    """Return weights (N,) under which the labelled classes have ``shares`` (C,), as far as they occur."""
    counts = np.bincount(labels, minlength=len(shares))
    return (shares / np.maximum(counts, 1))[labels]


# Objects of these rooms only are made again, attribute by attribute; a file cannot name anything else.
_ROOMS = ("etude.refine.", "etude.core.")
_MOVED = {  # as files of earlier versions name them
    "etude.core.metrics:Gain": "etude.core.paired:Gain",
    "etude.refine.assignment:BalancedAssignment": "etude.refine.prior.assignment:BalancedAssignment",
    "etude.refine.distances:UnitRows": "etude.refine.neighbours.index:UnitRows",
    "etude.refine.head:Head": "etude.refine.last_layer:Head",
    "etude.refine.knn:KNN": "etude.refine.neighbours.knn:KNN",
    "etude.refine.neighbours:NeighbourIndex": "etude.refine.neighbours.index:NeighbourIndex",
    "etude.refine.prior_correction:PriorCorrection": "etude.refine.prior.correction:PriorCorrection",
}


def encoded(value: Any, arrays: Arrays) -> Any:
    """Return ``value`` as JSON; its arrays are added to ``arrays``, and stand in the JSON by their names."""
    anything: Any = value  # what isinstance would narrow to a container of unknown types
    if isinstance(value, np.generic):
        return encoded(anything.item(), arrays)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray):
        if anything.dtype.kind not in "biufU":
            raise EtudeError(f"an array of type {anything.dtype} cannot be saved with a refiner: give numbers or texts")
        name = next((known for known, array in arrays.items() if array is value), f"a{len(arrays)}")
        arrays[name] = anything
        return {"array": name}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [encoded(item, arrays) for item in anything]}
    if isinstance(value, dict):
        return {"dict": [[encoded(key, arrays), encoded(item, arrays)] for key, item in anything.items()]}
    kind = cast("type[Any]", type(anything))
    name = f"{kind.__module__}:{kind.__qualname__}"
    if not name.startswith(_ROOMS):
        raise EtudeError(f"{name} cannot be saved with a refiner: fit with an option that keeps plain arrays")
    names: list[str] = [*(vars(anything) if hasattr(anything, "__dict__") else kind.__slots__)]
    return {"object": name, "parts": [[key, encoded(getattr(anything, key), arrays)] for key in names]}


def decoded(tree: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """Return what :func:`encoded` was given."""
    if not isinstance(tree, dict):
        return tree
    (kind, content), *rest = cast("dict[str, Any]", tree).items()
    makers: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "array": lambda name: arrays[name],
        "tuple": lambda items: tuple(decoded(item, arrays) for item in items),
        "list": lambda items: [decoded(item, arrays) for item in items],
        "dict": lambda items: {decoded(key, arrays): decoded(item, arrays) for key, item in items},
        "object": lambda name: _made(name, {key: decoded(item, arrays) for key, item in rest[0][1]}),
    }
    if kind not in makers:
        raise EtudeError(f"{kind!r} is no part of a saved refiner: the file was damaged or is another kind of file")
    return makers[kind](content)


def _made(name: str, parts: dict[str, Any]) -> Any:
    module, _, qualified = _MOVED.get(name, name).partition(":")
    if not name.startswith(_ROOMS) or not qualified.isidentifier():
        raise EtudeError(f"a saved refiner may not hold an object of {name!r}: the file did not come from etude")
    try:
        kind: Any = getattr(import_module(module), qualified)
    except (ImportError, AttributeError):
        raise EtudeError(f"this version of etude has no {name!r}: apply the file with the one that wrote it") from None
    if not inspect.isclass(kind):
        raise EtudeError(f"a saved refiner may not hold {name!r}, which is no class: the file did not come from etude")
    made = object.__new__(kind)
    for key, value in parts.items():
        object.__setattr__(made, key, value)  # a frozen dataclass lets nobody else
    return made


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
"""The order of steps by name; steps of other names come last, as given."""

_FORMAT = 1


@dataclass(eq=False, repr=False)
class Chain(Refiner):
    """Fits steps one after the other and keeps those that help; a refiner itself.

    The gain of a step is cross-fitted: for each fold the step is fitted on the other folds, already refined by the
    steps kept so far (which were fitted there too), and scored on the fold. A step is kept when the whole interval of
    its gain is above zero (:func:`etude.core.paired.paired_bootstrap`); then it is fitted again on all labelled images.
    As steps are chosen by these gains, the gain of the whole chain is a little flattering.

    A step that fits on the target is given, in each fold, the held-out images without their labels as a target. If it
    finds that the target has other class shares than the labelled images (a fitted ``prior_`` that it did not reject),
    held-out images are drawn to those shares for a simulated target, and weighted to them in the score. Such gains are
    marked; they hold if the shares do. Steps after it are fitted and scored at these shares too.

    Args:
        steps: (name, refiner) pairs; they are applied in :data:`DEFAULT_ORDER`.
        metric: by which gains are measured, a name for :func:`etude.core.metrics.metric_named`.
        folds, seed, draws: of the cross-fit and its bootstrap.
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

    fits_on = frozenset({"labelled"})
    steps: Sequence[tuple[str, Refiner]]
    metric: str = "accuracy"
    folds: int = 5
    seed: int = 0
    draws: int = 1000
    level: float = 0.9

    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Fit and measure each step; ``rows_`` holds what became of it, ``kept_`` those that are applied."""
        if self.folds < 2:
            raise EtudeError(f"a chain cross-fits over 2 folds or more, not {self.folds}")
        known = known_rows(require_labelled(labelled, "Chain"))
        if target is not None:
            require_classes(known.classes, target, "Chain")
        run = _Fitting(self, known, None if target is None else without_labels(target))
        self.labelled_images_, self.classes_ = len(known), known.classes
        self.rows_ = [run.tried(name, step) for name, step in in_order(self.steps)]
        self.kept_, self.total_ = tuple(run.kept), run.total()
        return self

    def transform(self, predictions: Predictions) -> Predictions:
        """Return the predictions after every kept step."""
        self.require_fitted()
        require_classes(self.classes_, predictions, "Chain")
        for _, step in self.kept_:
            predictions = step.transform(predictions)
        return predictions if self.kept_ else super().transform(predictions)

    def _refined(self, predictions: Predictions) -> FloatArray:
        return predictions.log_probabilities()  # of the plain mean over views, where no step is kept

    def _described(self) -> str:
        return self.total_.described

    def as_table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the columns and the rows, a step each and one for all, as texts."""
        self.require_fitted()
        return COLUMNS, [row.cells() for row in (*self.rows_, self.total_)]

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
            "steps": [asdict(row) for row in self.rows_],
            "all_kept": asdict(self.total_),
        }

    def save(self, path: Path | str) -> None:
        """Write the chain into ``path``, a .json file for reading and applying, and an .npz of its arrays."""
        path = Path(path)
        arrays: Arrays = {}
        kept = [[name, encoded(step, arrays)] for name, step in self.kept_]
        save_arrays(path.with_suffix(".npz"), arrays)
        write_checked_json(path, {"format": _FORMAT, **self.to_json(), "kept": kept})

    @classmethod
    def load(cls, path: Path | str) -> Chain:
        """Read what :meth:`save` wrote: a fitted chain of the kept steps."""
        path = Path(path)
        tree = read_checked_json(path)
        if tree.get("format") != _FORMAT:
            raise EtudeError(f"{path} is no chain of this version of etude: give the .json that etude refine wrote")
        arrays = load_arrays(path.with_suffix(".npz"), "fitted steps", optional=None)
        with reading(path, "fitted steps", "it was damaged: refine again"):
            kept = [(str(name), cast(Refiner, decoded(step, arrays))) for name, step in tree["kept"]]
            made = cls(kept, tree["metric"], tree["folds"], tree["seed"], level=tree["level"])
            made.rows_, made.total_ = [StepRow(**row) for row in tree["steps"]], StepRow(**tree["all_kept"])
            made.kept_, made.classes_ = tuple(kept), tuple(tree["classes"])
            made.labelled_images_ = tree["labelled_images"]
        return made


class _Fitting:
    """How far the chain has come, on all labelled images, on the target and in every fold."""

    def __init__(self, chain: Chain, labelled: Predictions, target: Predictions | None) -> None:
        self.chain, self.labelled = chain, labelled
        self.target: Predictions | None = target
        self.metric = metric_named(chain.metric)
        numbers = fold_numbers(labelled, chain.folds, Context(seed=chain.seed))
        masks = [numbers == fold for fold in range(int(numbers.max()) + 1)]
        parts = tuple((labelled.take(~held), labelled.take(held)) for held in masks)
        self.folds = self.start = Folds(parts, chain.seed)
        self.kept: list[tuple[str, Refiner]] = []
        self.clock = time.perf_counter()

    def tried(self, name: str, step: Refiner) -> StepRow:
        """Measure one step, and apply it everywhere if it helps."""
        try:
            return self._measured_step(name, step, time.perf_counter())
        except EtudeError as error:
            raise EtudeError(f"step {name!r} of the chain cannot work here: {error}") from None

    def total(self) -> StepRow:
        """Return the row of all kept steps together."""
        words = ", ".join(name for name, _ in self.kept) or "nothing helps beyond noise"
        return self._measured("all kept", words, self.clock, self.start, self.folds)

    def _measured_step(self, name: str, step: Refiner, start: float) -> StepRow:
        if self.target is None and "target" in step.fits_on:
            return StepRow(name, False, "", 0.0, reason="no target to fit on")
        if len(self.labelled) < FEWEST_ROWS:
            return StepRow(name, False, "", 0.0, reason=f"too few labelled images ({len(self.labelled)}) to tell")
        labelled = self.folds.drawn(self.labelled, self.folds.shares, len(self.labelled), "labelled")
        fitted = step.clone().fit(labelled=labelled, target=self.target)
        after_labelled = fitted.transform(self.labelled)
        after_target = None if self.target is None else fitted.transform(self.target)
        if _same(self.labelled, after_labelled) and _same(self.target, after_target):
            return StepRow(name, False, fitted.described, time.perf_counter() - start, 0.0, 0.0, 0.0, 0.5)
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

    def _measured(self, name: str, described: str, start: float, before: Folds, after: Folds) -> StepRow:
        chain, shares = self.chain, after.shares
        weights = None if shares is None else weights_of(after.labels, shares)
        gain = paired_bootstrap(
            self.metric, before.log_probabilities(), after.log_probabilities(), before.labels,
            chain.draws, chain.seed, level=chain.level, weights=weights,
        )  # fmt: skip
        seconds, numbers = time.perf_counter() - start, (gain.gain, gain.low, gain.high, gain.probability)
        return StepRow(name, gain.beyond_noise, described, seconds, *numbers, at_target_prior=weights is not None)


def in_order(steps: Sequence[tuple[str, Refiner]]) -> list[tuple[str, Refiner]]:
    """Return the steps in :data:`DEFAULT_ORDER`; those of other names stay behind them, as given."""
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
