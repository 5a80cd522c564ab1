"""Names, paths and hashes of many images, each kind in one block of memory instead of a Python object for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np

from etude.core.files import digest_of

DIGEST_BYTES = len(digest_of("")) // 2


class Texts(Sequence[str]):
    """Many texts, as UTF-8 one after the other: 8 bytes each besides their letters."""

    __slots__ = ("_ends", "_letters")

    def __init__(self, texts: Iterable[str]) -> None:
        letters, ends = bytearray(), array("q")
        for text in texts:
            letters += text.encode("utf-8", "surrogatepass")  # names of files may hold bytes that are no UTF-8
            ends.append(len(letters))
        self._letters, self._ends = bytes(letters), np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Texts: ...
    def __getitem__(self, place: SupportsIndex | slice) -> str | Texts:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        at = range(len(self))[place]
        start = int(self._ends[at - 1]) if at else 0
        return self._letters[start : int(self._ends[at])].decode("utf-8", "surrogatepass")

    def take(self, indices: np.ndarray | Sequence[int]) -> Texts:
        """Return the texts at ``indices``, in that order."""
        return Texts(self[index] for index in indices)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return self._letters == other._letters and np.array_equal(self._ends, other._ends)
        return tuple(self) == tuple(other) if isinstance(other, (tuple, list)) else NotImplemented

    def __repr__(self) -> str:
        return f"Texts({[*self[:3]]}{', ...' if len(self) > 3 else ''})"


class Paths(Sequence[Path]):
    """Many files, named relative to one folder, or absolute where they are elsewhere."""

    __slots__ = ("names", "root")

    def __init__(self, root: Path, names: Texts) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> Paths: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Path | Paths:
        if isinstance(place, slice):
            return Paths(self.root, self.names[place])
        return self.root / self.names[place]


class Digests(Sequence[str]):
    """Many hashes of :func:`etude.core.files.digest_of`, uint8 (N, 12); read one by one they are hexadecimal."""

    __slots__ = ("values",)

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @staticmethod
    def from_hex(text: str) -> Digests:
        """Return the hashes that ``text`` holds one after the other, as :meth:`hex` writes them."""
        return Digests(np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, DIGEST_BYTES))

    def hex(self) -> str:
        """Return all hashes as one text."""
        return self.values.tobytes().hex()

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, place: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Digests: ...
    def __getitem__(self, place: SupportsIndex | slice) -> str | Digests:
        return Digests(self.values[place]) if isinstance(place, slice) else self.values[place].tobytes().hex()

    def take(self, indices: np.ndarray | Sequence[int]) -> Digests:
        """Return the hashes at ``indices``, in that order."""
        return Digests(self.values[np.asarray(indices, dtype=np.int64)])

    def keys(self) -> np.ndarray:
        """Return (N,) values that can be compared and sorted, equal where the hashes are."""
        return np.ascontiguousarray(self.values).view(f"S{DIGEST_BYTES}").reshape(-1)

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self.values, other.values) if isinstance(other, Digests) else NotImplemented
