"""How far a run has come, as a person would say it; also of one that was killed and could not say so."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.journal.record_lock import is_locked

FILE_NAME = "run.json"
KILLED = "killed"
"""What a run is that says ``running`` though its process is gone; no record says so of itself."""

_SILENCE = 600.0  # seconds; a stage writes its record twenty times as often


def state_of(folder: Path, run: Mapping[str, Any]) -> str:
    """Return the state of the run in ``folder``: what its record ``run`` says, or :data:`KILLED`.

    >>> state_of(Path("runs/first"), {"state": "finished", "pid": 1, "host": None})
    'finished'
    """
    return KILLED if run["state"] == "running" and not _is_at_work(folder, run) else run["state"]


def is_complete(run: Mapping[str, Any]) -> bool:
    """Whether a run has finished, and its report was written then."""
    return run["state"] == "finished" and run.get("reported") is not False  # an older etude writes no such word


def _is_at_work(folder: Path, run: Mapping[str, Any]) -> bool:
    """Whether the process of a run that says ``running`` still works on it.

    Its lock decides. Where it has none (an older etude, a file system without locks) its process does, on this host;
    on another one it is taken to work as long as it writes its record now and then, as every stage does.
    """
    here, locked = run["host"] in (None, platform.node()), is_locked(folder)
    if locked or (here and locked is False and run.get("locked") is True):
        return bool(locked)
    if here:
        return is_alive(run["pid"], run.get("process"))
    try:
        return time.time() - (folder / FILE_NAME).stat().st_mtime < _SILENCE
    except OSError:
        return False


def stopped_at(stages: Sequence[Mapping[str, Any]]) -> str:
    """Return where a run is, or was stopped, that has come through ``stages`` of its record.

    >>> stages = [{"name": "head", "state": "finished", "started": "1", "seconds": 2.0},
    ...           {"name": "fine-tune", "state": "interrupted", "started": "2", "seconds": 61.25}]
    >>> stopped_at(stages), stopped_at(stages[:1]), stopped_at([])
    ('in fine-tune after 61.2 s', 'after head', 'before its first stage')
    """
    if not stages:
        return "before its first stage"
    unfinished = [stage for stage in stages if stage["state"] != "finished"]
    if not unfinished:
        return f"after {stages[-1]['name']}"
    # A resumed run goes through its stages again: the one it was stopped in before may still stand behind it.
    last = max(unfinished, key=lambda stage: (stage["started"], stage["state"] == "running"))
    return f"in {last['name']} after {last['seconds']:.1f} s"


def process_start(pid: int) -> str | None:
    """Return what tells the process ``pid`` from others that had or will have its number; None where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # its name may hold anything
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{fields[19].decode()}"
    except (OSError, IndexError):
        return None


def is_alive(pid: int, start: object = None) -> bool:
    """Whether the process runs on this machine and is a Python one; with ``start``: the one that began then.

    After a restart of the machine, or a while, its number may be another program's.
    """
    if start is not None and (now := process_start(pid)) is not None:
        return now == start
    if pid == os.getpid() or os.name == "nt":  # where Windows would send the signal, there is no harmless question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().lower()
    except OSError:
        return True  # no /proc on this system: its number is all that is known
    return b"python" in words or b"etude" in words
