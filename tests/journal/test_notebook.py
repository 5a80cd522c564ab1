"""``notebook.ipynb``: it runs as it stands, and shows any run's names as text."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest
from markupsafe import escape
from nbclient import NotebookClient

import etude
import recorded_runs
from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.journal.figures.lines import Series, line_chart
from etude.journal.notebook import RunView, Sheet, Table, write_notebook
from etude.journal.record import read_run
from etude.journal.report.charts import Figure
from etude.journal.screen import Screen
from etude.study.run.request import Request
from etude.study.run.start import fit
from picture_folders import write_classes
from run_folders import CLASSES, HOSTILE, write_run

SVG = "{http://www.w3.org/2000/svg}"
TABLES: tuple[Callable[[RunView], Table], ...] = (
    *(RunView.changed, RunView.settings, RunView.data, RunView.environment, RunView.architecture, RunView.layers),
    *(RunView.stages, RunView.scores, RunView.classes, RunView.advice),
)
SHEETS: tuple[Callable[[RunView], Sheet], ...] = (
    *(RunView.timeline, RunView.curves, RunView.confusions, RunView.calibration),
)


def drawn(html: str) -> list[ElementTree.Element]:
    """The pictures in a sheet, parsed."""
    sources = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', html)
    return [ElementTree.fromstring(base64.b64decode(source)) for source in sources]


def code_of(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def ran(book: Any, folder: Path, **options: Any) -> list[Any]:
    """Run all cells in ``folder`` and return what they put out."""
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}, **options).execute()
    return [output for cell in book.cells for output in cell.get("outputs", ())]


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return RunView(write_run(tmp_path_factory.mktemp("runs") / "first"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return RunView(write_run(tmp_path_factory.mktemp("runs") / "second", HOSTILE))


@pytest.mark.slow
def test_it_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    settings = ["train.epochs=2", "augment.mixup=0.2"]
    folder = fit(
        Request(write_classes(tmp_path / "train"), settings=settings, out=tmp_path / "run"), Screen(quiet=True)
    )
    book = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbformat.validate(book)
    outputs = ran(book, folder)
    assert [output for output in outputs if output.output_type in ("error", "stream")] == []
    found = [output.data for output in outputs if "data" in output]
    shown = [data["text/html"] for data in found if "text/html" in data]
    sheets = [[picture.get("aria-label", "") for picture in drawn(html)] for html in shown if drawn(html)]
    for told, sheet in zip(("Confusion matrix", "learning rate", "Loss", "calibration error"), sheets, strict=True):
        assert any(told in title for title in sheet)
    tables = [html for html in shown if "<table" in html]
    assert any("augment.mixup" in table and "0.2" in table for table in tables)
    guessed = next(table for table in tables if "probability" in table)
    assert "round" in guessed
    assert "striped" in guessed
    assert f"{read_run(folder)['result']['accuracy']:.2%}" in found[0]["text/plain"]

    view = RunView(folder)
    asked = view.asked()
    assert asked["train"] == str(tmp_path / "train")
    assert asked["settings"] == {"train.epochs": 2, "augment.mixup": 0.2}
    again = etude.fit(**asked | {"recipe": "quick", "out": tmp_path / "again"})
    assert again.record["seed"] == view.record["seed"]


@pytest.mark.slow
def test_where_no_run_is_one_sentence_says_so(tmp_path: Path):
    folder = recorded_runs.write_run(tmp_path / "run").folder
    book = nbformat.read(write_notebook(folder), as_version=4)
    book.cells = [next(cell for cell in book.cells if cell.cell_type == "code")]
    (error,) = ran(book, tmp_path, allow_errors=True)
    assert error.ename == "NoRunHereError"
    assert len(error.traceback) == 1
    assert error.traceback[0].startswith(f"{tmp_path} holds no run.json: ")


def test_it_has_cells_for_what_the_run_has_made(tmp_path: Path):
    whole = code_of(write_notebook(write_run(tmp_path / "whole")))
    assert {"view.timeline()", "view.curves()", "view.scores()", "view.architecture()"} <= {*whole}
    assert any("run.predict" in code for code in whole)
    little = recorded_runs.write_run(tmp_path / "little").folder
    code = code_of(write_notebook(little))
    assert "view.scores()" in code
    assert {"view.timeline()", "view.curves()", "view.rounds()", "view.architecture()"}.isdisjoint(code)
    assert not any("run.predict" in one for one in code)


def test_it_is_a_notebook_and_holds_no_word_of_the_run(tmp_path: Path):
    one, other = write_notebook(write_run(tmp_path / "one")), write_notebook(write_run(tmp_path / "other", HOSTILE))
    assert one.read_bytes() == other.read_bytes()
    nbformat.validate(nbformat.read(one, as_version=4))


def test_the_surest_errors_are_pictures_with_both_names(view: RunView):
    errors = view.errors()
    assert errors.pictures
    html = errors._repr_html_()
    assert html.count("<img") == len(errors.pictures)
    assert all(one.label in html and one.guess in html and one.label != one.guess for one in errors.pictures)
    assert len(repr(errors).splitlines()) == len(errors.pictures)


def test_what_is_folded_has_its_outputs_hidden(tmp_path: Path):
    cells = nbformat.read(write_notebook(write_run(tmp_path / "run")), as_version=4).cells
    folded = [cell.source for cell in cells if cell.metadata.get("jupyter", {}).get("outputs_hidden")]
    assert folded == ["view.layers()", "view.settings()", "view.environment()"]
    order = [cell.source for cell in cells if cell.source in ("view.scores()", "view.settings()")]
    assert order == ["view.scores()", "view.settings()"]


def test_each_picture_stands_alone_and_tells_what_it_shows(view: RunView):
    for show in SHEETS:
        sheet = show(view)
        html = sheet._repr_html_()
        assert len(drawn(html)) == len(sheet.figures)
        for figure, picture in zip(sheet.figures, drawn(html), strict=True):
            assert escape(figure.title[1:]) in html
            assert all(escape(name) in html for _, name in figure.legend)
            assert escape(figure.caption) in html
            style = picture.findtext(f"{SVG}style") or ""
            used = {*re.findall(r"var\(--([\w-]+)\)", ElementTree.tostring(picture, encoding="unicode"))}
            assert used
            assert all(f"--{name}:" in style for name in used)
            assert "prefers-color-scheme" not in style  # the notebook's ground is white


def test_every_class_of_a_chart_that_the_report_styles_is_styled(view: RunView):
    for show in SHEETS:
        for picture in drawn(show(view)._repr_html_()):
            style = picture.findtext(f"{SVG}style") or ""
            used = {name for part in picture.iter() for name in (part.get("class") or "").split()}
            shapes = {name for name in used if name.startswith(("dot", "grid", "fill", "cell", "ideal"))}
            assert all(re.search(rf"\.{name}\b", style) for name in shapes)


@pytest.mark.parametrize("show", [*TABLES, *SHEETS], ids=lambda show: show.__name__)
def test_names_with_markup_are_shown_as_text(hostile: RunView, show: Callable[[RunView], Any]):
    shown = show(hostile)
    if isinstance(shown, Sheet):
        page = shown._repr_html_()
        assert {*re.findall(r"<(\w+)", page)} <= {"div", "strong", "span", "img"}
        tags = {part.tag for picture in drawn(page) for part in picture.iter()}
        assert tags.isdisjoint({f"{SVG}script", f"{SVG}img", f"{SVG}b"})
    else:
        page = shown._repr_html_()
        assert {*re.findall(r"<(\w+)", page)} <= {"table", "thead", "tbody", "tr", "th", "td"}
        assert page.count("<td") == len(shown.columns) * len(shown.rows)


def test_characters_that_xml_cannot_hold_do_not_break_a_picture():
    chart = Figure("a\x00b\udcff", line_chart([Series("one", [0, 1], [2, 3])], "a line", x_label="step"))
    html = Sheet([chart])._repr_html_()
    assert len(drawn(html)) == 1
    assert "A\N{REPLACEMENT CHARACTER}b\\udcff" in html


def test_tables_tell_the_run(view: RunView):
    assert [row[0] for row in view.changed().rows] == ["train.lr"]
    stages = {row[0]: row for row in view.stages().rows}
    assert stages["fine-tune"][3:5] == ("90.00%", "+10.00")
    assert {row[0] for row in view.classes().rows} == {*CLASSES}
    assert view.scores().rows[0][0] == "accuracy"
    assert dict(view.architecture().rows)["backbone"] == "tiny"


def test_what_is_not_there_is_said(tmp_path: Path):
    bare = RunView(recorded_runs.write_run(tmp_path / "run").folder)
    for show in (RunView.timeline, RunView.curves, RunView.architecture, RunView.rounds, RunView.example):
        with pytest.raises(EtudeError, match="holds no"):
            show(bare)


def test_the_example_is_a_validation_image_and_guesses_are_sorted(view: RunView):
    assert view.example().read_bytes()[:3] in (b"\xff\xd8\xff", b"RIF")
    found = Predictions.from_probabilities(["one.png"], CLASSES, [[0.2, 0.7, 0.1]])
    assert view.guesses(found).rows == [
        ("one.png", "striped", "70.00%"), ("one.png", "round", "20.00%"), ("one.png", "dotted", "10.00%"),
    ]  # fmt: skip
