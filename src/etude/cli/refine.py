"""``etude refine``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from etude.cli.probabilities import Written, check_out, labelled_and_target, training_file, write_out

if TYPE_CHECKING:
    from etude.core.predictions import Predictions
    from etude.journal.screen import Screen
    from etude.refine.chain import Chain


def refine(
    valid: Path,
    target: Path | None = None,
    *,
    out: Path,
    labels: Path | None = None,
    train: Path | None = None,
    prior: str | None = None,
    metric: str = "accuracy",
    steps: str | None = None,
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
    """Improve predictions without training: each step is kept only if it helps on labelled images.

    Works on runs and on tables of probabilities from any other tool. The steps that were fitted and what each bought
    are written into refine.json (and refine.npz) beside the refined predictions.

    Parameters
    ----------
    valid
        A run's folder, or labelled predictions: an .npz of etude, or a .csv, .tsv or .parquet with an id column and a
        column of probabilities a class. The model must not have been trained on these images.
    target
        The predictions to refine, in the same forms; by default the run's test.npz.
    out
        The file to write: .csv, or .npz.
    labels
        A table of ids and labels for VALID, when it does not hold them itself.
    train
        An .npz with features and labels of the images that the model was trained on, for knn and last_layer; by
        default the run's train.npz.
    prior
        Class shares of the target: uniform, a .json or .csv file of class and share (or count), or estimate.
    metric
        What counts: accuracy, balanced_accuracy, macro_f1, log_loss, auc, kappa, or map@k.
    steps
        Steps to try, such as knn,temperature,prior; by default all that suit the predictions.
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
        Of folds and bootstrap.
    as_json
        Print JSON instead of a table.
    trust
        Read a run's files also where they are not those that the run wrote: changed by hand, or damaged.
    quiet
        Show warnings only.
    """
    from etude.core.errors import EtudeError, listed

    written = Written(out, probabilities, sample_submission, positive)
    check_out(written)
    if written.path.name == "refine.npz":
        raise EtudeError(f"--out is {written.path}, the name of the file with the fitted steps: choose another")
    from etude.core.metrics import metric_named
    from etude.journal.screen import Screen

    metric = metric_named(metric).name
    screen = Screen(quiet=quiet or as_json)
    labelled, source = labelled_and_target(
        valid, target, labels,
        id_column=id_column, label_column=label_column, positive=positive, warn=screen.warn, trust=trust,
    )  # fmt: skip
    unlabelled = source.predictions
    from etude.refine.base import unlabelled_classes
    from etude.refine.chain import Chain
    from etude.refine.chain_steps import left_out, standard_steps
    from etude.refine.tables import read_probabilities

    if without := unlabelled_classes(labelled):
        screen.warn(
            f"no labelled image is of class {listed(without)}: steps that learn from labels leave the probabilities of "
            "such classes as they are, and no gain here tells how well they are predicted"
        )
    trained_on = training_file(valid, train, trust)
    known = None if trained_on is None else read_probabilities(trained_on, warn=screen.warn)
    names = None if steps is None else [name.strip() for name in steps.split(",") if name.strip()]
    made = standard_steps(labelled, names, unlabelled, metric=metric, prior=prior, train=known, seed=seed)
    chain = Chain(made, metric, seed=seed).fit(labelled, unlabelled)
    refined = chain.transform(unlabelled)
    write_out(written, source, refined, [target or valid], screen.warn)
    record = written.path.with_name("refine.json")
    chain.save(record)
    if as_json:
        print(json.dumps(chain.to_json(), indent=2))
        return
    _tell(screen, chain, labelled, unlabelled)
    for sentence in left_out(labelled, unlabelled, known) if names is None else []:
        screen.say(sentence)
    screen.say(f"{len(refined):,} refined predictions in {written.path}, the steps in {record}")


def _tell(screen: Screen, chain: Chain, labelled: Predictions, target: Predictions) -> None:
    told = chain.to_json()
    title = (
        f"Gain in {told['metric']}, cross-fitted on {told['labelled_images']:,} labelled images; "
        f"interval: {told['level']:.0%}"
    )
    columns, rows = chain.as_table()
    screen.table(title, columns, rows)
    if any(row["at_target_prior"] for row in (*told["steps"], told["all_kept"])):
        screen.say("* labelled images weighted to the class shares that the step sees in the target")
    if len(labelled.logits) > 1:
        _tell_views(screen, labelled)
    changed = int((chain.transform(target).predicted() != target.predicted()).sum())
    screen.say(f"the predicted class of {changed:,} of {len(target):,} images has changed")


def _tell_views(screen: Screen, labelled: Predictions) -> None:
    from etude.refine.views import gain_by_views

    screen.say(f"views: {gain_by_views(labelled).described}")
