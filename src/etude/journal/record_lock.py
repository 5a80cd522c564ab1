"""One process at a time works on a run: it holds a lock in the run's folder, which ends with the process."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from etude.core.errors import EtudeError
from etude.core.files import NO_LOCKS, explained_write

LOCK_NAME = ".lock"
_TRIES, _PAUSE = 10, 0.05  # whoever only asks whether the lock is free holds it for a moment


@contextmanager
def working_on(folder: Path, warn: Callable[[str], None]) -> Generator[None]:
    """Make ``folder`` and hold its lock, which the system releases when the process ends, however it ends.

    Args:
        folder: of the run.
        warn: receives a sentence where the file system has no locks.

    Raises:
        EtudeError: another process holds the lock, or the folder cannot be written.
    """
    path = folder / LOCK_NAME
    with explained_write(path):
        refuse_file(folder)
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(path)
    if handle is None:
        warn(f"{folder} is on a file system without locks: take care that no other process works on the same run")
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        if handle is not None:
            os.close(handle)


def refuse_file(folder: Path) -> None:
    """Refuse a file where the folder of a run is to be."""
    if folder.exists() and not folder.is_dir():
        raise EtudeError(f"{folder} is a file, and a run needs a folder: choose another --out")


def is_locked(folder: Path) -> bool | None:
    """Whether a process holds the lock of the run in ``folder``; None where that cannot be found out."""
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return not lock_descriptor(handle, blocking=False)
    except OSError:
        return None
    finally:
        os.close(handle)


def at_work(folder: Path, pid: int | None, host: str | None) -> EtudeError:
    """Return the refusal of a run that a process works on."""
    who = "another process" if pid is None else f"process {pid}"
    where = "" if host is None else f" (on host {host})"
    return EtudeError(f"{who} is still at work on {folder}{where}: wait for it, stop it first, or choose another --out")


def _locked(path: Path) -> int | None:
    """Return the file at ``path``, open and locked, with this process and host in it; None without locks."""
    for _ in range(_TRIES):
        handle, mine = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
        try:
            # The one before may have removed the file between the two calls: a lock on it would hold nobody off.
            mine = lock_descriptor(handle, blocking=False) and os.fstat(handle).st_nlink > 0
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            raise
        finally:
            if not mine:
                os.close(handle)
        if mine:
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode())
            return handle
        time.sleep(_PAUSE)
    holder: dict[str, object] = {}
    with suppress(OSError, ValueError):
        holder = dict(json.loads(path.read_text()))
    pid, host = holder.get("pid"), holder.get("host")
    raise at_work(path.parent, pid if isinstance(pid, int) else None, host if isinstance(host, str) else None)
