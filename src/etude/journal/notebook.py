"""``notebook.ipynb``: a finished run to look at and to go on from, cell by cell; it runs as it stands.

A notebook is small JSON (the format of github.com/jupyter/nbformat, version 4.5), so it is written without a library.
It holds no word of the run itself: what it shows it reads from the folder that it lies in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etude.core.files import write_json
from etude.journal.record_read import read_run

NAME = "notebook.ipynb"

_FORMAT = {"nbformat": 4, "nbformat_minor": 5}
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

Cell = dict[str, Any]


def write_notebook(folder: Path) -> Path:
    """Write ``notebook.ipynb`` into a run's folder and return its path.

    It has cells for what the run has made by now: settings, data, network, stages, timeline, curves, validation scores,
    and a prediction. Run it with Jupyter, opened in that folder.

    Raises:
        EtudeError: the folder holds no run, its record is damaged, or the file cannot be written.
    """
    cells = [*_numbered(_cells(folder, read_run(folder)))]
    metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    path = folder / NAME
    write_json(path, {"cells": cells, "metadata": metadata, **_FORMAT})
    return path


def _cells(folder: Path, record: dict[str, Any]) -> Iterator[Cell]:
    """Yield the cells; those about what the run has not made are left out."""
    yield from _opening()
    yield _text("## Settings", "What differs from the recipe, then every setting, as asked for and as used.")
    yield _code("view.changed()")
    yield _code("view.settings()")
    yield _text("## Data and preprocessing", "The images, their split, and what is done to each.")
    yield _code("view.data()")
    models = [*folder.glob("model.json"), *folder.glob("fold-*/model.json")]
    if models:
        yield _text("## Network", "Its size and its cost, what an image goes through before it, and its parts.")
        yield _code("view.architecture()")
        yield _code("view.layers()")
    yield _text("## Stages", "A gain is in points of accuracy, over what was kept before.")
    yield _code("view.stages()")
    if record.get("rounds"):
        yield _code("view.rounds()")
    if record.get("timelines"):
        yield _text("## Timeline", "Every quantity that was scheduled, as planned and as it ran.")
        yield _code("view.timeline()")
    if [*folder.glob("history.csv"), *folder.glob("fold-*/history.csv")]:
        yield _text("## Curves")
        yield _code("view.curves()")
    if (folder / "valid.npz").is_file():
        yield from _validation()
    if models and (folder / "gallery.npz").is_file():
        yield from _prediction()
    yield _text("## Where it ran")
    yield _code("view.environment()")


def _opening() -> Iterator[Cell]:
    yield _text(
        "# A run of etude",
        "This notebook reads the run in the folder that it lies in. Run all cells from the top; `report.html` beside it"
        " tells more at a glance.",
    )
    yield _code(
        "import warnings",
        "",
        "# Libraries that bring bars of their own for notebooks ask for another package; nothing here shows them.",
        'warnings.filterwarnings("ignore", message="IProgress not found")',
        "",
        "import etude",
        "from etude.journal.notebook_view import RunView",
        "",
        "view = RunView.here()",
        "run = etude.load(view.folder)",
        "run",
    )


def _validation() -> Iterator[Cell]:
    yield _text("## Validation", "None of these images was trained on. Intervals hold 95%.")
    yield _code("view.scores()")
    yield _code("view.confusions()")
    yield _code("view.classes()")
    yield _code("view.calibration()")
    yield _text(
        "The predictions themselves: `probabilities()` is an array with a row an image and a column a class, and "
        "`labels` holds positions in `classes`."
    )
    yield _code("valid = run.validation()", "valid.probabilities().shape, valid.classes[:5]")


def _prediction() -> Iterator[Cell]:
    yield _text(
        "## Predict an image",
        "Here it is one of the validation images, as small as the run's gallery holds it, so its probabilities may "
        "differ a little from those above. Give your own instead: an image, a folder, or a table.",
    )
    yield _code("images = view.example()", "prediction = run.predict(images)", "view.guesses(prediction.predictions)")
    yield _text('`prediction.to_csv("submission.csv")` writes the labels of all of them.')


def _text(*paragraphs: str) -> Cell:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines("\n\n".join(paragraphs))}


def _code(*lines: str) -> Cell:
    empty = {"execution_count": None, "outputs": []}
    return {"cell_type": "code", "metadata": {}, "source": _lines("\n".join(lines)), **empty}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _numbered(cells: Iterator[Cell]) -> Iterator[Cell]:
    """Give each cell the id that the format asks for."""
    for number, cell in enumerate(cells, 1):
        yield {"id": f"cell-{number}", **cell}
