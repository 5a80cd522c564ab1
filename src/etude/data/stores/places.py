"""Where the stores of one set of images lie: whole ones, partial ones, and the lock."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from etude.core.files import explained_write
from etude.core.progress import Progress
from etude.data.stores.blosc import Blosc2Store, has_blosc2
from etude.data.stores.choose import Room
from etude.data.stores.disk import DiskStore
from etude.data.stores.kinds import KINDS
from etude.data.stores.partial import Begun, remove
from etude.data.stores.raw import RawStore
from etude.data.stores.record import DamagedStoreError
from etude.data.stores.wording import told_bytes


class Places:
    """The stores of one content key, one a kind at most.

    Args:
        stores: the folder of all stores.
        key: of images, size and fit.
    """

    def __init__(self, stores: Path, key: str) -> None:
        self.stores, self.key = stores, key

    @property
    def lock(self) -> Path:
        """What the run holds that decodes these images, into whatever kind."""
        return self.stores / f"{self.key}.lock"

    def folder(self, kind: str) -> Path:
        """Where the whole store appears."""
        return self.stores / (self.key if kind == RawStore.kind else f"{self.key}-{kind}")

    def partial(self, kind: str, locked: bool) -> Path:
        """Where a store grows; a name of this run's own when no lock keeps others out."""
        own = "" if locked else f".{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        return self.folder(kind).with_suffix(f"{own}.partial")

    def usable(self, asked: str, progress: Progress, warn: Callable[[str], None] | None = None) -> DiskStore | None:
        """Return the store of the kind ``asked`` that is already there, of any kind for ``auto``, or None.

        A damaged one is moved out of the way and told; without ``warn`` it is passed over.
        """
        for kind in _possible() if asked == "auto" else [asked]:
            if not self.folder(kind).exists():
                continue
            try:
                store = KINDS[kind](self.folder(kind))
                store.check(progress)
                return store
            except DamagedStoreError as problem:
                if warn is not None:
                    warn(f"the image store {problem.folder} is damaged ({problem.why}): it is built again")
                    _discard(self.folder(kind))
        return None

    def begun(self, images: int, allowed: int) -> tuple[str, str] | None:
        """Return the kind of the partial work that is there, and a sentence, if the whole store would be allowed."""
        for kind in _possible():
            begun = Begun.load(self.partial(kind, locked=True), KINDS[kind])
            if begun is not None and begun.rows and begun.projected_bytes(images) <= allowed:
                return kind, f"{kind}: {told_bytes(begun.projected_bytes(images))}, as an earlier run began"
        return None

    def clear(self, except_for: str) -> None:
        """Remove partial work of other kinds, which nobody would take up, and what is left of damaged stores."""
        for left in self.stores.glob(f".{self.key}*.discarded"):
            shutil.rmtree(left, ignore_errors=True)
        for kind in KINDS:
            if kind != except_for:
                remove(self.partial(kind, locked=True))

    def room(self, limit: int | None) -> Room:
        """Return how much a store may take; what partial work holds counts as free."""
        work = (self.partial(kind, locked=True) for kind in KINDS)
        held = sum(file.stat().st_size for folder in work if folder.is_dir() for file in folder.iterdir())
        return Room(shutil.disk_usage(self.stores).free + held, limit, self.stores)


def _possible() -> list[str]:
    """Kinds that can be read here."""
    return [kind for kind in KINDS if kind != Blosc2Store.kind or has_blosc2()]


def _discard(folder: Path) -> None:
    with explained_write(folder), suppress(FileNotFoundError):
        discarded = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.discarded")
        folder.rename(discarded)  # at once; a run that still reads it keeps its files
        shutil.rmtree(discarded, ignore_errors=True)
