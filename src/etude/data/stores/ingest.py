"""Decoding images in threads, row after row, into a store that survives being killed half-way."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from etude.core.errors import EtudeError
from etude.core.files import digest_of, explained_write
from etude.core.progress import Progress
from etude.data.bad_files import BadFile
from etude.data.compact import Digests
from etude.data.decode import UnreadableImage, decode, dullness, read_image_file
from etude.data.in_order import map_in_order
from etude.data.sources import ImageSet
from etude.data.stores.disk import DiskStore
from etude.data.stores.partial import PROGRESS_NAME, PartialStore, remove, verified
from etude.data.stores.raw import RawStore
from etude.data.stores.record import StoreRecord
from etude.data.survey import SurveyResult, none_readable

SAVE_SECONDS = 2.0
"""At most so much decoding is lost when a run is killed; a record costs some milliseconds."""


@dataclass(frozen=True)
class Target:
    """What is built: the kind of store, the side in pixels, how images become squares."""

    store: type[DiskStore]
    size: int
    fit: str


def ingest(
    images: ImageSet,
    survey: SurveyResult,
    target: Target,
    folders: tuple[Path, Path],
    *,
    progress: Progress,
    warn: Callable[[str], None],
    threads: int,
) -> None:
    """Decode the surveyed images into a store, going on from what an earlier run left.

    Args:
        images: the image set that was surveyed.
        survey: of the images.
        target: what is built.
        folders: of the partial work, and where the store appears when it is whole.
        progress: shows a bar.
        warn: is told when the partial work is damaged.
        threads: that decode.

    Raises:
        EtudeError: no image can be decoded, or the disk is full; the partial work stays.
    """
    work, folder = folders
    begun = verified(work, target.store, progress, warn)
    with explained_write(folder):
        with PartialStore(work, target.store, begun) as store:
            try:
                _fill(store, images, survey, target, progress, threads)
            except BaseException:  # an interrupt loses nothing; what the save itself lacks is no news
                with suppress(OSError, EtudeError):
                    store.save() if store.done else remove(work)
                raise
            if len(store.bad) < len(survey):
                _record(store, survey, target).save(work)
        if len(store.bad) == len(survey):
            remove(work)
            raise EtudeError(none_readable(images, _all_bad(images, survey, store)))
        _appear(work, folder)


def undecoded(images: ImageSet, survey: SurveyResult, bad: tuple[tuple[int, str], ...]) -> list[BadFile]:
    """Return the files behind (position in the survey, reason)."""
    chosen = [(int(survey.kept[position]), reason) for position, reason in bad]
    return [BadFile(images.ids[index], images.paths[index], reason) for index, reason in chosen]


def _fill(
    store: PartialStore, images: ImageSet, survey: SurveyResult, target: Target, progress: Progress, threads: int
) -> None:
    done, total = store.done, len(survey)
    if target.store is RawStore:
        store.reserve(total - done, target.size**2 * survey.channels)
    read = partial(_read_row, images=images, survey=survey, target=target)
    saved = time.monotonic()
    with progress.bar(f"decode (resumed at {done:,})" if done else "decode", total - done) as advance:
        for row in map_in_order(read, range(done, total), threads):
            if isinstance(row, str):
                store.skip(row)
            else:
                store.append(*row)
            advance()
            if time.monotonic() - saved >= SAVE_SECONDS:
                store.save()
                saved = time.monotonic()


def _read_row(at: int, images: ImageSet, survey: SurveyResult, target: Target) -> tuple[bytes, str] | str:
    """Return what is kept of one file and whether it shows hardly anything, or the reason why nothing is kept."""
    try:
        data = read_image_file(images.paths[survey.kept[at]])
        if digest_of(data) != survey.content_hashes[at]:  # otherwise the store would be kept under another file's hash
            return "changed while it was being read"
        pixels = decode(data, target.size, target.fit, survey.channels, survey.value_range)
        return target.store.encode(pixels), dullness(pixels, target.fit, (survey.widths[at], survey.heights[at]))
    except UnreadableImage as problem:
        return str(problem)


def _record(store: PartialStore, survey: SurveyResult, target: Target) -> StoreRecord:
    hashes = Digests(np.delete(survey.content_hashes.values, [position for position, _ in store.bad], axis=0))
    shape = (len(hashes), target.size, target.size, survey.channels)
    return StoreRecord(target.store.kind, shape, target.fit, hashes, store.bad, store.complete(), store.dull)


def _all_bad(images: ImageSet, survey: SurveyResult, store: PartialStore) -> list[BadFile]:
    return [*survey.bad, *undecoded(images, survey, store.bad)]


def _appear(work: Path, folder: Path) -> None:
    try:
        work.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        remove(work)  # without locks another run may be first; its content is the same by its key
        return
    # After the move: a run that is killed in between finds its work all done.
    (folder / PROGRESS_NAME).unlink(missing_ok=True)


def sample_rows(images: ImageSet, survey: SurveyResult, target: Target, threads: int, most: int) -> list[np.ndarray]:
    """Decode up to ``most`` images spread over the set: (S, S, C) uint8 each; those that cannot be are left out."""
    count = min(len(survey), most)
    chosen = np.unique(np.linspace(0, len(survey) - 1, count).astype(int))

    def decoded(position: int) -> np.ndarray | None:
        try:
            data = read_image_file(images.paths[survey.kept[position]])
            return decode(data, target.size, target.fit, survey.channels, survey.value_range)
        except UnreadableImage:  # the store names what it cannot read
            return None

    return [pixels for pixels in map_in_order(decoded, chosen.tolist(), threads) if pixels is not None]
