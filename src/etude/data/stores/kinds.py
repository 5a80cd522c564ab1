"""The kinds of stores on disk, by name."""

from __future__ import annotations

from pathlib import Path

from etude.data.stores.blosc import Blosc2Store
from etude.data.stores.disk import DiskStore
from etude.data.stores.encoded import EncodedStore
from etude.data.stores.raw import RawStore
from etude.data.stores.record import DamagedStoreError, StoreRecord

KINDS: dict[str, type[DiskStore]] = {store.kind: store for store in (RawStore, Blosc2Store, EncodedStore)}
"""Quickest to read first."""


def open_store(folder: Path | str) -> DiskStore:
    """Open the store in ``folder``, of whatever kind it is.

    Raises:
        DamagedStoreError: the folder's files do not fit together.
        EtudeError: it needs a package that is not installed.
    """
    folder = Path(folder).absolute()
    kind = StoreRecord.load(folder).kind
    if kind not in KINDS:
        raise DamagedStoreError(folder, f"its kind is {kind!r}")
    return KINDS[kind](folder)
