"""``Refiner``: the contract that every step after training keeps, and the checks that all of them share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError, listed
from etude.core.metrics import FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.core.processor import blas_threads_for

BoolArray = NDArray[np.bool_]
# A probability of zero: its logarithm stays finite, as Predictions demand, and its exponential is nothing.
LOG_ZERO = float(np.log(np.finfo(np.float64).tiny))


class Refiner(ABC):
    """A step that turns predictions into better ones, scikit-learn style.

    A refiner is a dataclass of its arguments, or its ``__init__`` only stores them under the same names; ``fit`` learns
    from what ``fits_on`` names and keeps it in attributes that end in ``_``; fitting again equals fitting a
    :meth:`clone`. ``transform`` leaves its input as it is and keeps ids, classes, features and labels. Neither depends
    on the order of images or of classes.

    Attributes:
        fits_on: what ``fit`` may see: ``"labelled"`` predictions that the model did not train on, the ``"target"`` to
            be predicted (whose labels are never read), both, or nothing.
        needs_features: whether predictions without features are refused.
        classes_: of the predictions that it was fitted on; ``transform`` takes no others.
    """

    fits_on: ClassVar[frozenset[str]]
    needs_features: ClassVar[bool] = False
    classes_: tuple[str, ...]

    @abstractmethod
    def fit(self, labelled: Predictions | None = None, target: Predictions | None = None) -> Self:
        """Learn from out-of-fold ``labelled`` or unlabelled ``target`` predictions; return self."""

    def transform(self, predictions: Predictions) -> Predictions:
        """Return refined predictions of the same images and classes, in one view."""
        self.require_fitted()
        require_classes(self.classes_, predictions, type(self).__name__)
        return with_log_probabilities(predictions, self._refined(predictions))

    @abstractmethod
    def _refined(self, predictions: Predictions) -> FloatArray:
        """Return the log probabilities, (N, C), that :meth:`transform` makes predictions of."""

    @property
    def described(self) -> str:
        """What was fitted, in a few words, such as ``"T = 1.32"``."""
        self.require_fitted()
        return self._described()

    @abstractmethod
    def _described(self) -> str: ...

    def params(self) -> dict[str, Any]:
        """Return the arguments of ``__init__`` by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def clone(self) -> Self:
        """Return an unfitted copy with the same arguments; refiners among the arguments are cloned too."""
        return type(self)(**{name: _cloned(value) for name, value in self.params().items()})

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.params().items())
        return f"{type(self).__name__}({given})"

    def require_fitted(self) -> None:
        """Raise an EtudeError unless ``fit`` has run: unless there is a public attribute that ends in ``_``."""
        if not any(name.endswith("_") and not name.startswith("_") for name in vars(self)):
            needed = " and ".join(sorted(self.fits_on)) or "any"
            raise EtudeError(f"{type(self).__name__} is not fitted yet: call fit with {needed} predictions first")


def require_labelled(predictions: Predictions | None, who: str) -> Predictions:
    """Return the predictions of the images whose label is known; ``who`` asks for them."""
    if predictions is None:
        raise EtudeError(f"{who} fits on labelled predictions and got none: give out-of-fold or validation predictions")
    known = np.zeros(0, bool) if predictions.labels is None else predictions.labels >= 0
    if not known.any():
        raise EtudeError(
            f"{who} fits on labelled predictions, and none of the {len(predictions):,} images it got has a label: "
            "give validation predictions with their labels"
        )
    return predictions if known.all() else predictions.take(known)


def require_target(predictions: Predictions | None, who: str) -> Predictions:
    """Return the predictions of the target; ``who`` asks for them."""
    if predictions is None:
        raise EtudeError(f"{who} fits on the target and got none: give the predictions of the images to be predicted")
    return predictions


def require_features(predictions: Predictions, who: str) -> NDArray[np.float32] | NDArray[np.float16]:
    """Return the features (N, D); ``who`` asks for them."""
    if predictions.features is None:
        raise EtudeError(
            f"{who} needs the features of the images, and these predictions hold none: give an .npz of etude, which "
            f"keeps them, or leave {who} out"
        )
    return predictions.features


def require_classes(expected: tuple[str, ...], predictions: Predictions, who: str) -> None:
    """Raise an EtudeError unless the classes are those ``expected``, in that order."""
    if predictions.classes != expected:
        differ = difference(expected, predictions.classes) or "has them in another order"
        raise EtudeError(
            f"{who} needs the same {len(expected):,} classes in the same order everywhere, and one set of predictions "
            f"{differ}: predict both sets with the same model"
        )


def difference(expected: Collection[str], given: Collection[str]) -> str:
    """Return what ``given`` lacks and what it has besides, as text; empty where both are equal."""
    here, there = set(expected), set(given)
    lacks, extra = [name for name in expected if name not in there], [name for name in given if name not in here]
    parts = [f"lacks {listed(lacks)}"] if lacks else []
    return " and ".join(parts + ([f"has {listed(extra)} as well"] if extra else []))


