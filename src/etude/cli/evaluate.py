"""``etude evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from etude.cli.common import AsJson, Quiet, check_tta, expanded, name_left_out, opened_run, print_json, screen_for
from etude.core.errors import EtudeError
from etude.core.text import counted, percent, short_number, shortened
from etude.study.run.request import Flag

if TYPE_CHECKING:
    from etude.journal.report.scores import ClassRow, Score
    from etude.journal.screen import Screen
    from etude.run import Prediction

_LETTERS = 24  # of a class
_CLASSES = 10  # rows of the table; all of them are in the page


def evaluate(
    run: Path,
    images: Path,
    *,
    out: Path | None = None,
    tta: int | None = None,
    larger: float | None = None,
    align: bool | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: Path | None = None,
    cache: Path | None = None,
    trust: Flag = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score a finished run on labelled images: accuracy and other scores with 95% intervals, classes and confusions.

    The labels are compared with the predictions, and used for nothing else.

    Parameters
    ----------
    run
        Folder of a run that ``etude fit`` wrote.
    images
        Labelled images: a folder with one sub-folder a class, or a table with an image and a label column.
    out
        Where to write more: a page for a browser (.html), or the predictions with labels (.npz).
    tta
        Views to average over, 1 to 128; by default the views that the run used.
    larger
        One of the views has an input whose side is larger by this factor, such as 1.25.
    align
        Where 50 images or more are of another kind than the training images, align their features to those; by default
        as the run did.
    image_column
        The table's column of images, when it is not found automatically.
    label_column
        The table's column of labels, when it is not found automatically.
    image_root
        Folder that the table's image names start from.
    cache
        Folder of decoded images; by default ~/.cache/etude.
    trust
        Read a run's files also where they are not those that the run wrote: changed by hand, or damaged.
    """
    if out is not None and (out := expanded(out)).suffix.lower() not in (".html", ".npz"):
        raise EtudeError(f"--out is {out}; give a file that ends in .html (a page) or .npz (predictions with labels)")
    check_tta(tta)
    screen = screen_for(as_json=as_json, quiet=quiet)
    opened = opened_run(run, trust, screen)
    found = opened.evaluate(
        images, tta=tta, larger=larger, align=align, cache=cache, progress=screen,
        image_column=image_column, label_column=label_column, image_root=image_root,
    )  # fmt: skip
    name_left_out(found.bad, out, screen)
    scores = found.scores()
    if out is not None and out.suffix.lower() == ".npz":
        found.predictions.save(out)
    elif out is not None:
        found.to_html(out, f"{run.resolve().name} on {images.resolve().name}", f"{images}, predicted by {run}.")
    if as_json:
        rows = {one.name.replace(" ", "_"): {"value": one.value, "low": one.low, "high": one.high} for one in scores}
        print_json({"images": len(found.predictions), "scores": rows})
        return
    shown = screen_for()  # what was asked for, also when quiet
    _show(found, scores, shown)
    if opened.accuracy is not None:
        shown.say(f"validation accuracy of the run: {percent(opened.accuracy)}")
    if out is not None:
        screen.say(f"{'the page' if out.suffix.lower() == '.html' else 'predictions with labels'}: {out}")


def _show(found: Prediction, scores: list[Score], screen: Screen) -> None:
    from etude.journal.report.scores import class_rows

    known = found.evaluated()
    # A bootstrap over images that are all right, or all wrong, has no width: it says nothing.
    rows = [
        [one.name, _written(one, one.value), _written(one, one.low), _written(one, one.high), one.how]
        if one.low < one.high
        else [one.name, _written(one, one.value), "", "", ""]
        for one in scores
    ]
    occurring = len(set(known.labels.tolist()))
    title = f"{counted(len(known.labels), 'image')}, {counted(occurring, 'class', 'classes')}"
    screen.table(title, ("score", "value", "95% from", "to", "interval"), rows)
    classes = class_rows(known)
    title = f"The {_CLASSES} weakest of {len(classes):,} classes" if len(classes) > _CLASSES else "By class"
    columns = ("class", "images", "recall", "95% from", "to", "precision", "predicted as")
    screen.table(title, columns, [_row(one) for one in classes[:_CLASSES]])


def _row(row: ClassRow) -> list[str | int]:
    confused = "" if row.confused is None else f"{shortened(row.confused[0], _LETTERS)} × {row.confused[1]:,}"
    shares = [percent(share) for share in (row.recall, row.low, row.high, row.precision)]
    return [shortened(row.name, _LETTERS), row.images, *shares, confused]


def _written(score: Score, value: float) -> str:
    return percent(value) if score.is_share else short_number(value)
