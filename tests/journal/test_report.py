"""``report.html``: what it says, that it stands alone, and that it works with what there is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.core.files import read_json, write_json
from etude.core.predictions import Predictions
from etude.journal.record import RunRecord
from etude.journal.report.folder import RunFolder
from etude.journal.report.gallery import BUDGET
from etude.journal.report.report import write_report
from journal.pages import Page
from recorded_runs import write_killed_run
from run_folders import CLASSES, HOSTILE, drawn_predictions, write_gallery, write_run

SECTIONS = {
    *("steps", "timeline", "curves", "confusions", "errors", "calibration", "health", "samples", "network"),
    *("settings", "reproduce"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with everything in it, and its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "first", tags=["baseline"])
    write_report(folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_every_section_is_there_and_linked(whole: Path):
    page = Page.read(whole / "report.html")
    assert page.ids() >= SECTIONS
    assert {link["href"] for link in page.all("a")} == {f"#{name}" for name in SECTIONS}
    assert page.unclosed == []


def test_headline_tells_score_interval_time_and_model(whole: Path):
    said = Page.read(whole / "report.html").said()
    valid = Predictions.load(whole / "valid.npz")
    right = int((valid.predicted() == valid.labels).sum())
    assert f"{100 * right / 120:.2f}%" in said
    assert "95% Wilson interval" in said
    assert "95% bootstrap interval" in said
    assert "120 images" in said
    assert "planned 1 min 3 s" in said
    assert "fine-tune" in said
    assert "finetune" not in said
    assert "#baseline" in said


def test_steps_tell_gain_and_cost(whole: Path):
    said = Page.read(whole / "report.html").said()
    assert "+10.00" in said  # points of accuracy from head to fine-tune
    assert "80.00%" in said
    assert "90.00%" in said


def test_every_figure_is_told_in_words(whole: Path):
    page = Page.read(whole / "report.html")
    charts = page.all("svg")
    assert len(charts) > 8
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 10 for chart in charts)
    labels = " ".join(chart["aria-label"] for chart in charts)
    for word in ("learning rate over the run", "Confusion matrix of 120", "Reliability diagram", "Shares of 3 classes"):
        assert word in labels
    assert all(len(image["alt"]) > 3 for image in page.all("img"))


def test_it_stands_alone_and_is_small(whole: Path):
    file = whole / "report.html"
    page = Page.read(file)
    assert file.stat().st_size < 3_000_000
    sources = [value for _, held in page.elements for name, value in held.items() if name in ("src", "href", "action")]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in file.read_text(encoding="utf-8")
    assert page.all("script") == []
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src" not in policy


def test_reproduction_is_a_command_that_a_shell_takes(whole: Path):
    said = Page.read(whole / "report.html").said()
    assert "etude fit 'train /'" in said
    assert "pip install 'etude @ " in said or "pip install etude==" in said


def test_settings_tell_what_was_asked_and_used(whole: Path):
    page = Page.read(whole / "report.html")
    place = page.words.index("fit")
    assert page.words[place : place + 3] == ["fit", "auto", "squash"]
    assert any("changed" in row.get("class", "") for row in page.all("tr"))


def test_pictures_have_neighbours_and_health_its_findings(whole: Path):
    page = Page.read(whole / "report.html")
    said = page.said()
    assert len(page.all("img")) > 60
    for told in ("nearest in training:", "cut short", "small.png: 8 × 9 px", "Suspected label errors: 7", "AUC 0.712"):
        assert told in said
    assert "similarity 0.991, valid and train, labelled round and striped" in said
    assert "The name" not in said
    assert "the name tells round (98.0% right where guessing gets 33.3%)" in said
    for strength in ("none", "half", "full"):
        assert f"strength {strength}" in said


def test_class_names_are_text_whatever_they_hold(tmp_path: Path):
    plain = Page.read(write_report(write_run(tmp_path / "plain")))
    folder = write_run(tmp_path / "<i>run", HOSTILE)
    hostile = Page.read(write_report(folder))
    assert [tag for tag, _ in hostile.elements if tag in ("script", "b", "i", "raise")] == [
        tag for tag, _ in plain.elements if tag == "i"
    ]
    assert hostile.unclosed == []
    assert all("onerror" not in held for _, held in hostile.elements)
    said = hostile.said()
    assert all(name in said for name in HOSTILE)
    assert "<i>run" in said
    assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in plain.elements}


def test_names_that_are_not_utf8_are_written_as_codes(tmp_path: Path):
    folder = write_run(tmp_path / "run", ("a\udcff", "b", "c"))
    assert "a\\udcff" in Page.read(write_report(folder)).said()


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("history.csv", {"curves"}),
        ("valid.npz", {"confusions"}),
        ("gallery.npz", {"samples"}),
        ("health.json", {"health"}),
        ("test.npz", set()),
        ("model.json", set()),
    ],
)
def test_a_file_that_is_missing_leaves_its_section_out(copy: Path, missing: str, gone: set[str]):
    (copy / missing).unlink()
    page = Page.read(write_report(copy))
    assert page.ids() >= SECTIONS - gone
    assert not page.ids() & gone
    assert page.unclosed == []


def test_without_pictures_the_surest_errors_are_listed(copy: Path):
    (copy / "gallery.npz").unlink()
    valid = Predictions.load(copy / "valid.npz")
    assert valid.labels is not None
    wrong = valid.predicted() != valid.labels
    sure = np.where(wrong, valid.probabilities().max(axis=1), 0.0)
    assert valid.ids[int(sure.argmax())] in Page.read(write_report(copy)).words


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("history.csv", b"epoch,step\n1,2,3\n", "more cells than columns"),
        ("valid.npz", b"PK no", "is not a readable file of predictions"),
        ("gallery.npz", b"PK no", "is not a readable file of thumbnails"),
        ("gallery.json", b'{"samples": [100000]}', "gallery.json does not belong to gallery.npz"),
        ("gallery.json", b"[]", "gallery.json does not belong to gallery.npz"),
        ("health.json", b"{", "is not valid JSON"),
        ("health.json", b'{"label_errors": [1]}', "health.json is damaged"),
        ("model.safetensors", b"\xff\xff\xff\xff", "is not a readable safetensors file"),
        ("model.json", b"3", "holds no table"),
        ("timeline.png", b"<svg>", "timeline.png: a page carries PNG, JPEG and WebP"),
    ],
)
def test_a_file_that_is_damaged_is_named_on_the_page(copy: Path, name: str, content: bytes, told: str):
    (copy / name).write_bytes(content)
    page = Page.read(write_report(copy))
    assert any(told in words for words in page.words)
    assert page.ids() >= {"steps", "settings", "reproduce"}


def test_a_thumbnail_that_is_no_picture_is_named(copy: Path):
    with np.load(copy / "gallery.npz") as archive:
        arrays = dict(archive)
    arrays["thumb_bytes"][:3] = 0
    np.savez(copy / "gallery.npz", **arrays)
    page = Page.read(write_report(copy))
    assert "a page carries PNG, JPEG and WebP pictures" in page.said()
    assert "samples" not in page.ids()


def test_a_timeline_that_cannot_be_read_is_named(copy: Path):
    record = read_json(copy / "run.json")
    record["timelines"]["."]["timeline"]["phases"][0]["lr"] = "fast"
    write_json(copy / "run.json", record)
    page = Page.read(write_report(copy))
    assert "the timeline in run.json cannot be read" in page.said()
    assert "timeline" not in page.ids()


def test_a_picture_of_the_timeline_stands_in_for_a_plan_that_was_not_recorded(copy: Path):
    record = read_json(copy / "run.json")
    del record["timelines"]
    write_json(copy / "run.json", record)
    (copy / "timeline.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    page = Page.read(write_report(copy))
    assert "timeline" in page.ids()
    assert any(image["src"].startswith("data:image/png") and "schedule" in image["alt"] for image in page.all("img"))


def test_a_run_that_failed_has_a_report(tmp_path: Path):
    folder = tmp_path / "run"
    record = RunRecord.open(folder, command=["etude", "fit", "x"], recipe="quick", settings={}, changed={}, seed=0)
    with pytest.raises(EtudeError), record.stage("survey"):
        raise EtudeError("there is no image in x")
    record.close("failed", EtudeError("there is no image in x"))
    page = Page.read(write_report(folder))
    said = page.said()
    assert "It failed in survey" in said
    assert "there is no image in x" in said
    assert page.unclosed == []


def test_a_run_that_was_killed_says_where(tmp_path: Path):
    write_killed_run(tmp_path / "run")
    page = Page.read(write_report(tmp_path / "run"))
    assert "It was killed in fine-tune after" in page.said()
    assert {"state state-killed"} == {item["class"] for item in page.all("li") if "state" in item.get("class", "")}
    assert [item["class"] for item in page.all("span") if "state" in item.get("class", "")] == ["state-killed"]


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("data", {"folds": [{}], "classes": {"a": 1}}, "data: left out"),
        ("data", {"classes": {"a": "many"}}, "balance of the classes: left out"),
        ("plan", {"expected_seconds": [1]}, "steps: left out"),
        ("result", {"kept": 7}, "headline: left out"),
        ("rounds", [{"name": "round 1"}], "parts: left out"),
        ("architecture", {"parameters": "many"}, "network: left out"),
        ("timelines", {".": 3}, "the timeline in run.json cannot be read"),
    ],
)
def test_a_part_of_the_record_that_is_damaged_costs_its_section_only(copy: Path, section: str, value: Any, told: str):
    record = read_json(copy / "run.json")
    write_json(copy / "run.json", {**record, section: value})
    page = Page.read(write_report(copy))
    assert told in page.said()
    assert page.ids() >= {"confusions", "errors", "health", "samples", "settings", "reproduce"}
    assert page.unclosed == []


def test_entries_that_are_damaged_say_nothing(copy: Path):
    record = read_json(copy / "run.json")
    odd = {"warnings": ["x", {"at": 1}, {"text": "<b>last"}], "artefacts": [{}, 3], "environment": {}}
    write_json(copy / "run.json", {**record, **odd})
    page = Page.read(write_report(copy))
    assert "<b>last" in page.words
    assert page.ids() >= SECTIONS


def test_nothing_on_the_page_looks_like_code(copy: Path):
    record = read_json(copy / "run.json")
    notes = {"views that are enough": {"accuracy": 1, "log_loss": 1}, "reused": True, "events": [], "none": None}
    record["stages"][0]["notes"] = notes
    record["changed"] = {"train.clip": None, "stages": ["head"], "train.find_lr": False}
    record["environment"] |= {"gpus": [{"name": "A", "memory_bytes": 1}], "deterministic": False}
    record["data"]["train"] = "my images/train"
    write_json(copy / "run.json", record)
    page = Page.read(write_report(copy))
    said = page.said()
    assert "views that are enough accuracy 1, log loss 1; reused" in said
    assert "my images/train" in said
    assert not re.findall(r"[\[{]'|'[\]}]|\bTrue\b|\bFalse\b|\bNone\b|\bnan\b|\d\.\d{7,}", said)
    # names with underscores are settings, as a person writes them after --set; nothing else is written so
    shown = {word for words in page.words for word in words.split() if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", word)}
    assert shown <= {key.rpartition(".")[2] for key in record["plan"]["resolved"]}


def test_a_run_at_work_says_how_far_it_is(tmp_path: Path):
    folder = tmp_path / "run"
    record = RunRecord.open(folder, command=["etude", "fit", "x"], recipe="quick", settings={}, changed={}, seed=0)
    with record.stage("features"):
        said = Page.read(write_report(folder)).said()
    assert "It was running when this page was written" in said
    assert "in features" in said


def test_folds_are_one_step_and_one_line_each(tmp_path: Path):
    folder = tmp_path / "run"
    record = RunRecord.open(folder, command=["etude", "fit", "x"], recipe="quick", settings={}, changed={}, seed=0)
    for number in (1, 2):
        with record.stage(f"fine-tune (fold {number}/2)") as stage:
            stage.score("accuracy", 0.8 + 0.1 * number)
        sub = folder / f"fold-{number}"
        sub.mkdir()
        rows = [f"{epoch},{0.1 * epoch},{1.0 / epoch}" for epoch in (1, 2, 3)]
        (sub / "history.csv").write_text("\n".join(["epoch,valid_accuracy,valid_loss", *rows]), encoding="utf-8")
    record.close("finished")
    page = Page.read(write_report(folder))
    said = page.said()
    assert "fine-tune × 2" in said
    assert "95.00%" in said  # the mean of 90% and 100%
    assert "validation, fold 2 ends at" in said


def test_a_thousand_classes_and_large_pictures_still_make_a_small_page(tmp_path: Path):
    classes = tuple(f"class number {number}" for number in range(1000))
    folder = write_run(tmp_path / "run", CLASSES)
    valid = drawn_predictions(classes, 3000, 0, "v")
    valid.save(folder / "valid.npz")
    drawn_predictions(classes, 3000, 1, "t", False).save(folder / "test.npz")
    write_gallery(folder, valid, classes, count=96, padding=12_000)
    assert (folder / "gallery.npz").stat().st_size > BUDGET
    page = write_report(folder)
    assert page.stat().st_size < 3_000_000
    said = Page.read(page).said()
    assert re.search(r"\d+ pictures were left out", said)
    assert "more classes, all with a higher F1, are left out" in said


def test_no_run_is_refused(tmp_path: Path):
    with pytest.raises(EtudeError, match="not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_folder_gives_the_same_page(whole: Path):
    before = (whole / "report.html").read_bytes()
    write_report(whole)
    assert (whole / "report.html").read_bytes() == before


def test_unlabelled_validation_images_have_no_score(copy: Path):
    valid = Predictions.load(copy / "valid.npz")
    replace(valid, labels=None).save(copy / "valid.npz")
    page = Page.read(write_report(copy))
    assert "confusions" not in page.ids()
    assert "calibration" in page.ids()  # the balance of the classes is still known


def test_a_folder_is_read_once_into_a_value(whole: Path):
    run = RunFolder.read(whole)
    assert run.problems == ()
    assert [model.folder for model in run.models] == ["."]
    assert run.models[0].history[0]["epoch"] == 1.0
    assert run.gallery is not None
    assert run.gallery.thumbnail(1)[:4] == b"RIFF"