def normalised(log_weights: FloatArray) -> FloatArray:
    """Return the log of each row's weights over their sum: x - log Σ exp x, (..., C) float64, finite for finite x."""
    shifted = log_weights - log_weights.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def minimised(
    loss: Callable[[FloatArray], tuple[float, FloatArray]],
    start: FloatArray,
    multiplications: int,
    bounds: Any = None,
    **options: float,
) -> FloatArray:
    """Return where ``loss``, which returns its gradient too, is least, by L-BFGS from ``start``."""
    import scipy.optimize  # pyright: ignore[reportMissingTypeStubs]

    optimize: Any = scipy.optimize
    with blas_threads_for(multiplications):
        return optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def mixture_by_em(
    likelihood: FloatArray, start: FloatArray, tolerance: float, most: int = 1000, *,
    extra: float = 0.0, by_gain: bool = False,
) -> FloatArray:  # fmt: skip
    """Return the weights w (M,), of sum one, that maximise Σ_i log Σ_m w_m p_im + extra Σ_m log w_m, by EM.

    ``likelihood`` is p (N, M), in any unit a row; w begins at ``start``. It ends when no weight moves by more than
    ``tolerance``, or ``by_gain``, when no weights at all can gain more a row: at most max_m mean_i p_im / Σ w p_i - 1.
    """
    weights = start
    for _ in range(most):
        total = likelihood @ weights
        ratio = likelihood.T @ np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        if by_gain and ratio.max() <= (1 + tolerance) * len(likelihood):
            break
        found = weights * ratio + extra
        found /= found.sum()
        moved, weights = np.abs(found - weights).max(), found
        if moved < tolerance and not by_gain:
            break
    return weights


def optional_package(name: str, needed_by: str, instead: str) -> Any:
    """Return a package that may be missing; the message says what needs it, and what does without."""
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: its compiled library lacks another one
        problem = f"{needed_by} needs the package {name}, which cannot be imported ({error})"
        raise EtudeError(f"{problem}: pip install {name}, or take {instead}") from error


def occurring(labels: IntArray, classes: int) -> BoolArray:
    """Return which of the classes have a label among ``labels``, (N,) of zero or more: (C,)."""
    return np.bincount(labels, minlength=classes) > 0


def only_among(learned: BoolArray, after: FloatArray, before: FloatArray) -> FloatArray:
    """Return log p, (N, C): what is left by classes that are not ``learned``, (C,), is shared as in ``after``.

    A class without labelled images, about which a step has learned nothing, keeps its probability in
    ``before``, (N, C) normalised, and images that are predicted to be of it there stay as they are.
    """
    if learned.all() or not learned.any():
        return normalised(after if learned.all() else before)
    found = before.copy()
    whole = np.logaddexp.reduce(before[:, learned], axis=1, keepdims=True)
    found[:, learned] = normalised(after[:, learned]) + whole
    return np.where(learned[before.argmax(axis=1)][:, None], found, before)


def with_log_probabilities(predictions: Predictions, log_probabilities: FloatArray) -> Predictions:
    """Return ``predictions`` with one view of these log probabilities, (N, C); the rest is kept.

    Rows need not be normalised. Minus infinity, a probability of zero, becomes the smallest log that counts.
    """
    finite = np.maximum(normalised(log_probabilities), LOG_ZERO)
    return replace(predictions, logits=finite[None].astype(np.float32))


def with_columns(predictions: Predictions, columns: Sequence[int], classes: tuple[str, ...]) -> Predictions:
    """Return ``predictions`` with these of their columns, whose names are then ``classes``."""
    labels = predictions.labels
    if labels is not None:
        labels = np.append(np.argsort(columns), -1)[labels]  # the last entry keeps -1, unknown, as it is
    return replace(predictions, classes=classes, logits=predictions.logits[:, :, columns], labels=labels)


def _cloned(value: Any) -> Any:
    if isinstance(value, Refiner):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(_cloned(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return value


def labels_of(predictions: Predictions) -> IntArray:
    """Return the labels of labelled predictions."""
    assert predictions.labels is not None
    return predictions.labels


def without_labels(predictions: Predictions) -> Predictions:
    """Return the predictions with nothing to cheat with."""
    return replace(predictions, labels=None)


def unlabelled_classes(predictions: Predictions) -> tuple[str, ...]:
    """Return the names of the classes that no labelled image has."""
    known = set(labels_of(predictions).tolist())
    return tuple(name for place, name in enumerate(predictions.classes) if place not in known)


def known_rows(predictions: Predictions) -> Predictions:
    """Return the labelled rows in the order of their ids, so that no draw depends on the order they came in."""
    known: list[int] = np.flatnonzero(labels_of(predictions) >= 0).tolist()
    return predictions.take(sorted(known, key=predictions.ids.__getitem__))
