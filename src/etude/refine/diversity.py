"""How differently models err, and which of them a blend should drop or add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.metrics import SMALLEST, FloatArray, IntArray
from etude.core.predictions import Predictions
from etude.refine.cross_fit import NOISE, exceeds_noise, standard_error_of
from etude.refine.ensemble import labelled_models


@dataclass(frozen=True)
class PairDiversity:
    """How two models, by name, differ on labelled images.

    Args:
        disagreement: share of the images for which they predict different classes.
        double_fault: share for which both are wrong.
        q: Yule's Q, (n11 n00 - n10 n01) / (n11 n00 + n10 n01) with n10 images that the first alone gets right: 1 when
            they err together, 0 when independently, below when one is right where the other errs; NaN where it is 0/0.
    """

    first: str
    second: str
    disagreement: float
    double_fault: float
    q: float


def diversity(models: Mapping[str, Predictions]) -> list[PairDiversity]:
    """Return a row for each pair of models by name, the most similar first; double fault decides between equals.

    Source: Kuncheva & Whitaker 2003, Measures of diversity in classifier ensembles.
    """
    together, labels = _labelled(models)
    guesses = [(name, one.predicted()) for name, one in together.items()]
    rows = [_pair(first, second, labels) for first, second in combinations(guesses, 2)]
    return sorted(rows, key=lambda row: (row.disagreement, -row.double_fault))


def advice(models: Mapping[str, Predictions], blended: Sequence[str] | None = None) -> list[str]:
    """Return sentences: which model to drop from the mean of those ``blended``, which of the others to add.

    What dropping or adding one model does to the log loss of the mean of probabilities is measured on the labelled
    images, with the standard error of the paired difference.

    Args:
        models: predictions by name, on the same images.
        blended: names of those in the blend; all when None.

    Raises:
        EtudeError: as :func:`diversity`, or a name is unknown.
    """
    together, labels = _labelled(models)
    chosen = list(models) if blended is None else list(dict.fromkeys(blended))
    if unknown := [name for name in chosen if name not in models]:
        raise EtudeError(f"there is no model {unknown[0]!r} among {listed(models)}.{nearest(unknown[0], models)}")
    if not chosen:
        raise EtudeError("a blend needs at least one model: name those that it holds")
    given = {name: one.probabilities()[np.arange(len(labels)), labels] for name, one in together.items()}
    whole = _losses(chosen, given)
    gains = {name: whole - _losses([*chosen, name], given) for name in given if name not in chosen}
    useful = sorted((name for name in gains if exceeds_noise(gains[name])), key=lambda name: -gains[name].mean())
    sentences = _to_drop(chosen, given, whole)
    sentences += [f"Add {name!r}: with it the log loss of the blend falls by {_text(gains[name])}." for name in useful]
    sentences = sentences or [f"Keep the blend of {listed(chosen)} as it is: no change of one model beats its noise."]
    if len(chosen) > 1:
        closest = diversity({name: together[name] for name in chosen})[0]
        if closest.disagreement < 0.01:
            sentences.append(
                f"{closest.first!r} and {closest.second!r} predict the same class for {1 - closest.disagreement:.1%} "
                "of the images: one of them does almost all that both do."
            )
    return sentences


def _labelled(models: Mapping[str, Predictions]) -> tuple[dict[str, Predictions], IntArray]:
    together, labels, _ = labelled_models(list(models.values()), "diversity")
    return dict(zip(models, together, strict=True)), labels


def _pair(first: tuple[str, IntArray], second: tuple[str, IntArray], labels: IntArray) -> PairDiversity:
    (first_name, one), (second_name, other) = first, second
    right, also = one == labels, other == labels
    both, neither = int((right & also).sum()), int((~right & ~also).sum())
    only, alone = int((right & ~also).sum()), int((~right & also).sum())
    together, odd = both * neither, only * alone
    q = (together - odd) / (together + odd) if together + odd else float("nan")
    return PairDiversity(first_name, second_name, float((one != other).mean()), neither / len(labels), q)


def _losses(names: Sequence[str], given: Mapping[str, FloatArray]) -> FloatArray:
    return -np.log(np.maximum(np.mean([given[name] for name in names], axis=0), SMALLEST))


def _to_drop(chosen: list[str], given: Mapping[str, FloatArray], whole: FloatArray) -> list[str]:
    """A sentence on the model without which the blend is best, if it is no worse than with it."""
    if len(chosen) < 2:
        return []
    gains = {name: whole - _losses([other for other in chosen if other != name], given) for name in chosen}
    worst = max(chosen, key=lambda name: gains[name].mean())
    change = _text(gains[worst])
    if exceeds_noise(gains[worst]):
        return [f"Drop {worst!r}: without it the log loss of the blend falls by {change}."]
    if gains[worst].mean() + NOISE * standard_error_of(gains[worst]) >= 0:
        no_more = f"changes by no more than noise ({change} less)"
        return [f"{worst!r} can go: without it the log loss of the blend {no_more}."]
    return []


def _text(gains: FloatArray) -> str:
    return f"{gains.mean():.4f} ± {standard_error_of(gains):.4f}"
