"""A finished run: load it, predict with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etude.core.context import Context, Progress, Silent
from etude.core.errors import EtudeError, listed
from etude.core.images import THUMBNAIL
from etude.core.predictions import Predictions
from etude.core.submission import Unreadable, write_submission
from etude.core.text import counted
from etude.data.dataset import Dataset, open_dataset
from etude.data.given import Given, given_images
from etude.data.scan import scan_images
from etude.data.sources import BadFile, ImageSet, read_labelled
from etude.journal.record import read_run
from etude.journal.runs import model_files, models_of, verify, weights_of
from etude.refine.ensemble import mean_of_blends

if TYPE_CHECKING:  # torch is imported when a model is needed
    from etude.inference.alignment import Reference
    from etude.inference.views import ViewLike
    from etude.journal.report.scores import Evaluated, Score
    from etude.models.classifier import Classifier, ModelCard
    from etude.models.features import Gather

    _Viewed = tuple[Classifier, ModelCard, tuple[ViewLike, ...]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions of images, and what could not be read.

    Args:
        predictions: logits and features of the readable images; with labels where :meth:`Run.evaluate` made them.
        bad: the files that were left out, with reasons.
        counts: labelled images of each class that the run was trained and validated on.
        data: the readable images, as they are stored; None of pictures that were given in memory.
        notes: sentences that belong to these predictions, such as that the run was trained on some of the images.
    """

    predictions: Predictions
    bad: tuple[BadFile, ...]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    data: Dataset | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        left_out = f", {len(self.bad):,} left out" if self.bad else ""
        return (
            f"Prediction({counted(len(self.predictions), 'image')}, {len(self.predictions.classes)} classes{left_out})"
        )

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

    def top(self, most: int = 3) -> dict[str, list[tuple[str, float]]]:
        """Return the most probable classes of each id, the first one first, with their probabilities."""
        classes, found = self.predictions.classes, self.predictions.probabilities()
        order = np.argsort(-found, axis=1, kind="stable")[:, :most]
        rows = zip(self.predictions.ids, order.tolist(), found, strict=True)
        return {name: [(classes[k], float(given[k])) for k in best] for name, best, given in rows}

    def pictures(self, ids: Sequence[str], side: int = THUMBNAIL) -> np.ndarray:
        """Return the images with these ids as they are stored: (N, S, S, 3 or 1) uint8, S at most ``side``.

        Raises:
            EtudeError: the pictures were given in memory, and are not stored.
        """
        if self.data is None:
            raise EtudeError("these pictures were given in memory, and are not stored: show them from there")
        rows, store = {name: row for row, name in enumerate(self.data.images.ids)}, self.data.build.store
        return store.gather(np.array([rows[name] for name in ids], np.int64), min(side, store.size))

    def to_html(self, path: Path | str, name: str = "evaluation", lead: str = "") -> Path:
        """Write a page of scores, confusions, classes and errors, with a title and a first sentence; return its path.

        Raises:
            EtudeError: the images have no labels, or the place cannot be written.
        """
        from etude.journal.report.evaluation import render_evaluation
        from etude.journal.report.html import write_page

        lead = " ".join(filter(None, (lead, *(f"{note[:1].upper()}{note[1:]}." for note in self.notes))))
        return write_page(Path(path), render_evaluation(name, lead, self.evaluated(), self.pictures))

    def scores(self) -> list[Score]:
        """Return accuracy, log loss, balanced accuracy, macro F1 and, with two classes, ROC AUC, with 95% intervals.

        Raises:
            EtudeError: the images have no labels: :meth:`Run.evaluate` reads them with theirs.
        """
        from etude.journal.report.scores import scores_of

        return scores_of(self.evaluated())

    def evaluated(self) -> Evaluated:
        """Return the predictions with labels in the form that tables and figures of classes are made of."""
        from etude.journal.report.scores import Evaluated

        if (known := Evaluated.of(self.predictions)) is None:
            raise EtudeError("these images have no labels to be scored by: Run.evaluate reads them with theirs")
        return known


