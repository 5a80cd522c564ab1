"""One process at a time works on a run; a run whose process is gone is known as killed."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from etude.core import files as record_lock
from etude.core.errors import EtudeError
from etude.journal.index import list_runs
from etude.journal.runs import LOCK_NAME, is_alive, is_locked, process_start, read_run, working_on
from recorded_runs import edit_record, forked, opened


def refuse(text: str) -> None:
    raise AssertionError(text)


def state(folder: Path) -> str:
    """Return the run's state, which its list shows too."""
    (summary,) = list_runs(folder.parent)
    assert summary.state == read_run(folder)["state"]
    return summary.state


@pytest.fixture
def at_work(tmp_path: Path) -> Callable[[], int]:
    """Return a function that starts a process which works on ``run``, and returns its number once it does."""

    def work() -> None:
        with working_on(tmp_path / "run", refuse):
            opened(tmp_path / "run")
            time.sleep(60)

    def start() -> int:
        child = forked(work)
        for _ in range(1000):
            if (tmp_path / "run" / "run.json").exists():
                return child
            time.sleep(0.01)
        raise AssertionError("it did not begin")

    return start


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_second_is_refused_until_the_first_is_killed(tmp_path: Path, at_work: Callable[[], int]):
    folder = tmp_path / "run"
    child = at_work()
    assert (is_locked(folder), state(folder)) == (True, "running")
    with pytest.raises(EtudeError, match=rf"process {child} .*{platform.node()}"), working_on(folder, refuse):
        pass
    end(child)
    assert (is_locked(folder), state(folder)) == (False, "killed")
    with working_on(folder, refuse):
        assert is_locked(folder)
    assert not (folder / LOCK_NAME).exists()


def test_whoever_asks_for_a_moment_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock, answers = record_lock.lock_descriptor, [False]
    monkeypatch.setattr(
        record_lock, "lock_descriptor", lambda *given, **more: not answers or answers.pop() or lock(*given, **more)
    )
    with working_on(tmp_path / "run", refuse):
        assert (tmp_path / "run" / LOCK_NAME).exists()


def test_a_lock_on_a_file_that_has_been_removed_holds_nobody_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first removes its lock file between the second's opening and locking it."""
    lock, path = record_lock.lock_descriptor, tmp_path / "run" / LOCK_NAME

    def late(handle: int, *, blocking: bool) -> bool:
        monkeypatch.setattr(record_lock, "lock_descriptor", lock)
        path.unlink()
        return lock(handle, blocking=blocking)

    monkeypatch.setattr(record_lock, "lock_descriptor", late)
    with working_on(tmp_path / "run", refuse):
        assert is_locked(tmp_path / "run")


def test_without_locks_it_says_so_and_goes_by_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def lacking(handle: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(record_lock, "lock_descriptor", lacking)
    said: list[str] = []
    with working_on(tmp_path / "run", said.append):
        opened(tmp_path / "run")
        assert state(tmp_path / "run") == "running"
        edit_record(tmp_path / "run", pid=2**22 + 1, process="gone")
        assert state(tmp_path / "run") == "killed"
    assert len(said) == 1
    assert str(tmp_path / "run") in said[0]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(EtudeError, match="file"), working_on(folder, refuse):
            pass


def test_a_number_that_another_process_has_now_is_not_the_run(tmp_path: Path):
    """Also a Python one: what counts is when it began."""
    opened(tmp_path / "run")
    assert state(tmp_path / "run") == "running"
    with subprocess.Popen(["python3", "-c", "input()"], stdin=subprocess.PIPE) as other:
        edit_record(tmp_path / "run", pid=other.pid)
        assert state(tmp_path / "run") == "killed"
        edit_record(tmp_path / "run", process=process_start(other.pid))
        assert state(tmp_path / "run") == "running"
        edit_record(tmp_path / "run", process=None)  # of an older etude
        assert state(tmp_path / "run") == "running"
        other.communicate()
    assert state(tmp_path / "run") == "killed"


def test_the_start_of_a_process_tells_it_from_others():
    assert process_start(os.getpid()) == process_start(os.getpid()) != process_start(os.getppid())
    assert process_start(2**22 + 1) is None
    assert is_alive(os.getpid(), process_start(os.getpid()))
    assert not is_alive(os.getpid(), process_start(os.getppid()))


def test_on_another_host_it_works_as_long_as_it_writes_its_record(tmp_path: Path, at_work: Callable[[], int]):
    folder = tmp_path / "run"
    child = at_work()
    edit_record(folder, host="another")
    long_ago = time.time() - 3600
    os.utime(folder / "run.json", (long_ago, long_ago))
    assert state(folder) == "running"  # its lock says so
    end(child)
    assert state(folder) == "killed"
    os.utime(folder / "run.json")
    assert state(folder) == "running"  # the lock of another host may not be seen here
