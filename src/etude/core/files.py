"""Files that are either whole or absent: written beside their place, then moved there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError

_NO_PLACE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT),
        *(errno.ENAMETOOLONG, errno.ELOOP),
    }
)

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""Errors of a file system that has no locks."""


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path beside ``path``; move it into place when the block succeeds.

    A reader never sees half a file, and a crash leaves the old content.

    Raises:
        EtudeError: the disk is full or the place cannot be written.
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
    """Turn a full disk or a forbidden place into one sentence that names ``path``."""
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


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically.

    Half of a surrogate pair, which stands for a byte of a file name that is not UTF-8, is written as the JSON escape
    of the same code: :func:`read_json` returns the same name.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        EtudeError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EtudeError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EtudeError(f"{path} is not valid JSON ({error}); it was damaged or is another kind of file") from None


def digest_of(*parts: str | bytes) -> str:
    """Return a short hexadecimal hash over all parts; the boundaries between them count.

    >>> digest_of("ab", "c") == digest_of("a", "bc")
    False
    """
    hasher = hashlib.sha256()  # processors have instructions for it: twice as fast as BLAKE2 on whole image files
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()[:24]
