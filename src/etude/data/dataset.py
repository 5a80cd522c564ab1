"""Images that can be read, with their pixels: an image set, scanned and stored."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from etude.core.context import Context
from etude.core.errors import listed
from etude.data.compact import Paths, Texts
from etude.data.decode import UnreadableImage, decode, read_image_file
from etude.data.scan import Scan
from etude.data.sources import ImageSet
from etude.data.stores.build import StoreBuild, build_store

_RANGE_HINT = "; the range of values (data.range) may be too wide or too narrow for them"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Readable images and the store that holds them; row i of the store is image i."""

    images: ImageSet
    build: StoreBuild

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> np.ndarray:
        """The labels int64 (N,) of a labelled set."""
        if self.images.labels is None:
            raise ValueError("this image set has no labels")
        return self.images.labels

    @property
    def weights(self) -> np.ndarray:
        """The images' weights float32 (N,), 1 where none were given."""
        given = self.images.weights
        return np.ones(len(self), np.float32) if given is None else given


def open_dataset(
    images: ImageSet,
    scan: Scan,
    size: int,
    context: Context,
    *,
    fit: str,
    kind: str = "auto",
    limit: int | None = None,
) -> Dataset:
    """Store the images as :func:`build_store` does and leave out those that cannot be read."""
    build = build_store(images, scan, size, context, fit=fit, kind=kind, limit=limit)
    for what, count in Counter(what for _, what in build.dull).items():
        names = listed((name for name, which in build.dull if which == what), 3)
        hint = "" if build.value_range is None else _RANGE_HINT
        context.warn(f"{count:,} of {len(build.kept):,} images are {what} once decoded: {names}{hint}")
    everything = len(build.kept) == len(images)
    return Dataset(images if everything else images.take(build.kept), build)


def same_files_as(known: Dataset, data: Dataset) -> np.ndarray:
    """Return a mask (N,) of the images of ``data`` whose file has the content of one of ``known``."""
    return np.isin(data.build.content_hashes.keys(), known.build.content_hashes.keys())


def concatenated_sets(first: ImageSet, second: ImageSet) -> ImageSet:
    """Return both sets as one, the second after the first; both are labelled with the same classes.

    Where both hold the same id, those of the second set get its folder's name in front. Of the columns of groups those
    that both have are kept.
    """
    if first.labels is None or second.labels is None or first.classes != second.classes:
        raise ValueError("only labelled sets with the same classes can be concatenated")
    clash = not set(first.ids).isdisjoint(second.ids)
    ids = (f"{second.root.name}/{name}" for name in second.ids) if clash else second.ids
    return replace(
        first,
        ids=Texts(chain(first.ids, ids)),
        paths=Paths(first.paths.root, Texts(chain(first.paths.names, map(str, second.paths)))),
        labels=np.concatenate([first.labels, second.labels]),
        weights=None if first.weights is None else np.concatenate([first.weights, np.ones(len(second), np.float32)]),
        others=Texts(chain(first.others, (str(second.root / name) for name in second.others))),
        groups={
            name: Texts(chain(values, second.groups[name]))
            for name, values in first.groups.items()
            if name in second.groups
        },
    )


def seconds_to_decode(images: ImageSet, scan: Scan, size: int) -> float:
    """Return seconds an image to read and decode, timed over a few images spread over the set."""
    chosen = scan.spread(12)
    start = time.perf_counter()
    for position in chosen:
        with suppress(UnreadableImage):  # only timed here; the store names what it cannot read
            data = read_image_file(images.paths[scan.kept[position]])
            decode(data, size, "squash", scan.channels, scan.value_range)
    return (time.perf_counter() - start) / max(1, len(chosen))
