"""The page over all runs: what it lists, where it links, and that it stands alone."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.journal.record import RunRecord
from etude.journal.report.report import write_report
from etude.journal.runs import add_note
from etude.journal.site import render_site
from journal.pages import Page
from run_folders import CLASSES, HOSTILE, accuracy, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scored runs, three of them on the same images, a failed one, and one below another."""
    folder = tmp_path_factory.mktemp("my runs")
    for seed in range(3):
        write_run(folder / f"run {seed}", seed=seed, tags=["baseline"] if seed else [])
    write_run(folder / "study" / "arm#1", HOSTILE, count=60, tags_of_data="other")
    write_report(folder / "run 0")
    write_report(folder / "study" / "arm#1")
    add_note(folder / "run 1", "look at <this>")
    record = RunRecord.open(
        folder / "bad", command=["etude", "fit", "nothing"], recipe="quick", settings={}, changed={}, seed=0
    )
    record.close("failed", "no image in nothing")
    return folder


def links(page: Page) -> list[str]:
    return [link["href"] for link in page.all("a")]


def test_all_runs_are_listed_with_scores_and_links(runs: Path, tmp_path: Path):
    out = render_site(runs, tmp_path / "site")
    assert out == tmp_path / "site" / "index.html"
    page = Page.read(out)
    said = page.said()
    assert page.unclosed == []
    assert "5 runs, 4 of them with a score, on 2 sets of images" in said
    assert {"run 0", "run 1", "run 2", "study/arm#1", "bad"} <= set(page.words)
    for told in ("#baseline", "look at <this>", "failed", "before its first stage", "class folders other", "★"):
        assert told in said


def test_every_link_leads_to_a_report_or_a_folder(runs: Path, tmp_path: Path):
    for out in (tmp_path / "deep" / "er" / "all.html", runs / "index.html"):
        page = Page.read(render_site(runs, out))
        targets = [(out.parent / unquote(link)).resolve() for link in links(page)]
        assert len(targets) == 5
        assert all(target.exists() for target in targets)
        assert sum(target.name == "report.html" for target in targets) == 2
    (runs / "index.html").unlink()


def test_it_stands_alone_and_runs_its_own_script_only(runs: Path, tmp_path: Path):
    page = Page.read(render_site(runs, tmp_path / "site.html"))
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert not [held for _, held in page.elements if {"src", "onclick", "onerror"} & set(held)]
    policy = next(meta["content"] for meta in page.all("meta") if "Content-Security-Policy" in meta.values())
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy


def test_search_finds_what_the_table_does_not_show(runs: Path, tmp_path: Path):
    page = Page.read(render_site(runs, tmp_path / "site.html"))
    rows = [row for row in page.all("tr") if "data-words" in row]
    assert len(rows) == 5
    assert any("etude fit nothing" in row["data-words"] for row in rows)
    assert {row["data-key"] for row in rows} == {"c880", "c880other", ""}


def test_the_best_on_its_images_is_marked(runs: Path, tmp_path: Path):
    page = Page.read(render_site(runs, tmp_path / "site.html"))
    same = max(accuracy(Predictions.load(runs / f"run {seed}" / "valid.npz")) for seed in range(3))
    other = accuracy(Predictions.load(runs / "study" / "arm#1" / "valid.npz"))
    assert {words for words in page.words if words.startswith("★ ")} == {
        f"★ {100 * same:.2f}%",
        f"★ {100 * other:.2f}%",
    }


def test_the_way_of_the_accuracy_is_drawn_where_there_are_enough_runs(runs: Path, tmp_path: Path):
    page = Page.read(render_site(runs, tmp_path / "site.html"))
    (chart,) = page.all("svg")
    assert "accuracy of 3 runs in the order of their start" in chart["aria-label"]


def test_a_record_that_is_damaged_is_listed_as_such(tmp_path: Path):
    runs = tmp_path / "runs"
    write_run(runs / "good", CLASSES)
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{", encoding="utf-8")
    said = Page.read(render_site(runs, tmp_path / "site.html")).said()
    assert "2 runs, 1 of them with a score" in said
    assert "damaged" in said


def test_no_runs_make_an_empty_page(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    said = Page.read(render_site(tmp_path / "runs", tmp_path / "site.html")).said()
    assert "0 runs" in said


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(EtudeError, match="runs"):
        render_site(tmp_path / "none", tmp_path / "site.html")
    assert list(tmp_path.iterdir()) == []
