"""One run at a time decodes the same images; others wait for its store."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from etude.core.files import NO_LOCKS, explained_write


@contextmanager
def alone(path: Path, warn: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock ``path``, waiting for the run that has it; yield whether the file system has locks at all.

    The system releases a lock when its process ends, however it ends. Waiting, and a file system without locks, are
    told.

    Raises:
        EtudeError: the place cannot be written.
    """
    lock = FileLock(path)
    try:
        with explained_write(path):
            held = _acquired(lock, warn)
        if not held:
            warn(
                f"{path.parent} is on a file system without locks, so what this run decodes is kept apart from other "
                "runs' work, and a run that is killed while it decodes begins anew"
            )
        yield held
    finally:
        lock.release()


def _acquired(lock: FileLock, warn: Callable[[str], None]) -> bool:
    try:
        try:
            with warnings.catch_warnings():  # filelock's own words for what is told above
                warnings.simplefilter("ignore")
                lock.acquire(timeout=0)
        except Timeout:
            warn(f"another run decodes the same images (it holds {lock.lock_file}); this one waits for its store")
            lock.acquire()
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    if not isinstance(lock, SoftFileLock):
        return True
    lock.release()  # where there are no locks, filelock takes a marker file, which outlives a killed run
    return False
