"""``etude blend``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from etude.cli.probabilities import Written, check_out, expanded, file_of, write_out

if TYPE_CHECKING:
    from etude.core.predictions import Predictions
    from etude.journal.screen import Screen
    from etude.refine.ensemble import Ensemble
    from etude.refine.tables import Source

_METHODS = {
    "auto": "auto",
    "mean": "mean",
    "geometric": "geometric",
    "rank": "rank",
    "vote": "vote",
    "weights": "likelihood",
    "select": "selection",
    "best": "best",
}


def blend(
    *models: Path,
    out: Path,
    method: str | None = None,
    weight: Annotated[list[float] | None, Parameter(negative="")] = None,
    labels: Path | None = None,
    valid: Annotated[list[Path] | None, Parameter(negative="")] = None,
    metric: str = "accuracy",
    id_column: str | None = None,
    label_column: str | None = None,
    probabilities: bool | None = None,
    sample_submission: Path | None = None,
    positive: str | None = None,
    seed: int = 0,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    trust: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Blend the predictions of several models of the same images.

    Weights, and the table of how differently the models err, need labelled images: those of runs (their valid.npz),
    those of --valid, or the blended ones themselves where they are labelled.

    Parameters
    ----------
    models
        Two or more: run folders, .npz files of etude, or tables with an id column and a column of probabilities a
        class, one column of probabilities of one of two classes, or one of labels.
    out
        The file to write: .csv, or .npz.
    method
        mean, geometric, rank, vote (of the predicted classes; on a tie the first model decides), weights (least log
        loss), select (Caruana's forward selection), best (one model), or auto: the mean, unless another way beats it on
        labelled images beyond noise. By default auto with labels, mean without, and vote where a file holds labels.
    weight
        Weight of a model with mean, geometric, rank or vote; repeat the option, in the order of the models.
    labels
        A table of ids and labels for the labelled images, when the files do not hold them.
    valid
        Labelled predictions of the models, a file each in the order of the models; repeat the option.
    metric
        What select, best and auto go by: accuracy, balanced_accuracy, macro_f1, log_loss, auc, kappa, or map@k.
    id_column
        Name of the column of ids in tables, when it is not found by its name.
    label_column
        Name of the column of labels.
    probabilities
        Write a column of probabilities a class, as by default without a sample submission, or with --no-probabilities
        the predicted class.
    sample_submission
        A CSV whose ids, columns and order the file must follow.
    positive
        The class whose probability a single column holds, in the files that are read and in --out; by default that
        which the column is named after, or 1, true, yes or positive.
    seed
        Of folds and bags.
    as_json
        Print JSON instead of tables.
    trust
        Read a run's files also where they are not those that the run wrote: changed by hand, or damaged.
    quiet
        Show warnings only.
    """
    written = Written(out, probabilities, sample_submission, positive)
    check_out(written)
    from etude.core.errors import EtudeError, nearest
    from etude.journal.screen import Screen

    if method is not None and method not in _METHODS:
        known = ", ".join(_METHODS)
        raise EtudeError(f"--method is {method!r}; the methods are {known}.{nearest(method, _METHODS)}")
    if len(models) < 2:
        raise EtudeError(f"a blend needs the predictions of two models or more, and got {len(models)}")
    if valid and len(valid) != len(models):
        raise EtudeError(f"--valid came {len(valid)} times for {len(models)} models: give one for each, in their order")

    screen = Screen(quiet=quiet or as_json)
    reading = _Reading(labels, id_column, label_column, positive, screen, trust)
    sources = reading.read(models, "test.npz")
    blended = [source.predictions for source in sources]
    labelled = reading.labelled(models, valid, blended)

    from etude.refine.ensemble import Ensemble

    way: Any = _METHODS[_method(method, weight, models, sources, labelled is not None)]
    ensemble = Ensemble(way, metric, seed=seed, weights=weight).fit(blended if labelled is None else labelled)
    done = ensemble.transform(blended)
    write_out(written, sources[0], done, models, screen.warn)
    told = _told(models, ensemble, labelled, metric)
    if as_json:
        print(json.dumps(told, indent=2))
        return
    _show(screen, told)
    screen.say(f"{len(done):,} predictions in {written.path}: {ensemble.described}")


def _method(
    given: str | None, weight: Sequence[float] | None, models: Sequence[Path], sources: Sequence[Source], labelled: bool
) -> str:
    """Return the method to blend by: files of labels can only vote."""
    from etude.core.errors import EtudeError

    hard = [path for path, source in zip(models, sources, strict=True) if source.holds == "labels"]
    if hard and given not in (None, "vote"):
        raise EtudeError(
            f"--method is {given}, but {hard[0]} holds labels and no probabilities: files of labels are blended by vote"
        )
    return given or ("vote" if hard else "auto" if labelled and weight is None else "mean")