class Run:
    """A run's folder: ``etude.load("runs/first").predict("test/").to_csv("submission.csv")``."""

    def __init__(self, folder: Path | str, *, trust: bool = False, warn: Callable[[str], None] = warnings.warn) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self.record: dict[str, Any] = read_run(self.folder)
        self._trust, self._warn = trust, warn
        self._verified: set[str] = set()

    def __repr__(self) -> str:
        right = "" if self.accuracy is None else f", validation accuracy {self.accuracy:.2%}"
        return f"Run({str(self.folder)!r}, {self.record['state']}{right})"

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
        images: Given,
        *,
        tta: int | None = None,
        larger: float | None = None,
        align: bool | None = None,
        cache: Path | str | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Predict images; several models are averaged.

        Args:
            images: a folder, a table, an image file, a list of image files, or pictures in memory, one or several: PIL
                images, or arrays (H, W) or (H, W, 1, 3 or 4) uint8, or (H, W) uint16. The ids of pictures in memory are
                0.png, 1.png and so on. Predictions of a list have its order; an image that is repeated or cannot be
                read has no row of its own, so that ids, not places, say whose a row is.
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
        with given_images(images) as (found, order, folder):
            done = self._predicted(found, tta, larger, align, self._context(progress, cache or folder))
        if order is None:
            return done
        places = {name: row for row, name in enumerate(done.predictions.ids)}
        rows = [places[name] for name in dict.fromkeys(order) if name in places]
        if len(rows) < len(order):
            self._warn(
                f"{len(order) - len(rows):,} of the {len(order):,} given have no row of their own: repeated, or not "
                "readable; ids say whose each row is"
            )
        return replace(done, predictions=done.predictions.take(rows), data=None if folder else done.data)

    def evaluate(
        self,
        images: Path | str,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        image_root: Path | str | None = None,
        tta: int | None = None,
        larger: float | None = None,
        align: bool | None = None,
        cache: Path | str | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Predict labelled images, class folders or a table; :meth:`Prediction.scores` compares with their labels.

        The labels are for nothing else: no prediction depends on them. ``image_column``, ``label_column`` and
        ``image_root`` are of a table, as :func:`etude.fit` takes them; the others are those of :meth:`predict`.

        Raises:
            EtudeError: as :meth:`predict`, or labels that are no classes of the run.
        """
        if not isinstance(images, str | os.PathLike):
            raise EtudeError(f"labels come from class folders or a table: give its path, not {type(images).__name__}")
        context = self._context(progress, cache)
        found = read_labelled(
            images, classes=self.classes, image_column=image_column, label_column=label_column, image_root=image_root,
            split_column="none", spelling=self.record["settings"].get("data.labels", "tidy"), context=context,
        )  # fmt: skip
        done = self._predicted(found, tta, larger, align, context)
        assert done.data is not None
        notes = self._notes_of_known(done.data)
        for note in notes:
            self._warn(note)
        return replace(done, predictions=replace(done.predictions, labels=done.data.labels), notes=notes)

    def _context(self, progress: Progress | None, cache: Path | str | None) -> Context:
        return Context(progress or Silent(), self._warn, Path(os.path.expanduser(cache)) if cache else None)

    def _notes_of_known(self, data: Dataset) -> tuple[str, ...]:
        """Return a sentence about images that the run was trained or validated on: it knows their labels."""
        from etude.study.run.finish import TRAINED_ON, trained_files

        self._verify(TRAINED_ON)
        sides = [one.keys() for side in ("files", "validated") if (one := trained_files(self.folder, side)) is not None]
        known = (
            np.flatnonzero(np.isin(data.build.content_hashes.keys(), np.concatenate(sides))).tolist() if sides else []
        )
        if not known:
            return ()
        names = listed((data.images.ids[row] for row in known), 3)
        return (
            f"{len(known):,} of {counted(len(data), 'image')} are among those that the run was trained or validated on "
            f"({names}): their scores say little about new images",
        )

    def _predicted(
        self,
        found: ImageSet,
        tta: int | None,
        larger: float | None,
        align: bool | None,
        context: Context,
    ) -> Prediction:
        from etude.inference.alignment import aligned
        from etude.inference.predict import predict

        viewed = [(model, card, self._views(card, tta, larger)) for model, card in self._models()]
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
        return Prediction(mean_of_blends(parts, weights_of(self.record)), left_out, counts, data)

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
