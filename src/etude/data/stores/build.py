"""Decoding every image once into a store under the cache folder; a second run over the same contents reuses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import digest_of, explained_write
from etude.core.processor import usable_cores
from etude.core.progress import Progress
from etude.data.bad_files import BadFile
from etude.data.compact import Digests
from etude.data.decode import DECODER_VERSION, FITS
from etude.data.geometry import choose_fit
from etude.data.sources import ImageSet
from etude.data.stores.choose import check_kind, choose_kind
from etude.data.stores.disk import DiskStore
from etude.data.stores.ingest import Target, ingest, undecoded
from etude.data.stores.kinds import KINDS
from etude.data.stores.lock import alone
from etude.data.stores.partial import remove
from etude.data.stores.places import Places
from etude.data.stores.protocol import Store
from etude.data.stores.record import STORE_VERSION
from etude.data.stores.wording import told_bytes
from etude.data.survey import SurveyResult
from etude.data.value_range import ValueRange


@dataclass(frozen=True)
class StoreBuild:
    """A store and how its rows belong to the images.

    Attributes:
        store: row i holds image ``kept[i]``.
        kept: (N,) int64 indices into the image set.
        bad: every image that was left out, those of the survey included.
        fit: ``squash``, ``crop`` or ``letterbox``.
        fit_reason: one sentence for the screen.
        kind: ``raw``, ``blosc2`` or ``encoded``.
        kind_reason: one sentence for the screen, with what was measured.
        content_hashes: (N,) hash of the file behind each row; equal files have equal hashes.
        reused: whether the store was already there.
        value_range: values that became black and white in images deeper than 8 bits, where known.
        dull: (id, what) of the images that are nearly black, nearly white or of one colour.
    """

    store: Store
    kept: np.ndarray
    bad: tuple[BadFile, ...]
    fit: str
    fit_reason: str
    kind: str
    kind_reason: str
    content_hashes: Digests
    reused: bool
    value_range: ValueRange | None = None
    dull: tuple[tuple[str, str], ...] = ()


def build_store(
    images: ImageSet,
    survey: SurveyResult,
    size: int,
    *,
    fit: str = "auto",
    cache: Path,
    progress: Progress,
    warn: Callable[[str], None],
    threads: int | None = None,
    kind: str = "auto",
    limit: int | None = None,
) -> StoreBuild:
    """Decode the surveyed images at one size into ``cache/stores/<key>``, or reuse the store that is there.

    The key covers the files' contents in order, size, fit, channels, the range of values, the decoder's version and
    the kind, not the files' names. A store appears under its key when it is whole. A run that is killed leaves partial
    work beside it, from which the next run goes on; of two runs at once the second waits for the first.

    Args:
        images: the image set that was surveyed.
        survey: what :func:`etude.data.survey.survey` returned for it.
        size: side of the stored squares in pixels.
        fit: ``squash``, ``crop``, ``letterbox``, or ``auto`` to choose from the aspect ratios.
        cache: the cache folder.
        progress: shows a bar.
        warn: is told one sentence when a damaged store is rebuilt, or another run is waited for.
        threads: decoding threads; one for each core by default.
        kind: ``raw``, ``blosc2``, ``encoded``, or ``auto``: whatever is there, or else by measurement.
        limit: bytes that the store may take; by default half of the free disk space.

    Raises:
        EtudeError: no image can be decoded, fit or kind is unknown, the size is below 1, the images do not fit within
            the limit, or the disk is full.
    """
    fit, reason = _settled_fit(fit, survey)
    check_kind(kind)
    if size < 1:
        raise EtudeError(f"the image size is {size}; it must be 1 pixel or more")
    stores = cache / "stores"
    with explained_write(stores):
        stores.mkdir(parents=True, exist_ok=True)
    versions = f"{STORE_VERSION}.{DECODER_VERSION}"
    values = "" if survey.deep is None else str(survey.value_range)
    key = digest_of(versions, str(size), fit, str(survey.channels) + values, *survey.content_hashes)
    work = _Work(images, survey, size, fit, Places(stores, key), progress, warn, threads or usable_cores())
    store, made = work.store(kind, limit)
    return StoreBuild(
        store=store,
        kept=np.delete(survey.kept, [position for position, _ in store.record.bad]),
        bad=(*survey.bad, *undecoded(images, survey, store.record.bad)),
        fit=fit,
        fit_reason=reason,
        kind=store.kind,
        kind_reason=made or f"{store.kind}: {told_bytes(store.record.total_bytes)}, already there",
        content_hashes=store.record.content_hashes,
        reused=made is None,
        value_range=survey.value_range,
        dull=tuple((images.ids[int(survey.kept[position])], what) for position, what in store.record.dull),
    )


@dataclass(frozen=True)
class _Work:
    """What it takes to build a store."""

    images: ImageSet
    survey: SurveyResult
    size: int
    fit: str
    places: Places
    progress: Progress
    warn: Callable[[str], None]
    threads: int

    def store(self, asked: str, limit: int | None) -> tuple[DiskStore, str | None]:
        """Return the store, and why it is of its kind if this run built it."""
        there = self.places.usable(asked, self.progress)
        if there is not None:
            return there, None
        with alone(self.places.lock, self.warn) as locked:
            there = self.places.usable(asked, self.progress, self.warn)  # built while this run waited
            if there is not None:
                return there, None
            kind, reason = self._chosen(asked, limit, locked)
            self._build(kind, locked)
            return KINDS[kind](self.places.folder(kind)), reason

    def _chosen(self, asked: str, limit: int | None, locked: bool) -> tuple[str, str]:
        room = self.places.room(limit)
        begun = self.places.begun(len(self.survey), room.allowed) if asked == "auto" and locked else None
        if begun is not None:
            return begun
        return choose_kind(
            self.images, self.survey, self.size, fit=self.fit, asked=asked, room=room, threads=self.threads
        )

    def _build(self, kind: str, locked: bool) -> None:
        partial = self.places.partial(kind, locked)
        if locked:
            self.places.clear(except_for=kind)
        try:
            ingest(
                self.images, self.survey, Target(KINDS[kind], self.size, self.fit),
                (partial, self.places.folder(kind)),
                progress=self.progress, warn=self.warn, threads=self.threads,
            )  # fmt: skip
        finally:
            if not locked:  # nobody would find it
                remove(partial)


def _settled_fit(fit: str, survey: SurveyResult) -> tuple[str, str]:
    if fit == "auto":
        return choose_fit(survey.widths, survey.heights)
    if fit not in FITS:
        raise EtudeError(f"data.fit is {fit!r}; choose one of {listed(('auto', *FITS))}.{nearest(fit, FITS)}")
    return fit, f"{fit}, as asked for"
