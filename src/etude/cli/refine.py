"""``etude refine``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from etude.cli.common import expanded, print_json
from etude.cli.probabilities import ProbabilityOptions
from etude.core.errors import EtudeError, listed

if TYPE_CHECKING:
    from etude.core.predictions import Predictions
    from etude.journal.screen import Screen
    from etude.refine.chain import Chain
    from etude.refine.tables import Source


def refine(
    valid: Path,
    target: Path | None = None,
    *,
    options: Annotated[ProbabilityOptions, Parameter(name="*")],
    train: Path | None = None,
    prior: str | None = None,
    steps: str | None = None,
) -> None:
    """Improve predictions without training: each step is kept only if it helps on labelled images.

    Works on runs and on tables of probabilities from any other tool. The fitted steps and their gains are written into
    refine.json (and refine.npz) next to the refined predictions.

    Parameters
    ----------
    valid
        A run's folder, or labelled predictions: an .npz of etude, or a .csv, .tsv or .parquet with an id column and a
        column of probabilities a class. The model must not have been trained on these images.
    target
        The predictions to refine, in the same forms; by default the run's test.npz.
    train
        An .npz with features and labels of the images that the model was trained on, for knn and last_layer; by
        default the run's train.npz.
    prior
        Class shares of the target: uniform, a .json or .csv file of class and share (or count), or estimate.
    steps
        Steps to try, such as knn,temperature,prior; by default all that suit the predictions.
    """
    options.check_out()
    if options.out.name == "refine.npz":
        raise EtudeError(f"--out is {options.out}, the name of the file with the fitted steps: choose another")
    from etude.core.metrics import metric_named

    screen, metric = options.screen, metric_named(options.metric).name
    labelled, source = _labelled_and_target(options, valid, target)
    unlabelled = source.predictions
    from etude.core.context import Context
    from etude.refine.base import unlabelled_classes
    from etude.refine.chain import Chain
    from etude.refine.chain_steps import left_out, standard_steps
    from etude.refine.tables import read_probabilities

    if without := unlabelled_classes(labelled):
        screen.warn(
            f"no labelled image is of class {listed(without)}: steps that learn from labels leave the probabilities of "
            "such classes as they are, and no gain here measures how well they are predicted"
        )
    known = None
    if train is not None or (expanded(valid) / "train.npz").is_file():
        known = read_probabilities(options.file_of(valid if train is None else train, "train.npz"), warn=screen.warn)
    seeded = Context(seed=options.seed)
    names = None if steps is None else [name.strip() for name in steps.split(",") if name.strip()]
    chosen = standard_steps(labelled, names, unlabelled, metric=metric, prior=prior, train=known, context=seeded)
    chain = Chain(chosen, metric, seed=options.seed).fit(labelled, unlabelled)
    refined = chain.transform(unlabelled)
    options.write(source, refined, [target or valid])
    record = options.out.with_name("refine.json")
    chain.save(record)
    if options.as_json:
        print_json(chain.to_json())
        return
    _show(screen, chain, labelled)
    changed = int((refined.predicted() != unlabelled.predicted()).sum())
    screen.say(f"the predicted class of {changed:,} of {len(unlabelled):,} images has changed")
    for sentence in left_out(labelled, unlabelled, known) if names is None else []:
        screen.say(sentence)
    screen.say(f"{len(refined):,} refined predictions in {options.out}, the steps in {record}")


def _labelled_and_target(options: ProbabilityOptions, valid: Path, target: Path | None) -> tuple[Predictions, Source]:
    from etude.refine.tables import with_classes

    if target is None and not expanded(valid).is_dir():
        raise EtudeError(f"no predictions to refine were given: name those of other images after {valid}")
    paths = [options.file_of(valid, "valid.npz"), options.file_of(target or valid, "test.npz")]
    source, aim = options.read(paths, hard=False)
    labelled = options.with_labels(source.predictions)
    if labelled.labels is None or not (labelled.labels >= 0).any():
        raise EtudeError(
            f"{valid} holds no labels to learn from: give them with --labels FILE, a table of ids and labels"
        )
    return labelled, replace(aim, predictions=with_classes(aim.predictions, labelled.classes, str(paths[1])))


def _show(screen: Screen, chain: Chain, labelled: Predictions) -> None:
    tree = chain.to_json()
    title = f"Gain in {tree['metric']}, cross-fitted on {tree['labelled_images']:,} labelled images"
    screen.table(f"{title}; interval: {tree['level']:.0%}", *chain.as_table())
    if any(row["at_target_prior"] for row in (*tree["steps"], tree["all_kept"])):
        screen.say("* labelled images weighted to the class shares that the step finds in the target")
    if len(labelled.logits) > 1:
        from etude.refine.views import gain_by_views

        screen.say(f"views: {gain_by_views(labelled).described}")
