from __future__ import annotations

import os
from pathlib import Path

import pytest

from etude.core.errors import EtudeError
from etude.journal.index import find_garbage, remove_garbage
from etude.journal.runs import add_note, set_tags
from recorded_runs import edit_record, forked, opened, write_killed_run, write_run


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    pid = forked(lambda: None)
    os.waitpid(pid, 0)
    return pid


def fill(folder: Path, *names: str, size: int = 1000) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)


def found(runs: Path, unfinished: bool = False) -> set[str]:
    return {item.path.relative_to(runs).as_posix() for item in find_garbage(runs, unfinished)}


def test_checkpoints_of_finished_runs_go_those_of_stopped_ones_only_when_asked(tmp_path: Path):
    for name, state in (("done", "finished"), ("stopped", "interrupted"), ("working", "running")):
        write_run(tmp_path / name)
        edit_record(tmp_path / name, state=state)
        fill(tmp_path / name, "checkpoints/last.ckpt", "fold-2/checkpoints/last.ckpt", "fold-2/model.safetensors")
    assert found(tmp_path) == {"done/checkpoints", "done/fold-2/checkpoints"}
    more = {"stopped/checkpoints", "stopped/fold-2/checkpoints"}
    assert found(tmp_path, unfinished=True) == {"done/checkpoints", "done/fold-2/checkpoints", *more}


def test_halves_of_killed_writers_go(tmp_path: Path, gone: int):
    write_run(tmp_path / "done")
    fill(tmp_path / "done", f".valid.npz.{gone}.tmp", f"fold-1/.model.json.{gone}.tmp", f".test.npz.{os.getpid()}.tmp")
    fill(tmp_path / "done", ".mine.tmp", "x.1.tmp")
    fill(tmp_path / "done", f"checkpoints/.last.ckpt.{gone}.tmp")  # goes with its folder
    assert found(tmp_path) == {f"done/.valid.npz.{gone}.tmp", f"done/fold-1/.model.json.{gone}.tmp", "done/checkpoints"}


def test_runs_that_made_nothing_go_but_for_those_somebody_cares_for(tmp_path: Path, gone: int):
    for name in ("failed", "noted", "tagged", "made", "around"):
        opened(tmp_path / name).close("failed", "no images")
    write_killed_run(tmp_path / "killed")
    opened(tmp_path / "working")
    fill(tmp_path / "failed", "bad_files.csv", "report.html", f".run.json.{gone}.tmp")
    fill(tmp_path / "made", "model.json")
    add_note(tmp_path / "noted", "why?")
    set_tags(tmp_path / "tagged", ["later"])
    write_run(tmp_path / "around" / "arms" / "one")
    fill(tmp_path, "no-run/thesis.txt")
    assert found(tmp_path) == {"failed", "killed"}


def test_nothing_of_a_damaged_run_goes(tmp_path: Path):
    opened(tmp_path / "bad").close("failed", "no images")
    (tmp_path / "bad" / "run.json").write_text("{")
    fill(tmp_path / "bad", "checkpoints/last.ckpt")
    assert found(tmp_path, unfinished=True) == set()


def test_links_to_elsewhere_are_left_alone(tmp_path: Path):
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    write_run(runs / "done")
    fill(elsewhere, "checkpoints/last.ckpt")
    (runs / "done" / "checkpoints").symlink_to(elsewhere / "checkpoints")
    (runs / "done" / "fold-1").symlink_to(elsewhere)
    assert found(runs) == set()


def test_what_is_found_is_measured_and_removed(tmp_path: Path):
    write_run(tmp_path / "done")
    fill(tmp_path / "done", "checkpoints/a", "checkpoints/deep/b", size=5000)
    opened(tmp_path / "failed").close("failed")
    items = find_garbage(tmp_path)
    sizes = {item.path.name: item.size for item in items}
    assert 10_000 <= sizes["checkpoints"] <= 30_000
    assert remove_garbage(items) == sum(sizes.values())
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["done"]
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["run.json", "valid.npz"]
    assert remove_garbage(items) == 0  # somebody else was faster
    assert find_garbage(tmp_path) == []
    with pytest.raises(EtudeError, match="there is no folder"):
        find_garbage(tmp_path / "nothing")
