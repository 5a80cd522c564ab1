"""What a report shows of a run's parts: the runs below it, its folds and rounds, and what an ablation found."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from etude.core.files import write_json
from etude.journal.index import INDEX_NAME
from etude.journal.record import RunRecord
from etude.journal.report.folder import RunFolder
from etude.journal.report.report import lift_of, parts_of, write_report
from journal.pages import Page
from recorded_runs import edit_record, opened, write_killed_run, write_run

TRICK = {"mode": "leave-one-out", "gain": 0.0125, "low": -0.004, "high": 0.029, "p_corrected": 0.0002, "seconds": -3.4}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of a finished run with a report, a killed one, a damaged one, and one that is not its own."""
    record = opened(tmp_path / "study", kind="ablate", recipe="default")
    arms = tmp_path / "study" / "arms"
    write_run(arms / "with <b> & 50%" / "seed-0", right=range(90), parent=record.id)
    write_killed_run(arms / "without" / "seed-0")
    edit_record(arms / "without" / "seed-0", parent=record.id)
    write_run(arms / "other", right=range(10))
    (arms / "broken").mkdir()
    (arms / "broken" / "run.json").write_text("{")
    write_report(arms / "with <b> & 50%" / "seed-0")
    record.close("finished")
    return tmp_path / "study"


def test_runs_below_are_listed_with_state_score_and_link(study: Path):
    parts = {part.name: part for part in parts_of(RunFolder.read(study))}
    assert set(parts) == {"arms/with <b> & 50%/seed-0", "arms/without/seed-0", "arms/broken"}
    done, killed = parts["arms/with <b> & 50%/seed-0"], parts["arms/without/seed-0"]
    assert (done.kind, done.state, done.accuracy, done.log_loss) == ("fit", "finished", 0.9, 0.25)
    assert (study / unquote(done.link)).is_file()
    assert (killed.state, killed.link, killed.accuracy) == ("killed", "", None)
    assert killed.note == "in fine-tune after 0.0 s"
    assert (parts["arms/broken"].kind, parts["arms/broken"].state) == ("", "damaged")
    assert "is not valid JSON" in parts["arms/broken"].note
    assert not (study / INDEX_NAME).exists()


def test_the_page_shows_them_and_links_to_their_reports(study: Path):
    page = Page.read(write_report(study))
    assert page.unclosed == []
    assert "parts" in page.ids()
    (link,) = [link["href"] for link in page.all("a") if not link["href"].startswith("#")]
    assert (study / unquote(link)).is_file()
    said = page.said()
    assert "arms/with <b> & 50%/seed-0" in said
    assert "90.00%" in said
    assert "in fine-tune after 0.0 s" in said
    assert "Contribution of each step" not in said  # the steps of a study are runs beside each other


def fold_stage(record: RunRecord, name: str, right: float, loss: float = 0.5) -> None:
    with record.stage(name) as stage:
        stage.score("accuracy", right)
        stage.score("log_loss", loss)


def test_folds_have_the_score_of_the_stage_that_was_kept(tmp_path: Path):
    record = opened(tmp_path)
    for number, (head, tuned) in enumerate(((0.7, 0.9), (0.8, 0.6)), 1):
        fold_stage(record, f"head (fold {number}/2)", head)
        fold_stage(record, f"fine-tune (fold {number}/2)", tuned)
    record.set("result", {"kept": ["finetune", "head"], "accuracy": 0.85})
    record.close("finished")
    parts = parts_of(RunFolder.read(tmp_path))
    assert [(part.name, part.kind, part.state, part.accuracy) for part in parts] == [
        ("fold 1", "fold", "finished", 0.9),
        ("fold 2", "fold", "finished", 0.8),
    ]
    assert [part.note for part in parts] == ["kept: fine-tune", "kept: head"]
    assert all(part.seconds is not None and part.seconds >= 0 for part in parts)


def test_a_fold_that_was_stopped_has_what_it_reached(tmp_path: Path):
    record = opened(tmp_path)
    fold_stage(record, "head (fold 1/3)", 0.7)
    with pytest.raises(KeyboardInterrupt), record.stage("fine-tune (fold 1/3)"):
        raise KeyboardInterrupt
    record.close("interrupted")
    (part,) = parts_of(RunFolder.read(tmp_path))
    assert (part.name, part.state, part.accuracy, part.note) == ("fold 1", "interrupted", 0.7, "")


def test_rounds_are_parts_whether_they_were_judged_or_not(tmp_path: Path):
    record = opened(tmp_path)
    fold_stage(record, "round 1", 0.8)
    record.set("rounds", [{"name": "round 1", "kept": True, "told": "kept: better", "pseudo_labels": "9 of 10"}])
    with pytest.raises(ValueError, match="out"), record.stage("round 2"):
        raise ValueError("out")
    record.close("failed", "out")
    parts = parts_of(RunFolder.read(tmp_path))
    assert [(part.name, part.kind, part.state, part.accuracy, part.note) for part in parts] == [
        ("round 1", "round", "finished", 0.8, "kept"),
        ("round 2", "round", "failed", None, ""),
    ]
    said = Page.read(write_report(tmp_path)).said()
    assert "9 of 10" in said
    assert "kept: better" in said


def test_a_plain_run_has_no_parts(tmp_path: Path):
    write_run(tmp_path / "run")
    assert parts_of(RunFolder.read(tmp_path / "run")) == []
    assert "parts" not in Page.read(write_report(tmp_path / "run")).ids()


@pytest.mark.parametrize(
    ("metric", "unit", "gain", "interval"),
    [
        ("accuracy", "points of accuracy", "+1.25", "−0.40 to +2.90"),
        ("log_loss", "log loss saved", "+0.0125", "−4e-3 to +0.029"),
    ],
)
def test_an_ablation_tells_what_each_trick_bought(tmp_path: Path, metric: str, unit: str, gain: str, interval: str):
    record = opened(tmp_path, kind="ablate")
    tricks = [{"trick": "<i>mixup", "verdict": "helps", **TRICK}]
    write_json(tmp_path / "ablation.json", {"metric": metric, "level": 0.95, "tricks": tricks})
    (tmp_path / "lift.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    record.close("finished")
    found = lift_of(RunFolder.read(tmp_path))
    assert found is not None
    assert found["unit"] == unit
    assert found["rows"] == [("<i>mixup", "leave-one-out", gain, interval, "< 0.001", "helps", "−3.4 s")]
    page = Page.read(write_report(tmp_path))
    assert "tricks" in page.ids()
    assert "<i>mixup" in page.said()
    assert [image["src"][:22] for image in page.all("img")] == ["data:image/png;base64,"]


def test_an_interval_that_is_not_known_is_a_dash(tmp_path: Path):
    opened(tmp_path, kind="ablate").close("finished")
    tricks = [{"trick": "ema", "verdict": "cannot tell", **TRICK, "low": None, "high": None}]
    write_json(tmp_path / "ablation.json", {"metric": "accuracy", "level": 0.95, "tricks": tricks})
    found = lift_of(RunFolder.read(tmp_path))
    assert found is not None
    assert found["rows"][0][3] == "–"


@pytest.mark.parametrize("content", [{}, {"metric": "speed", "tricks": []}, {"metric": "accuracy", "tricks": [1]}])
def test_an_ablation_that_is_damaged_is_named(tmp_path: Path, content: dict[str, Any]):
    opened(tmp_path, kind="ablate").close("finished")
    write_json(tmp_path / "ablation.json", content)
    page = Page.read(write_report(tmp_path))
    assert "tricks" not in page.ids()
    assert any("tricks" in words or "speed" in words for words in page.words)
