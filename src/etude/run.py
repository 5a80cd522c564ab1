"""A finished run: load it, predict with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etude.core.context import Context, Progress, Silent
from etude.core.errors import EtudeError, listed
from etude.core.predictions import Predictions
from etude.core.submission import Unreadable, write_submission
from etude.data.dataset import Dataset, open_dataset
from etude.data.scan import scan_images
from etude.data.sources import BadFile, ImageSet, read_unlabelled
from etude.journal.record import read_run
from etude.journal.runs import model_files, models_of, verify, weights_of
from etude.refine.ensemble import mean_of_blends

if TYPE_CHECKING:  # torch is imported when a model is needed
    from etude.inference.alignment import Reference
    from etude.inference.views import ViewLike
    from etude.models.classifier import Classifier, ModelCard
    from etude.models.features import Gather

    _Viewed = tuple[Classifier, ModelCard, tuple[ViewLike, ...]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions of images, and what could not be read.

    Args:
        predictions: logits and features of the readable images.
        bad: the files that were left out, with reasons.
        counts: labelled images of each class that the run was trained and validated on.
    """

    predictions: Predictions
    bad: tuple[BadFile, ...]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])

    def to_csv(
        self,
        path: Path | str,
        *,
        probabilities: bool = False,
        sample_submission: Path | str | None = None,
        positive: str | None = None,
        warn: Callable[[str], object] = warnings.warn,
    ) -> Path:
        """Write ``id,label`` (or a column a class) and return the path.

        Rows that a sample submission has for images that cannot be read are filled by the run's class shares.

        Args:
            probabilities: write probabilities in place of labels.
            sample_submission: a CSV whose ids, columns and order are followed.
            positive: write the probability of this class in one column.
            warn: is given a sentence about rows that were filled, and about labels of the sample that are no classes.

        Raises:
            EtudeError: the ids or columns do not fit the sample submission, or the place cannot be written.
        """
        sample = None if sample_submission is None else Path(sample_submission)
        write_submission(
            Path(path), self.predictions, probabilities=probabilities, sample=sample, positive=positive,
            unreadable=Unreadable([bad.id for bad in self.bad], self.counts), warn=warn,
        )  # fmt: skip
        return Path(path)

    def labels(self) -> dict[str, str]:
        """Return the predicted class of each id."""
        classes = self.predictions.classes
        return {name: classes[k] for name, k in zip(self.predictions.ids, self.predictions.predicted(), strict=True)}


