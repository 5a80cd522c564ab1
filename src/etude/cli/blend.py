"""``etude blend``."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from etude.cli.common import expanded, print_json
from etude.cli.probabilities import ProbabilityOptions
from etude.core.errors import EtudeError, nearest

if TYPE_CHECKING:
    from etude.core.predictions import Predictions
    from etude.journal.screen import Screen
    from etude.refine.ensemble import Ensemble

_METHODS = {
    **{name: name for name in ("auto", "mean", "geometric", "rank", "vote")},
    "weights": "likelihood",
    "select": "selection",
    "best": "best",
}


def blend(
    *models: Path,
    options: Annotated[ProbabilityOptions, Parameter(name="*")],
    method: str | None = None,
    weight: Annotated[list[float] | None, Parameter(negative="")] = None,
    valid: Annotated[list[Path] | None, Parameter(negative="")] = None,
) -> None:
    """Blend the predictions of several models of the same images.

    Weights, and the table of how differently the models err, need labelled images: those of runs (their valid.npz),
    those of --valid, or the blended ones themselves where they are labelled. The metric decides for select, best and
    auto.

    Parameters
    ----------
    models
        Two or more: run folders, .npz files of etude, or tables with an id column and a column of probabilities a
        class, one column of probabilities of one of two classes, or one of labels.
    method
        mean, geometric, rank, vote (of the predicted classes; on a tie the first model decides), weights (least log
        loss), select (Caruana's forward selection), best (one model), or auto: the mean, unless another way beats it on
        labelled images beyond noise. By default auto with labels, mean without, and vote where a file holds labels.
    weight
        Weight of a model with mean, geometric, rank or vote; repeat the option, in the order of the models.
    valid
        Labelled predictions of the models, a file each in the order of the models; repeat the option.
    """
    options.check_out()
    if method is not None and method not in _METHODS:
        known = ", ".join(_METHODS)
        raise EtudeError(f"--method is {method!r}; the methods are {known}.{nearest(method, _METHODS)}")
    if len(models) < 2:
        raise EtudeError(f"a blend needs the predictions of two models or more, and got {len(models)}")
    if valid and len(valid) != len(models):
        raise EtudeError(f"--valid came {len(valid)} times for {len(models)} models: give one for each, in their order")

    sources = options.read([options.file_of(path, "test.npz") for path in models])
    blended = [source.predictions for source in sources]
    labelled = _labelled(options, models, valid, blended)
    hard = [path for path, source in zip(models, sources, strict=True) if source.holds == "labels"]
    if hard and method not in (None, "vote"):
        raise EtudeError(
            f"--method is {method}, but {hard[0]} holds labels and no probabilities: files of labels are blended by "
            "vote"
        )
    from etude.refine.ensemble import Ensemble

    method = method or ("vote" if hard else "auto" if labelled is not None and weight is None else "mean")
    way: Any = _METHODS[method]
    ensemble = Ensemble(way, options.metric, seed=options.seed, weights=weight)
    ensemble.fit(blended if labelled is None else labelled)
    predictions = ensemble.transform(blended)
    options.write(sources[0], predictions, models)
    found = _found(models, ensemble, labelled, options.metric)
    if options.as_json:
        print_json(found)
        return
    _show(options.screen, found)
    options.screen.say(f"{len(predictions):,} predictions in {options.out}: {ensemble.described}")


def _labelled(
    options: ProbabilityOptions, models: Sequence[Path], valid: Sequence[Path] | None, blended: Sequence[Predictions]
) -> list[Predictions] | None:
    """Return labelled predictions of every model on the same images, or None when there are none."""
    from etude.refine.tables import with_classes

    if valid is None and all((expanded(path) / "valid.npz").is_file() for path in models):
        valid = models
    found = list(blended)
    if valid is not None:
        read = options.read([options.file_of(path, "valid.npz") for path in valid])
        pairs = zip(valid, read, strict=True)
        found = [with_classes(one.predictions, blended[0].classes, str(path)) for path, one in pairs]
    found = [options.with_labels(one) for one in found]
    return found if any(one.labels is not None and (one.labels >= 0).any() for one in found) else None


def _found(
    models: Sequence[Path], ensemble: Ensemble, labelled: Sequence[Predictions] | None, metric: str
) -> dict[str, Any]:
    """Return the weights, and on labelled images the scores and how differently the models err, as JSON values."""
    paths = [str(path) for path in models]
    names = [  # with a number where a path comes again
        path if path not in paths[:place] else f"{path} ({paths[: place + 1].count(path)})"
        for place, path in enumerate(paths)
    ]
    weights = dict(zip(names, ensemble.weights_.tolist(), strict=True))
    found: dict[str, Any] = {"method": ensemble.method_, "weights": weights}
    if labelled is None:
        return found
    from dataclasses import asdict

    from etude.core.metrics import metric_named
    from etude.refine.ensemble import advice, aligned, common_labels, diversity

    together = aligned(labelled)
    labels = common_labels(together)
    assert labels is not None
    known = labels >= 0
    score = metric_named(metric)
    scored = [*zip(names, together, strict=True), ("blend", ensemble.transform(labelled))]
    by_name = dict(zip(names, labelled, strict=True))
    return found | {
        "metric": score.name,
        "labelled_images": int(known.sum()),
        "scores": {name: score.value(one.log_probabilities()[known], labels[known]) for name, one in scored},
        "gains": {name: asdict(gain) for name, gain in ensemble.gains_.items()},
        "pairs": [{**asdict(pair), "q": None if isnan(pair.q) else pair.q} for pair in diversity(by_name)],
        "advice": advice(by_name, [name for name, weight in weights.items() if weight > 0]),
    }


def _show(screen: Screen, found: dict[str, Any]) -> None:
    if "scores" not in found:
        return
    weights = {name: f"{weight:.3f}" for name, weight in found["weights"].items()}
    fitted = " (fitted on these images)" if found["method"] in ("likelihood", "selection", "best") else ""
    metric, shown = found["metric"], {"blend": f"blend{fitted}"}
    rows = [(shown.get(name, name), f"{score:.4f}", weights.get(name)) for name, score in found["scores"].items()]
    screen.table(f"{metric} on {found['labelled_images']:,} labelled images", ("model", metric, "weight"), rows)
    if found["gains"]:
        gains = [
            (name, f"{gain['gain'] + 0.0:+.4f}", f"{gain['low'] + 0.0:+.4f} {gain['high'] + 0.0:+.4f}")
            for name, gain in found["gains"].items()
        ]
        screen.table("Cross-fitted gain over the mean", ("method", "gain", "95% interval"), gains)
    pairs = [
        (
            *(f"{pair['first']} | {pair['second']}", f"{pair['disagreement']:.1%}", f"{pair['double_fault']:.1%}"),
            None if pair["q"] is None else f"{pair['q']:.2f}",
        )
        for pair in found["pairs"]
    ]
    screen.table("How differently they err", ("models", "disagree", "both wrong", "Q"), pairs)
    for sentence in found["advice"]:
        screen.say(sentence)
