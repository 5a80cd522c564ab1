"""The steps of a chain by name, made ready for the predictions at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from etude.core.errors import EtudeError, nearest
from etude.core.metrics import metric_named
from etude.core.predictions import Predictions
from etude.refine.base import Refiner, known_rows, labels_of
from etude.refine.calibration import Temperature, VectorScaling
from etude.refine.chain import DEFAULT_ORDER
from etude.refine.last_layer import LastLayer
from etude.refine.neighbours.knn import KNN
from etude.refine.prior.assignment import BalancedAssignment
from etude.refine.prior.correction import PriorCorrection
from etude.refine.prior.priors import PriorSpec
from etude.refine.thresholds import Thresholds
from etude.refine.views import ViewWeights


@dataclass(frozen=True)
class _Makers:
    """What the steps are made from; see :func:`standard_steps`."""

    labelled: Predictions
    metric: str
    prior: PriorSpec | None
    train: Predictions | None
    seed: int

    def views(self) -> Refiner:
        return ViewWeights(self.metric, seed=self.seed)

    def knn(self) -> Refiner:
        # Without training images the labelled ones vote on each other; none votes for itself.
        rows = known_rows(self.labelled if self.train is None else self.train)
        metric = "accuracy" if self.metric == "accuracy" else "log_loss"
        return KNN(_features(rows, "knn"), labels_of(rows), rows.ids, rows.classes, metric=metric)

    def last_layer(self) -> Refiner:
        if self.train is None:
            raise EtudeError(
                "step 'last_layer' fits the head again on the images the model was trained on: give their features and "
                "labels (--train FILE.npz)"
            )
        rows = known_rows(self.train)
        features = _features(rows, "last_layer")
        return LastLayer(features, labels_of(rows), rows.ids, rows.classes, prior=self.prior, seed=self.seed)

    def temperature(self) -> Refiner:
        return Temperature()

    def vector_scaling(self) -> Refiner:
        return VectorScaling()

    def prior_correction(self) -> Refiner:
        return PriorCorrection("estimate" if self.prior is None else self.prior, seed=self.seed)

    def assignment(self) -> Refiner:
        if self.prior is None or (isinstance(self.prior, str) and self.prior == "estimate"):
            raise EtudeError(
                "step 'assignment' gives each class its known share: give the shares (--prior uniform|FILE)"
            )
        return BalancedAssignment(self.prior)

    def thresholds(self) -> Refiner:
        return Thresholds(self.metric, seed=self.seed)


def standard_steps(
    labelled: Predictions,
    names: Sequence[str] | None = None,
    target: Predictions | None = None,
    *,
    metric: str = "accuracy",
    prior: PriorSpec | None = None,
    train: Predictions | None = None,
    seed: int = 0,
) -> list[tuple[str, Refiner]]:
    """Return the steps ``names`` for :class:`~etude.refine.chain.Chain`, in its order.

    Without names: ``views`` where there are several, ``knn`` where there are features, ``last_layer`` where there are
    those of the training images, ``temperature``, ``vector_scaling``, ``prior`` where one is given, and ``thresholds``
    where the metric needs them.

    Args:
        labelled: the predictions that the chain will be fitted on.
        names: of :data:`~etude.refine.chain.DEFAULT_ORDER`.
        target: what the chain will be applied to; steps that would miss features or views there are left out.
        metric: of the chain.
        prior: of the target: ``"estimate"``, or what :func:`~etude.refine.prior.priors.parse_prior` reads.
        train: labelled images with features for ``knn`` and ``last_layer``; ``knn`` takes ``labelled`` without them.
        seed: of the steps that draw.

    Raises:
        EtudeError: a step is unknown, or cannot work on what there is.

    >>> one = Predictions(["a", "b"], ["x", "y"], np.zeros((1, 2, 2)), labels=np.array([0, 1]))
    >>> [name for name, _ in standard_steps(one, metric="macro_f1")]
    ['temperature', 'vector_scaling', 'thresholds']
    """
    makers = _Makers(labelled, metric_named(metric).name, prior, train, seed)
    by_name: dict[str, Callable[[], Refiner]] = {
        "views": makers.views,
        "knn": makers.knn,
        "last_layer": makers.last_layer,
        "temperature": makers.temperature,
        "vector_scaling": makers.vector_scaling,
        "prior": makers.prior_correction,
        "assignment": makers.assignment,
        "thresholds": makers.thresholds,
    }
    chosen = _default_names(makers, target) if names is None else list(dict.fromkeys(names))
    for name in chosen:
        if name not in by_name:
            raise EtudeError(f"there is no step {name!r}; the steps are {', '.join(by_name)}.{nearest(name, by_name)}")
    return [(name, by_name[name]()) for name in DEFAULT_ORDER if name in chosen]


def left_out(labelled: Predictions, target: Predictions | None, train: Predictions | None) -> list[str]:
    """Return a sentence for each step that :func:`standard_steps` leaves out because something is missing.

    >>> one = Predictions(["a", "b"], ["x", "y"], np.zeros((1, 2, 2)), labels=np.array([0, 1]))
    >>> left_out(one, None, None)
    ['knn and last_layer are left out: the labelled predictions hold no features (several models have none in common)']
    """
    for what, one in (("the labelled predictions", labelled), ("the predictions to refine", target)):
        if one is not None and one.features is None:
            said = [f"knn and last_layer are left out: {what} hold no features (several models have none in common)"]
            break
    else:
        missing = "it needs features of the training images (a run saves them with predict.train_features=always)"
        said = [] if train is not None else [f"last_layer is left out: {missing}"]
    views = [len(one.logits) for one in (labelled, target) if one is not None]
    if max(views) > 1 and len(set(views)) > 1:
        said.append(f"views is left out: there are {views[0]} of the labelled images and {views[1]} of the others")
    return said


def _default_names(makers: _Makers, target: Predictions | None) -> list[str]:
    views = len(makers.labelled.logits)
    features = all(one is None or one.features is not None for one in (makers.labelled, target))
    wanted = {
        "views": views > 1 and (target is None or len(target.logits) == views),
        "knn": features,
        "last_layer": features and makers.train is not None,
        "temperature": True,
        "vector_scaling": True,
        "prior": makers.prior is not None,
        "thresholds": metric_named(makers.metric).needs_thresholds,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _features(rows: Predictions, step: str) -> np.ndarray:
    if rows.features is None:
        raise EtudeError(
            f"step {step!r} needs features, and these predictions hold none: give an .npz of etude, which keeps them, "
            "or leave the step out"
        )
    return rows.features
