"""``etude predict``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from etude.cli.common import (
    AsJson,
    Quiet,
    check_tta,
    checked_out,
    expanded,
    name_left_out,
    opened_run,
    print_json,
    screen_for,
)
from etude.core.errors import EtudeError
from etude.core.text import counted, percent
from etude.study.run.request import Flag

if TYPE_CHECKING:
    from etude.journal.screen import Screen
    from etude.run import Prediction, Run

_SHOWN = 20  # images printed one by one; thousands are for --out
_DRAWN = 60  # on a sheet
_SIDE = 160  # pixels of an image there


def predict(
    run: Path,
    *images: Path,
    out: Path | None = None,
    top: int = 3,
    sheet: Path | None = None,
    tta: int | None = None,
    larger: float | None = None,
    align: bool | None = None,
    probabilities: Flag = False,
    sample_submission: Path | None = None,
    positive: str | None = None,
    cache: Path | None = None,
    trust: Flag = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Predict images with a finished run: print the most probable classes, or write them all into a file.

    Parameters
    ----------
    run
        Folder of a run that ``etude fit`` wrote.
    images
        A folder of images, a table with an image column, or one or more image files.
    out
        The CSV file to write; with the ending .npz the full predictions are saved.
    top
        Classes that are printed of each image, the most probable one first.
    sheet
        Draw the first 60 images with their predictions into this .png or .svg file.
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
    given = {"--positive": positive is not None, "--sample-submission": sample_submission is not None}
    of_file = {"--probabilities": probabilities, **given}
    if out is not None:
        out = checked_out(out, of_file)
    elif any(of_file.values()):
        option = next(name for name, asked in of_file.items() if asked)
        raise EtudeError(f"{option} is about a file of predictions: name it with --out FILE.csv")
    if sheet is not None:
        from etude.journal.figures import check_figure_path

        check_figure_path(sheet := expanded(sheet))
    check_tta(tta)
    if top < 1:
        raise EtudeError(f"--top is {top}; give the number of classes to print, 1 or more")
    if not images:
        raise EtudeError(f"no images to predict were given: name a folder, a table or image files after {run}")

    from etude.core.submission import checked_positive

    screen = screen_for(as_json=as_json, quiet=quiet)
    opened = opened_run(run, trust, screen)
    if positive is not None:
        checked_positive(positive, opened.classes)
    which = images[0] if len(images) == 1 else images
    found = opened.predict(which, tta=tta, larger=larger, align=align, cache=cache, progress=screen)
    views = found.predictions.logits.shape[0]
    if tta is not None and views < tta:
        screen.warn(f"averaged over {views} views, not {tta}: the run's augmentation policy leaves images as they are")
    if out is not None and out.suffix.lower() == ".npz":
        found.predictions.save(out)
    elif out is not None:
        table = {"probabilities": probabilities, "sample_submission": sample_submission, "positive": positive}
        found.to_csv(out, **table, warn=screen.warn)
    name_left_out(found.bad, out, screen)
    if out is not None:
        screen.say(f"{len(found.predictions):,} predictions in {out}")
        if views > 1 and opened.record["state"] == "finished":
            _say_gain(opened, screen)
    if as_json:
        print_json([{"id": name, "top": [_named(one) for one in classes]} for name, classes in found.top(top).items()])
    elif out is None:
        _show(found, top, screen_for())  # what was asked for, also when quiet
    if sheet is not None:
        _draw(sheet, found, top, screen)


def _named(guess: tuple[str, float]) -> dict[str, object]:
    return dict(zip(("class", "probability"), guess, strict=True))


def _first(found: Prediction, most: int) -> Prediction:
    return replace(found, predictions=found.predictions.take(range(min(most, len(found.predictions)))))


def _show(found: Prediction, top: int, screen: Screen) -> None:
    for name, classes in _first(found, _SHOWN).top(top).items():
        screen.say(f"{name}: {', '.join(_in_words(classes))}")
    if (more := len(found.predictions) - _SHOWN) > 0:
        screen.say(f"and {counted(more, 'more image')}: --out FILE.csv writes them all")


def _in_words(classes: Sequence[tuple[str, float]]) -> list[str]:
    return [f"{label} {percent(share)}" for label, share in classes]


def _draw(sheet: Path, found: Prediction, top: int, screen: Screen) -> None:
    from etude.journal.figures.sheet import draw_sheet

    best = _first(found, _DRAWN).top(top)
    draw_sheet(sheet, found.pictures([*best], _SIDE), [[*_in_words(classes), name] for name, classes in best.items()])
    rest = f", the first of {len(found.predictions):,}" if len(best) < len(found.predictions) else ""
    screen.say(f"{counted(len(best), 'image')} in {sheet}{rest}")


def _say_gain(opened: Run, screen: Screen) -> None:
    """Show what the views bought on the run's own validation images."""
    from etude.refine.views import gain_by_views

    try:
        valid = opened.validation()
    except EtudeError as problem:  # the predictions are whole, and do not need it
        screen.warn(f"what views bought is not known: {problem}")
        return
    if len(valid.logits) > 1:
        screen.say(f"views, on the run's {len(valid):,} validation images: {gain_by_views(valid).described}")
