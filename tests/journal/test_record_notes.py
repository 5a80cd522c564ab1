from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from etude.core.errors import EtudeError
from etude.journal.record import read_run
from etude.journal.runs import NOTES_NAME, add_note, set_tags
from recorded_runs import forked, opened


def test_notes_and_tags_are_read_with_the_run(tmp_path: Path):
    record = opened(tmp_path, tags=["baseline"])
    add_note(tmp_path, "  more dropout\noverfits less ")
    set_tags(tmp_path, ["mixup", "lr:1e-3", "mixup"])
    set_tags(tmp_path, ["baseline", "never-there"], remove=True)
    record.close("finished")  # does not know of them
    run = read_run(tmp_path)
    assert run["tags"] == ["mixup", "lr:1e-3"]
    assert [note["text"] for note in run["notes"]] == ["more dropout\noverfits less"]
    assert datetime.fromisoformat(run["notes"][0]["at"]).utcoffset().total_seconds() == 0


def test_resuming_keeps_them_once(tmp_path: Path):
    opened(tmp_path)
    add_note(tmp_path, "killed by the night shift")
    set_tags(tmp_path, ["night"])
    opened(tmp_path, resume=True).close("finished")
    assert [note["text"] for note in read_run(tmp_path)["notes"]] == ["killed by the night shift"]
    assert json.loads((tmp_path / "run.json").read_text())["notes"] == []


def test_a_failed_run_with_a_note_is_not_overwritten(tmp_path: Path):
    opened(tmp_path).close("failed", "no images")
    add_note(tmp_path, "ask Anna for the images")
    with pytest.raises(EtudeError, match="is not empty"):
        opened(tmp_path)


@pytest.mark.parametrize("torn", [b'{"at": "2025', b"\xff\xfe\n", b"[]\n", b'{"tag": 3}\n', b"null"])
def test_a_line_that_is_none_is_passed_over(tmp_path: Path, torn: bytes):
    opened(tmp_path)
    set_tags(tmp_path, ["one"])
    with (tmp_path / NOTES_NAME).open("ab") as file:
        file.write(torn)
    set_tags(tmp_path, ["two"])
    assert read_run(tmp_path)["tags"] == ["one", "two"]


def test_any_text_can_be_noted(tmp_path: Path):
    opened(tmp_path)
    for text in ("ünï <b>", "\udcff from a command line that is not UTF-8", '{"tag": "x"}'):
        add_note(tmp_path, text)
        assert read_run(tmp_path)["notes"][-1]["text"] == text
    assert read_run(tmp_path)["tags"] == []


def test_what_is_no_note_and_no_tag(tmp_path: Path):
    opened(tmp_path)
    with pytest.raises(EtudeError, match="the note is empty"):
        add_note(tmp_path, " \n")
    for tag in ("two words", "", "x" * 41, "a\n"):
        with pytest.raises(EtudeError, match="cannot be a tag"):
            set_tags(tmp_path, ["good", tag])
    assert not (tmp_path / NOTES_NAME).exists()


def test_many_writers_lose_nothing(tmp_path: Path):
    record = opened(tmp_path)

    def annotate(name: int) -> None:
        for number in range(40):
            add_note(tmp_path, f"{name}-{number}")

    writers = [forked(lambda name=name: annotate(name)) for name in range(4)]
    for number in range(20):
        record.warn(f"warning {number}")
    assert [os.waitpid(pid, 0)[1] for pid in writers] == [0] * 4
    run = read_run(tmp_path)
    assert {note["text"] for note in run["notes"]} == {f"{name}-{number}" for name in range(4) for number in range(40)}
    assert len(run["warnings"]) == 20
