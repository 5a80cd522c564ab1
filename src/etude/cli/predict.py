"""``etude predict``."""

from __future__ import annotations

from pathlib import Path

from etude.cli.common import Quiet, checked_out
from etude.core.errors import EtudeError
from etude.core.text import counted
from etude.study.run.request import Flag

_SHOWN = 10  # files named one by one; thousands would hide what matters


def predict(
    run: Path,
    images: Path,
    *,
    out: Path,
    tta: int | None = None,
    larger: float | None = None,
    align: bool | None = None,
    probabilities: Flag = False,
    sample_submission: Path | None = None,
    positive: str | None = None,
    cache: Path | None = None,
    trust: Flag = False,
    quiet: Quiet = False,
) -> None:
    """Predict images with a finished run.

    Parameters
    ----------
    run
        Folder of a run that ``etude fit`` wrote.
    images
        A folder of images, a table with an image column, or one image.
    out
        The CSV file to write; with the ending .npz the full predictions are saved.
    tta
        Views to average over, 1 to 128: symmetries first, then shifts, zooms and random draws of the run's
        augmentation; by default the views that the run used.
    larger
        One of the views, after the symmetries, has an input whose side is larger by this factor, such as 1.25.
    align
        Where 50 images or more are of another kind than the training images, align their features to those; by default
        as the run did.
    probabilities
        Write one column of probabilities a class instead of a label.
    sample_submission
        A CSV whose ids, columns and order the file must follow.
    positive
        Write the probability of this class in one column; by default 1, true, yes or positive, where the sample
        submission has one column of fractions.
    cache
        Folder of decoded images; by default ~/.cache/etude.
    trust
        Read a run's files also where they are not those that the run wrote: changed by hand, or damaged.
    """
    from etude.journal.screen import Screen

    given = {"--positive": positive is not None, "--sample-submission": sample_submission is not None}
    out = checked_out(out, {"--probabilities": probabilities, **given})
    if tta is not None and tta < 1:
        raise EtudeError(f"--tta is {tta}; give the number of views, 1 or more")

    from etude.core.submission import checked_positive
    from etude.data.sources import write_bad_files
    from etude.run import load

    screen = Screen(quiet=quiet)
    opened = load(run, trust=trust, warn=screen.warn)
    if opened.record["state"] != "finished":
        screen.warn(f"{run} did not finish (it is {opened.record['state']}): predicting with the models it has kept")
    if positive is not None:
        checked_positive(positive, opened.classes)
    found = opened.predict(images, tta=tta, larger=larger, align=align, cache=cache, progress=screen)
    for bad in found.bad[:_SHOWN]:
        screen.warn(f"left out: {bad.id} ({bad.reason})")
    if found.bad:
        listing = out.with_suffix(".bad_files.csv")
        write_bad_files(listing, found.bad)
        screen.warn(f"{counted(len(found.bad), 'file')} left out; {listing} says why")
    views = found.predictions.logits.shape[0]
    if tta is not None and views < tta:
        screen.warn(f"averaged over {views} views, not {tta}: the run's augmentation policy leaves images as they are")
    if out.suffix.lower() == ".npz":
        found.predictions.save(out)
    else:
        table = {"probabilities": probabilities, "sample_submission": sample_submission, "positive": positive}
        found.to_csv(out, **table, warn=screen.warn)
    screen.say(f"{len(found.predictions):,} predictions in {out}")
    if views == 1 or opened.record["state"] != "finished":
        return
    from etude.refine.views import gain_by_views

    try:
        valid = opened.validation()
    except EtudeError as problem:  # the predictions are whole, and do not need it
        screen.warn(f"what views bought is not known: {problem}")
        return
    if len(valid.logits) > 1:
        screen.say(f"views, on the run's {len(valid):,} validation images: {gain_by_views(valid).described}")
