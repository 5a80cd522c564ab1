"""The final table of a run: every second in a row, and what was thrown away called so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from etude.journal.report.folder import RunFolder
from etude.journal.report.tables import steps_of
from etude.journal.runs import IN_NO_STAGE
from etude.study.run import job, network
from etude.training.task import DivergedError
from picture_folders import write_classes, write_flat

QUICK = ("--recipe", "quick", "--set", "model.feature_size=64")
# Stage 1 is right on nearly all images; a small network of random weights learns nothing in so few steps.
WORSE = ("--set", "model.backbone=tiny", "--set", "model.feature_size=64", "--set", "timeline.length=2st")


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def rows_of(out: str) -> dict[str, float]:
    """Return the seconds of each row of the table."""
    table = out[out.index("stage  ") : out.index("Everything is in")]
    found = re.findall(r"^(\S.*?) {2,}(\d+\.\d)\b", table, re.MULTILINE)
    return {name: float(seconds) for name, seconds in found}


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "train", count=15)


@pytest.mark.parametrize("unlabelled_images", [False, True])
def test_the_rows_are_all_of_the_time(etude, tmp_path, train, monkeypatch, unlabelled_images: bool):
    run, seen = tmp_path / "run", []
    own = network.predict

    def predict(*given: Any, **named: Any) -> Any:
        seen.append([stage["name"] for stage in record_of(run)["stages"] if stage["state"] == "running"])
        return own(*given, **named)

    monkeypatch.setattr(network, "predict", predict)
    rounds = ("--set", "unlabeled.method=rounds", "--set", "unlabeled.neighbours=0")
    pool = ("--unlabeled", write_flat(tmp_path / "pool"), *rounds)
    ended = etude("fit", train, *QUICK, *(pool if unlabelled_images else ()), "--out", "run")
    assert ended.code == 0, ended.err
    record = record_of(run)
    parts = [stage["seconds"] for stage in record["stages"]] + [record["seconds_in_no_stage"]]
    assert sum(parts) == pytest.approx(record["seconds"])
    assert [step.seconds for step in steps_of(RunFolder.read(run).record)] == pytest.approx(parts)
    rows = rows_of(ended.out)
    whole = rows.pop("in all")
    assert sum(rows.values()) == pytest.approx(whole, abs=0.05 * (len(rows) + 1) + 1e-9)
    assert IN_NO_STAGE in rows
    if unlabelled_images:
        assert {"unlabelled images", "predict unlabelled", "round 1"} <= rows.keys()
        assert seen
        assert all(len(stages) == 1 for stages in seen), seen


def test_a_stage_2_that_is_worse_is_not_kept(etude, tmp_path, train):
    ended = etude("fit", train, *WORSE, "--set", "augment.policy=photos", "--set", "predict.tta=2", "--out", "run")
    assert ended.code == 0, ended.err
    record = record_of(tmp_path / "run")
    assert record["result"]["kept"] == ["head"]
    assert {stage["name"]: stage["kept"] for stage in record["stages"] if "kept" in stage}["fine-tune"] is False
    assert "fine-tune: not kept" in rows_of(ended.out)
    steps = {step.name: step for step in steps_of(record)}
    assert steps["fine-tune"].gained < 0
    assert steps["TTA"].gained == pytest.approx(steps["TTA"].accuracy - steps["head"].accuracy)
    shown = etude("journal", "show", "run")
    assert re.search(r"fine-tune +finished, not kept", shown.out)


def test_a_stage_2_that_diverges_is_not_kept(etude, tmp_path, train, monkeypatch):
    def diverges(*_: object, **__: object) -> None:
        raise DivergedError("the loss was no number")

    monkeypatch.setattr(job, "finetune_candidate", diverges)
    ended = etude("fit", train, *WORSE, "--out", "run")
    assert ended.code == 0, ended.err
    assert "fine-tune: not kept" in rows_of(ended.out)
    assert {step.name: step.kept for step in steps_of(record_of(tmp_path / "run"))}["fine-tune"] is False
