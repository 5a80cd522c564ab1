"""Arrays in ``.npz`` files: written whole, with a checksum over all of them; read without pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError, listed
from etude.core.files import reading, replacing

Arrays = dict[str, NDArray[Any]]

_CHECKSUM = "sha256"  # the name of the entry
_HINT = "it was damaged or is another kind of file; give an .npz file that etude saved"


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.npz`` of plain arrays and their checksum, whole or not at all; same content, same bytes."""
    # First in the archive: damage to the table of contents can make an entry hide those behind it.
    entries: dict[str, Any] = {_CHECKSUM: np.array(_sum_of(arrays)), **arrays}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **entries)


def load_arrays(path: Path, kind: str, required: Sequence[str] = (), optional: Sequence[str] | None = ()) -> Arrays:
    """Return the arrays of an ``.npz``. Those of :func:`save_arrays` are compared with their checksum.

    Zip's own checksums do not cover names, types and shapes. A file without ours, of an earlier version or another
    tool, is read too. ``kind`` names the content in messages; ``optional`` arrays are returned where they are there,
    None for all.
    """
    with reading(path, f"a readable file of {kind}", _HINT), path.open("rb") as file:
        if file.read(2) != b"PK":  # the first bytes of every zip archive, which an .npz is
            raise ValueError("it is no zip archive")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            held = cast("Mapping[str, Any]", archive)
            if missing := [name for name in required if name not in held]:
                raise EtudeError(
                    f"{path} is not a file of {kind}: it lacks {listed(missing)} (it holds {listed(held)})"
                )
            wanted = [name for name in held if optional is None or name in {*required, *optional}]
            summed = _CHECKSUM in held
            arrays = {name: held[name] for name in (held if summed else wanted)}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("an entry is no array")
    if summed and str(arrays.pop(_CHECKSUM)) != _sum_of(arrays):
        raise EtudeError(f"{path} has changed since it was written: its arrays do not fit their checksum")
    return {name: arrays[name] for name in wanted if name in arrays}


def _sum_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        hasher.update(repr((name, array.dtype.str, array.shape)).encode("utf-8", "surrogatepass"))
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()
