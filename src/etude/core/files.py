"""Files that are either whole or absent: written next to their path, then moved there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from etude.core.errors import EtudeError

_NO_PLACE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT),
        *(errno.ENAMETOOLONG, errno.ELOOP),
    }
)
_CHECKSUM = "checksum"  # the key of it in a table of JSON

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path next to ``path``; move it into place when the block succeeds.

    A reader never sees half a file, and a crash leaves the old content.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained_write(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # what went wrong before it is the news
                temporary.unlink()


@contextmanager
def explained_write(path: Path) -> Generator[None]:
    """Turn a full disk or a forbidden path into one sentence that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EtudeError(
                f"the disk is full: {path} could not be written; what was finished before is kept, "
                "so free some space or choose another place, and run again"
            ) from error
        if error.errno in _NO_PLACE:
            raise EtudeError(
                f"{path} cannot be written ({os.strerror(error.errno)}): choose a place where you may write"
            ) from error
        raise


def lock_descriptor(handle: int, *, blocking: bool) -> bool:
    """As :func:`filelock.lock_descriptor`; the package takes 75 ms to load, which most commands do without."""
    import filelock

    return filelock.lock_descriptor(handle, blocking=blocking)


def lock_file(path: Path, *, wait: bool = False) -> int | None:
    """Return the file at ``path``, open and locked until it is closed or its process ends; None without locks.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
    """
    while True:
        handle, locked = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
        try:
            # The one before may have removed the file between the two calls: a lock on it would hold nobody off.
            if not lock_descriptor(handle, blocking=wait):
                raise BlockingIOError(path)
            with suppress(FileNotFoundError):
                if locked := os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        finally:
            if not locked:
                os.close(handle)


@contextmanager
def reading(path: Path, kind: str, hint: str = "it was damaged or is another kind of file") -> Generator[None]:
    """Turn anything that goes wrong while ``path`` is read into one sentence that names it; every reader starts here.

    A pipe or a device is refused before it is opened, since reading it may never end. ``kind`` is such as ``"a readable
    Parquet file"``; ``hint`` says what it means that it cannot be read as that, or how to go on.
    """
    try:
        _refuse_irregular(path, kind)
        yield
    except FileNotFoundError as problem:
        raise EtudeError(f"{problem.filename or path} does not exist") from None
    except BaseException as problem:
        # A panic of a library written in Rust, such as Polars, is no Exception.
        foreign = isinstance(problem, Exception) or type(problem).__name__ == "PanicException"
        if isinstance(problem, EtudeError) or not foreign:
            raise
        if isinstance(problem, OSError) and problem.errno is not None:
            raise EtudeError(f"{path} cannot be read ({os.strerror(problem.errno)})") from problem
        raise EtudeError(f"{path} is not {kind} ({_reason(problem)}): {hint}") from problem


def _refuse_irregular(path: Path, kind: str) -> None:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise EtudeError(f"{path} is not {kind}: it is a folder")
    if not stat.S_ISREG(mode):
        raise EtudeError(f"{path} is not {kind}: it is a pipe or a device, so save its content to a file and give that")


def _reason(problem: BaseException) -> str:
    if isinstance(problem, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(problem, RecursionError):
        return "it is nested too deeply"
    if isinstance(problem, UnicodeDecodeError):
        return f"it is not UTF-8 text: {problem.reason}"
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically.

    Half of a surrogate pair, which represents a byte of a file name that is not UTF-8, is written as the JSON escape
    of the same code: :func:`read_json` returns the same name.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    with reading(path, "valid JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def write_checked_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a table as :func:`write_json` does, with a checksum in it that :func:`read_checked_json` compares."""
    write_json(path, {**value, _CHECKSUM: _sum_of(value)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_checked_json` wrote; a table without a checksum, of an earlier version, is read too."""
    read = read_json(path)
    if not isinstance(read, dict):
        raise EtudeError(f"{path} holds no table of names and values: it was damaged or is another kind of file")
    table = cast("dict[str, Any]", read)
    known = table.pop(_CHECKSUM, None)
    if known is not None and known != _sum_of(table):
        raise EtudeError(f"{path} has changed since it was written: its checksum is another")
    return table


def _sum_of(value: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(value, sort_keys=True))


def hash_of_file(path: Path) -> str:
    """Return the BLAKE2b hash (16 bytes, hexadecimal) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest_of(*parts: str | bytes) -> str:
    """Return a short hexadecimal hash over all parts; the boundaries between them count."""
    hasher = hashlib.sha256()  # processors have instructions for it: twice as fast as BLAKE2 on whole image files
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()[:24]
