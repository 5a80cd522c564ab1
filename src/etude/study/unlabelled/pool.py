"""The unlabelled images of a run: those of ``--unlabeled`` and of ``--test``, each content once, as one pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.files import digest_of
from etude.core.predictions import Predictions
from etude.data.batches import TrainingRows
from etude.data.dataset import Dataset
from etude.data.stores.device import DeviceStore
from etude.study.run.network import Candidate
from etude.study.run.prepare import Prepared, on_device
from etude.study.run.session import Session


@dataclass(frozen=True, slots=True)
class PoolPart:
    """Images of the pool that one store holds."""

    name: str  # unlabeled or test
    data: Dataset
    rows: np.ndarray  # int64 (N,), the store's rows that are in the pool
    near: DeviceStore | None = None  # the same store in the memory of the device that trains


@dataclass(frozen=True, slots=True)
class Pool:
    """Unlabelled images; positions count over all parts, from the first image of the first."""

    parts: tuple[PoolPart, ...]

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    @property
    def ids(self) -> tuple[str, ...]:
        """A name for each image, unique over the parts."""
        return tuple(f"{part.name}/{part.data.images.ids[row]}" for part in self.parts for row in part.rows)

    def of_parts(self, chosen: np.ndarray) -> Iterator[tuple[PoolPart, np.ndarray, np.ndarray]]:
        """Yield each part, the rows of its store, and where they are in ``chosen`` (ascending positions)."""
        start = 0
        for part in self.parts:
            positions = np.flatnonzero((chosen >= start) & (chosen < start + len(part.rows)))
            if len(positions):
                yield part, part.rows[chosen[positions] - start], positions
            start += len(part.rows)

    def predictions(
        self,
        candidate: Candidate,
        chosen: np.ndarray,
        tta: int,
        context: Context,
        features: Mapping[str, np.ndarray] | None,
    ) -> Predictions:
        """Return a model's predictions, without features, of the images at ``chosen``.

        ``features``, by the name of each part (N, D) of every row of its store, where the network is frozen. All rows
        are then predicted, as the end of a run predicts them, so that features of their views are computed once.
        """
        logits: list[np.ndarray] = []
        for part, rows, _ in self.of_parts(chosen):
            name = f"pseudo-labels ({part.name})"
            if features is None:
                logits.append(candidate.predict(part.data, rows, context, tta=tta, name=name).logits)
            else:
                known, store = features[part.name], part.data.build.store.folder.name
                found = candidate.predict(
                    part.data, np.arange(len(part.data)), context,
                    tta=tta, known_features=known, store=store, name=name,
                )  # fmt: skip
                logits.append(found.logits[:, rows])
        ids = self.ids
        return Predictions(
            tuple(ids[position] for position in chosen), candidate.card.classes, np.concatenate(logits, axis=1)
        )

    def training_rows(
        self,
        chosen: np.ndarray,
        classes: int,
        targets: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        teacher: np.ndarray | None = None,
    ) -> list[TrainingRows]:
        """Return the images at ``chosen`` as unlabelled training rows, a set for each part."""
        given = np.full(len(chosen), -1, np.int64) if targets is None else targets
        even = np.ones(len(chosen), np.float32) if weights is None else weights
        return [
            TrainingRows(
                part.data.build.store.gather, rows, given[at], even[at], part.data.build.store.source_size,
                None if part.near is None else part.near.gather_tensor,
                num_classes=classes if targets is None else None,
                labelled=np.zeros(len(rows), bool),
                teacher=None if teacher is None else teacher[at],
            )
            for part, rows, at in self.of_parts(chosen)
        ]  # fmt: skip


def pool_of(session: Session, prepared: Prepared) -> Pool | None:
    """Return the unlabelled images that training uses, each content once and no labelled one; None for none."""
    recipe, request = prepared.recipe, session.request
    if not recipe.unlabeled.is_on and not request.teachers:
        return None
    known = set(prepared.data.build.content_hashes)
    parts: list[PoolPart] = []
    test = prepared.test if recipe.unlabeled.use_test else None
    for name, data in (("unlabeled", prepared.unlabelled), ("test", test)):
        if data is None:
            continue
        rows: list[int] = []
        for row, content in enumerate(data.build.content_hashes):
            if content not in known:
                known.add(content)
                rows.append(row)
        near = None if prepared.on_device is None else on_device(session, recipe, data)
        parts.append(PoolPart(name, data, np.array(rows, np.int64), near))
    pool = Pool(tuple(part for part in parts if len(part.rows)))
    if not len(pool) and not request.teachers:
        raise EtudeError(
            "every unlabelled image is also among the labelled ones, so there is nothing to learn from them: give "
            "other images with --unlabeled"
        )
    fingerprint = digest_of(*(part.data.build.content_hashes[row] for part in pool.parts for row in part.rows))
    session.keep_inputs({"unlabelled images": fingerprint})
    repeated = sum(len(part.data) - len(part.rows) for part in parts)
    counts = {part.name: len(part.rows) for part in parts}
    session.record.set(
        "unlabelled", {"images": len(pool), "of": counts, "copies": repeated, "fingerprint": fingerprint}
    )
    given = " and ".join(f"{count:,} of --{name}" for name, count in counts.items())
    left = f"; {repeated:,} copies of other images are left out" if repeated else ""
    session.screen.say(f"unlabelled images: {given}{left}")
    return pool if len(pool) else None
