"""How far a run has come, as a person would say it; also of one that was killed and could not say so."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KILLED = "killed"
"""What a run is that says ``running`` though its process is gone; no record says so of itself."""


def state_of(run: Mapping[str, Any]) -> str:
    """Return the state of a run, given at least ``state``, ``pid`` and ``host`` of its record.

    One of the record's states, or :data:`KILLED`. Of a run on another machine only its own word is known.

    >>> state_of({"state": "finished", "pid": 1, "host": None})
    'finished'
    """
    if run["state"] != "running" or run["host"] not in (None, platform.node()) or is_alive(run["pid"]):
        return run["state"]
    return KILLED


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


def is_alive(pid: int) -> bool:
    """Whether the process runs on this machine and is a Python one.

    After a restart of the machine its number may be another program's.
    """
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
