"""The steps of a chain by name, made ready for the predictions at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etude.core.context import Context
from etude.core.errors import EtudeError, nearest
from etude.core.metrics import metric_named
from etude.core.predictions import Predictions
from etude.refine.base import Refiner, known_rows, labels_of, require_features
from etude.refine.calibration import Temperature, VectorScaling
from etude.refine.chain import DEFAULT_ORDER
from etude.refine.last_layer import LastLayer
from etude.refine.neighbours.knn import KNN
from etude.refine.prior.assignment import BalancedAssignment
from etude.refine.prior.correction import PriorCorrection, PriorSpec
from etude.refine.thresholds import Thresholds
from etude.refine.views import ViewWeights


def standard_steps(
    labelled: Predictions,
    names: Sequence[str] | None = None,
    target: Predictions | None = None,
    *,
    metric: str = "accuracy",
    prior: PriorSpec | None = None,
    train: Predictions | None = None,
    context: Context = Context(),
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
        prior: of the target: ``"estimate"``, or what :func:`~etude.refine.prior.correction.parse_prior` reads.
        train: labelled images with features for ``knn`` and ``last_layer``; ``knn`` takes ``labelled`` without them.
        context: with the seed of the steps that draw.

    Raises:
        EtudeError: a step is unknown, or cannot work on what there is.

    >>> one = Predictions(["a", "b"], ["x", "y"], [[[0.0, 0.0], [0.0, 0.0]]], labels=[0, 1])
    >>> [name for name, _ in standard_steps(one, metric="macro_f1")]
    ['temperature', 'vector_scaling', 'thresholds']
    """
    metric, seed = metric_named(metric).name, context.seed

    def knn() -> Refiner:
        # Without training images the labelled ones vote on each other; none votes for itself.
        rows = known_rows(labelled if train is None else train)
        return KNN(
            require_features(rows, "step 'knn'"), labels_of(rows), rows.ids, rows.classes,
            metric="accuracy" if metric == "accuracy" else "log_loss",
        )  # fmt: skip

    def last_layer() -> Refiner:
        if train is None:
            raise EtudeError(
                "step 'last_layer' fits the head again on the images the model was trained on: give their features and "
                "labels (--train FILE.npz)"
            )
        rows = known_rows(train)
        features = require_features(rows, "step 'last_layer'")
        return LastLayer(features, labels_of(rows), rows.ids, rows.classes, prior=prior, seed=seed)

    def assignment() -> Refiner:
        if prior is None or (isinstance(prior, str) and prior == "estimate"):
            raise EtudeError("step 'assignment' needs the share of each class: give them (--prior uniform|FILE)")
        return BalancedAssignment(prior)

    views, features = len(labelled.logits), all(one is None or one.features is not None for one in (labelled, target))
    same_views = target is None or len(target.logits) == views
    # Name -> whether it is there when no names are given, and how it is made.
    known: dict[str, tuple[bool, Callable[[], Refiner]]] = {
        "views": (same_views and views > 1, lambda: ViewWeights(metric, seed=seed)),
        "knn": (features, knn),
        "last_layer": (features and train is not None, last_layer),
        "temperature": (True, Temperature),
        "vector_scaling": (True, VectorScaling),
        "prior": (prior is not None, lambda: PriorCorrection("estimate" if prior is None else prior, seed=seed)),
        "assignment": (False, assignment),
        "thresholds": (metric_named(metric).needs_thresholds, lambda: Thresholds(metric, seed=seed)),
    }
    chosen = [name for name, (by_default, _) in known.items() if by_default] if names is None else names
    for name in chosen:
        if name not in known:
            raise EtudeError(f"there is no step {name!r}; the steps are {', '.join(known)}.{nearest(name, known)}")
    return [(name, known[name][1]()) for name in DEFAULT_ORDER if name in chosen]


def left_out(labelled: Predictions, target: Predictions | None, train: Predictions | None) -> list[str]:
    """Return a sentence for each step that :func:`standard_steps` leaves out because something is missing."""
    given = {"the labelled predictions": labelled, "the predictions to refine": target}
    sentences: list[str] = []
    if bare := [what for what, one in given.items() if one is not None and one.features is None]:
        sentences = [
            f"knn and last_layer are left out: {bare[0]} hold no features (several models have none in common)"
        ]
    elif train is None:
        missing = "it needs features of the training images (a run saves them with predict.train_features=always)"
        sentences = [f"last_layer is left out: {missing}"]
    views = [len(one.logits) for one in (labelled, target) if one is not None]
    if max(views) > 1 and len(set(views)) > 1:
        sentences.append(f"views is left out: there are {views[0]} of the labelled images and {views[1]} of the others")
    return sentences
