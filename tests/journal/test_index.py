from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import asdict
from pathlib import Path

import pytest

from etude.core.errors import EtudeError
from etude.journal import index as index_module
from etude.journal.index import DAMAGED, INDEX_NAME, RunSummary, find_run, list_runs
from etude.journal.runs import add_note, set_tags
from recorded_runs import edit_record, forked, opened, write_killed_run, write_run


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs whose records have been read, as opposed to taken from the index."""
    names, own = list[str](), index_module.read_run

    def read_run(folder: Path):
        names.append(folder.name)
        return own(folder)

    monkeypatch.setattr(index_module, "read_run", read_run)
    return names


def test_a_run_is_summed_up(tmp_path: Path):
    record = write_run(tmp_path / "first", right=range(75), tags=["baseline"], recipe="quick")
    add_note(tmp_path / "first", "good")
    (run,) = list_runs(tmp_path)
    assert (run.path, run.id, run.kind, run.state, run.where) == ("first", record.id, "fit", "finished", "")
    assert (run.accuracy, run.log_loss, run.validation_images, run.images) == (0.75, 0.25, 100, 500)
    assert (run.recipe, run.seed, run.command) == ("quick", 3, "etude fit train")
    assert (run.tags, run.notes) == (("baseline",), ("good",))
    written = json.loads(json.dumps(asdict(run)))
    assert RunSummary(**{**written, "tags": run.tags, "notes": run.notes}) == run


def test_only_what_has_changed_is_read_again(tmp_path: Path, read: list[str]):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name)
    assert {run.path for run in list_runs(tmp_path)} == {"a", "b", "c"} == {*read}
    read.clear()
    before = list_runs(tmp_path)
    assert read == []
    edit_record(tmp_path / "b", recipe="other")
    set_tags(tmp_path / "c", ["late"])
    shutil.rmtree(tmp_path / "a")
    after = {run.path: run for run in list_runs(tmp_path)}
    assert sorted(read) == ["b", "c"]
    assert (after.keys(), after["b"].recipe, after["c"].tags) == ({"b", "c"}, "other", ("late",))
    assert {run.path for run in before} == {"a", "b", "c"}
    read.clear()
    (tmp_path / INDEX_NAME).unlink()  # harmless
    assert {run.path: run for run in list_runs(tmp_path)} == after
    assert sorted(read) == ["b", "c"]


def test_half_an_index_goes_with_the_next_one(tmp_path: Path):
    write_run(tmp_path / "a")
    left, own = (tmp_path / f".{INDEX_NAME}.{pid}.tmp" for pid in (2**22 + 1, os.getpid()))
    for half in (left, own):
        half.write_text("{")
    list_runs(tmp_path)
    assert not left.exists()
    assert (tmp_path / INDEX_NAME).exists()


def test_a_record_written_anew_at_the_same_size_and_time_is_read_again(tmp_path: Path):
    record = opened(tmp_path / "a", recipe="one")
    list_runs(tmp_path)
    file = tmp_path / "a" / "run.json"
    was = file.stat()
    other = file.with_name("other.json")
    other.write_text(file.read_text().replace('"one"', '"two"'))
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    os.replace(other, file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    assert list_runs(tmp_path)[0].recipe == "two"
    record.close("finished")
    assert list_runs(tmp_path)[0].state == "finished"


def test_the_newest_comes_first_and_runs_nest(tmp_path: Path):
    study = write_run(tmp_path / "study", kind="ablate")
    write_run(tmp_path / "study" / "arms" / "mixup" / "seed-1", parent=study.id)
    write_run(tmp_path / "old")
    (tmp_path / "study" / "checkpoints").mkdir()
    shutil.copytree(tmp_path / "old", tmp_path / "study" / "checkpoints" / "copy")
    shutil.copytree(tmp_path / "old", tmp_path / ".hidden")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    for name, started in (("old", "2025-01-01"), ("study", "2025-01-03"), ("study/arms/mixup/seed-1", "2025-01-02")):
        edit_record(tmp_path / name, started=f"{started}T00:00:00+00:00")
    found = list_runs(tmp_path)
    assert [run.path for run in found] == ["study", "study/arms/mixup/seed-1", "old"]
    assert found[1].parent == found[0].id == study.id


def test_a_killed_run_is_told_from_one_at_work(tmp_path: Path):
    mine = opened(tmp_path / "mine")
    for name in ("dead", "elsewhere", "old-and-dead"):
        write_killed_run(tmp_path / name, "head")
    edit_record(tmp_path / "elsewhere", host="another-machine")
    edit_record(tmp_path / "old-and-dead", host=None)
    for _ in range(2):  # from the records, then from the index
        states = {run.path: run.state for run in list_runs(tmp_path)}
        assert states == {"mine": "running", "dead": "killed", "elsewhere": "running", "old-and-dead": "killed"}
    assert {run.where for run in list_runs(tmp_path)} == {"before its first stage", "in head after 0.0 s"}
    mine.close("finished")
    assert {run.path: run.state for run in list_runs(tmp_path)}["mine"] == "finished"


def test_a_damaged_record_is_listed_with_its_reason(tmp_path: Path):
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad")
    (tmp_path / "bad" / "run.json").write_text("{")
    for _ in range(2):
        found = {run.path: run for run in list_runs(tmp_path)}
        assert (found["good"].state, found["bad"].state) == ("finished", DAMAGED)
        assert "is not valid JSON" in str(found["bad"].error)
        assert find_run(tmp_path, "bad") == tmp_path / "bad"


@pytest.mark.parametrize("content", [b"not a database, and longer than its header" * 100, b""])
def test_a_damaged_index_is_built_anew(tmp_path: Path, content: bytes):
    write_run(tmp_path / "a")
    list_runs(tmp_path)
    (tmp_path / INDEX_NAME).write_bytes(content)
    assert [run.path for run in list_runs(tmp_path, warn=pytest.fail)] == ["a"]
    assert [*json.loads((tmp_path / INDEX_NAME).read_text())["runs"]] == ["a"]


@pytest.mark.parametrize("runs", [[], None, {"a": ["x"]}, {"a": ["x", {}]}, {"a": ["x", {"tags": 1}]}])
def test_an_index_of_another_shape_is_built_anew(tmp_path: Path, runs: object):
    write_run(tmp_path / "a")
    list_runs(tmp_path)
    content = {**json.loads((tmp_path / INDEX_NAME).read_text()), "runs": runs}
    (tmp_path / INDEX_NAME).write_text(json.dumps(content))
    assert [run.path for run in list_runs(tmp_path, warn=pytest.fail)] == ["a"]


def test_an_index_damaged_in_its_middle_is_built_anew(tmp_path: Path):
    for number in range(40):
        shutil.copytree(tmp_path / "0", tmp_path / str(number)) if number else write_run(tmp_path / "0")
    list_runs(tmp_path)
    file = tmp_path / INDEX_NAME
    content = file.read_bytes()
    for damaged in (content[:4096], content[:4096] + b"\xff" * (len(content) - 4096)):
        file.write_bytes(damaged)
        assert len(list_runs(tmp_path, warn=pytest.fail)) == 40


def test_an_index_of_another_version_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]):
    write_run(tmp_path / "a")
    list_runs(tmp_path)
    monkeypatch.setattr(index_module, "_VERSION", 5)
    read.clear()
    assert [run.path for run in list_runs(tmp_path)] == ["a"]
    assert read == ["a"]


def test_without_a_place_for_the_index_the_records_are_read(tmp_path: Path):
    write_run(tmp_path / "a")
    (tmp_path / INDEX_NAME).mkdir()
    told: list[str] = []
    for _ in range(2):
        assert [run.path for run in list_runs(tmp_path, told.append)] == ["a"]
    assert len(told) == 2
    assert "cannot be kept" in told[0]
    assert "all records are read anew" in told[0]
    assert stat.S_ISDIR((tmp_path / INDEX_NAME).stat().st_mode)


def test_names_that_are_not_utf8(tmp_path: Path):
    write_run(tmp_path / "na\udcffme")
    for _ in range(2):
        assert [run.path for run in list_runs(tmp_path)] == ["na\udcffme"]


def test_runs_that_end_at_once_lose_nothing(tmp_path: Path):
    def end(number: int) -> None:
        write_run(tmp_path / f"run-{number}")
        assert f"run-{number}" in {run.path for run in list_runs(tmp_path, warn=pytest.fail)}

    children = [forked(lambda number=number: end(number)) for number in range(6)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    indexed = list_runs(tmp_path)
    assert {run.path: run.state for run in indexed} == {f"run-{number}": "finished" for number in range(6)}
    (tmp_path / INDEX_NAME).unlink()
    assert list_runs(tmp_path) == indexed


def test_a_run_is_found_by_folder_name_or_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs = tmp_path / "runs"
    record = write_run(runs / "study" / "first")
    monkeypatch.chdir(tmp_path)
    for name in ("runs/study/first", "study/first", "first", record.id, record.id[:4].upper()):
        assert find_run(Path("runs"), name).resolve() == runs / "study" / "first"
    assert find_run(Path("nowhere"), "runs/study/first") == Path("runs/study/first")
    with pytest.raises(EtudeError, match=r"there is no run 'study/frist' below runs: .* Did you mean 'study/first'\?"):
        find_run(Path("runs"), "study/frist")
    with pytest.raises(EtudeError, match="there is no run"):
        find_run(Path("nowhere"), "first")
    with pytest.raises(EtudeError, match="there is no run"):
        find_run(Path("runs"), record.id[:3])  # too short for an id
    write_run(runs / "first")
    assert find_run(Path("runs"), "first") == Path("runs/first")
    write_run(runs / "other" / "second")
    write_run(runs / "study" / "second")
    with pytest.raises(EtudeError, match="'second' may be any of"):
        find_run(Path("runs"), "second")


def test_data_are_known_by_command_description_or_fingerprint(tmp_path: Path):
    write_run(tmp_path / "a", command=["etude", "fit", "data/Birds"])
    (run,) = list_runs(tmp_path)
    assert [run.is_about(word) for word in ("birds", "Class Folders", "abc1", "ABC123", "cats", "bc123")] == [
        *[True] * 4,
        *[False] * 2,
    ]


def test_no_folder_of_runs(tmp_path: Path):
    with pytest.raises(EtudeError, match="there is no folder .*nothing of runs"):
        list_runs(tmp_path / "nothing")
    assert list_runs(tmp_path) == []