class _Reading:
    """Reads predictions with the options that all files share."""

    def __init__(
        self,
        labels: Path | None,
        id_column: str | None,
        label_column: str | None,
        positive: str | None,
        screen: Screen,
        trust: bool,
    ) -> None:
        self.labels, self.id_column, self.label_column, self.screen = labels, id_column, label_column, screen
        self.positive, self.trust = positive, trust

    def read(self, paths: Sequence[Path], name: str) -> list[Source]:
        """Read files, or the file ``name`` of a run."""
        from etude.refine.tables import in_classes, read_source

        files = [file_of(path, name, self.trust) for path in paths]
        options: dict[str, Any] = {"id_column": self.id_column, "label_column": self.label_column}
        sources = [read_source(file, **options, warn=self.screen.warn) for file in files]
        return in_classes(sources, files, self.positive)

    def labelled(
        self, models: Sequence[Path], valid: Sequence[Path] | None, blended: Sequence[Predictions]
    ) -> list[Predictions] | None:
        """Return labelled predictions of every model on the same images, or None when there are none."""
        from etude.refine.tables import with_classes, with_labels

        if valid is None and all((expanded(path) / "valid.npz").is_file() for path in models):
            valid = models
        found = list(blended)
        if valid is not None:
            read = zip(valid, self.read(valid, "valid.npz"), strict=True)
            found = [with_classes(one.predictions, blended[0].classes, str(path)) for path, one in read]
        if self.labels is not None:
            label_file, column = expanded(self.labels), self.label_column
            found = [with_labels(one, label_file, label_column=column, warn=self.screen.warn) for one in found]
        known = [one for one in found if one.labels is not None and (one.labels >= 0).any()]
        return found if known else None


def _told(
    models: Sequence[Path], ensemble: Ensemble, labelled: Sequence[Predictions] | None, metric: str
) -> dict[str, Any]:
    """Return what was found, as JSON values."""
    names = _names(models)
    told: dict[str, Any] = {
        "method": ensemble.method_,
        "weights": dict(zip(names, ensemble.weights_.tolist(), strict=True)),
    }
    if labelled is None:
        return told
    from dataclasses import asdict

    from etude.core.metrics import metric_named
    from etude.refine.diversity import advice, diversity
    from etude.refine.ensemble import aligned, common_labels

    together = aligned(labelled)
    labels = common_labels(together)
    assert labels is not None
    known = labels >= 0
    score = metric_named(metric)
    scored = [*zip(names, together, strict=True), ("blend", ensemble.transform(labelled))]
    told["metric"] = score.name
    told["labelled_images"] = int(known.sum())
    told["scores"] = {name: score.value(one.log_probabilities()[known], labels[known]) for name, one in scored}
    told["gains"] = {name: asdict(gain) for name, gain in ensemble.gains_.items()}
    by_name = dict(zip(names, labelled, strict=True))
    told["pairs"] = [{**asdict(pair), "q": None if isnan(pair.q) else pair.q} for pair in diversity(by_name)]
    told["advice"] = advice(by_name, [name for name, weight in told["weights"].items() if weight > 0])
    return told


def _names(models: Sequence[Path]) -> list[str]:
    """Return the models' paths, with a number where one comes again."""
    paths = [str(path) for path in models]
    return [
        path if path not in paths[:place] else f"{path} ({paths[: place + 1].count(path)})"
        for place, path in enumerate(paths)
    ]


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _show(screen: Screen, told: dict[str, Any]) -> None:
    if "scores" not in told:
        return
    weights = told["weights"]
    fitted = told["method"] in ("likelihood", "selection", "best")
    rows = [
        (name + (" (its weights saw these images)" if name == "blend" and fitted else ""), score, weights.get(name))
        for name, score in told["scores"].items()
    ]
    screen.table(
        f"{told['metric']} on {told['labelled_images']:,} labelled images",
        ("model", told["metric"], "weight"),
        [(name, f"{score:.4f}", None if weight is None else f"{weight:.3f}") for name, score, weight in rows],
    )
    if told["gains"]:
        gains = [
            (name, f"{gain['gain'] + 0.0:+.4f}", f"{gain['low'] + 0.0:+.4f} {gain['high'] + 0.0:+.4f}")
            for name, gain in told["gains"].items()
        ]
        screen.table("Cross-fitted gain over the mean", ("way", "gain", "95% interval"), gains)
    pairs = [
        (f"{p['first']} | {p['second']}", f"{p['disagreement']:.1%}", f"{p['double_fault']:.1%}", _two_digits(p["q"]))
        for p in told["pairs"]
    ]
    screen.table("How differently they err", ("models", "disagree", "both wrong", "Q"), pairs)
    for sentence in told["advice"]:
        screen.say(sentence)