class Run:
    """A run's folder: ``etude.load("runs/first").predict("test/").to_csv("submission.csv")``."""

    def __init__(self, folder: Path | str, *, trust: bool = False, warn: Callable[[str], None] = warnings.warn) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self.record: dict[str, Any] = read_run(self.folder)
        self._trust, self._warn = trust, warn
        self._verified: set[str] = set()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.record['state']}, accuracy {self.accuracy})"

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of what the run kept, or None when it did not finish."""
        return (self.record.get("result") or {}).get("accuracy")

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the probability columns."""
        return self._models()[0][1].classes

    def validation(self) -> Predictions:
        """Return the labelled predictions of the validation images (out-of-fold with several folds)."""
        self._verify("valid.npz")
        return Predictions.load(self.folder / "valid.npz")

    def predict(
        self,
        images: Path | str,
        *,
        tta: int | None = None,
        larger: float | None = None,
        align: bool | None = None,
        cache: Path | str | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Predict a folder, a table, or one image; several models are averaged.

        Args:
            tta: views to average over, 1 to 128: first the symmetries of the run's augmentation, then shifts, zooms and
                random draws of it. By default the views that the run used.
            larger: factor of the side of an enlarged input, above 1 and up to 2, which one of the views then has; it
                comes after the symmetries.
            align: move the features of 50 images or more, where they are of another kind than the training images, to
                where those lie (:func:`etude.inference.alignment.aligned`); by default as the run did.
            cache: folder of stores, by default the user's.
            progress: draws bars; silent by default.

        Raises:
            EtudeError: nothing readable, a run without a trained model, or views that do not go together.
        """
        found = read_unlabelled(images)
        from etude.inference.alignment import aligned
        from etude.inference.predict import predict

        viewed = [(model, card, self._views(card, tta, larger)) for model, card in self._models()]
        context = Context(progress or Silent(), self._warn, Path(os.path.expanduser(cache)) if cache else None)
        data = self._read(found, viewed[0][1], context)
        gather = self._gather(found, data, viewed, context)
        parts = [
            predict(model, card, gather, np.arange(len(data)), data.images.ids, views=views, context=context)
            for model, card, views in viewed
        ]
        if align is None:
            align = self.record["settings"].get("predict.align", "auto") == "auto"
        if align:
            parts = aligned(parts, [model for model, *_ in viewed], self._references(), context)
        left_out = (*data.build.bad, *data.images.left_out())
        counts = (self.record.get("data") or {}).get("classes") or {}
        return Prediction(mean_of_blends(parts, weights_of(self.record)), left_out, counts)

    def _views(self, card: ModelCard, tta: int | None, larger: float | None) -> tuple[ViewLike, ...]:
        from etude.inference.views import MOST_VIEWS, many_views, views_of

        if larger is None:
            return many_views(card.policy, self._views_used(card) if tta is None else tta)
        symmetries = len(views_of(card.policy, MOST_VIEWS))
        if tta is None or tta <= symmetries:
            raise EtudeError(
                "a larger input is one view of several, after the plain one and the symmetries of these images: "
                f"ask for {symmetries + 1} views or more (--tta {symmetries + 1})"
            )
        return many_views(card.policy, tta, larger=larger)

    def _views_used(self, card: ModelCard) -> int:
        """Return how many views the run averaged over; one that did not get so far leaves it to the card."""
        noted = [stage["notes"]["views"] for stage in self.record["stages"] if "views" in stage["notes"]]
        if noted:
            return min(noted[-1], card.tta)  # a card asks for one where those that were tried did harm
        return 1 if self.record["state"] == "finished" else card.tta

    def _gather(self, images: ImageSet, data: Dataset, viewed: Sequence[_Viewed], context: Context) -> Gather:
        """Return what reads the images; inputs larger than any usual one from a store of their own, in full detail."""
        from etude.inference.views import input_size

        cards = [card for _, card, _ in viewed]
        usual = max(cards[0].preprocessing.stored_size, *(card.preprocessing.size for card in cards))
        largest = max(input_size(view, card.preprocessing.size) for _, card, views in viewed for view in views)
        if largest <= usual:
            return data.build.store.gather
        detailed = self._read(images, cards[0], context, largest)
        return lambda rows, size: (detailed if size > usual else data).build.store.gather(rows, size)

    def _read(self, images: ImageSet, card: ModelCard, context: Context, size: int | None = None) -> Dataset:
        shape = card.preprocessing
        scanned = scan_images(images, context).like(shape.channels, shape.value_range, "images", context)
        return open_dataset(images, scanned, size or shape.stored_size, context, fit=shape.fit)

    def _models(self) -> list[tuple[Classifier, ModelCard]]:
        from etude.models.classifier import load_model

        names = self._names()
        if unknown := self._verify(*model_files(names)):
            self._warn(f"{self.folder}/run.json holds no hash of {listed(unknown)}: not checked for damage")
        return [load_model(self.folder / name) for name in names]

    def _names(self) -> list[str]:
        folds = [path.parent.name for path in self.folder.glob("fold-*/model.json")]
        return models_of(self.record) or sorted(folds, key=lambda name: int(name.removeprefix("fold-"))) or ["."]

    def _references(self) -> list[Reference | None]:
        from etude.inference.alignment import FILE_NAME, Reference

        names = self._names()
        kept = [Path(name, FILE_NAME).as_posix() for name in names if (self.folder / name / FILE_NAME).is_file()]
        self._verify(*kept)
        return [Reference.load(self.folder / name) for name in names]

    def _verify(self, *names: str) -> list[str]:
        """Compare files with the run's hashes, each once; return those without one."""
        fresh = [] if self._trust else [name for name in names if name not in self._verified]
        unknown = verify(self.folder, fresh, self.record)
        self._verified.update(fresh)
        return unknown


def load(folder: Path | str, *, trust: bool = False, warn: Callable[[str], None] = warnings.warn) -> Run:
    """Open the run in ``folder``.

    Args:
        trust: read its files also where they are not those that the run wrote.
        warn: is given a sentence about files that cannot be checked, and about images that are read.

    Raises:
        EtudeError: the folder is not a run.
    """
    if not os.path.isdir(os.path.expanduser(folder)):
        raise EtudeError(f"there is no run folder {folder}; give the folder that `etude fit` printed at its end")
    return Run(folder, trust=trust, warn=warn)
