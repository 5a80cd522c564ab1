"""What a report says first: where the model fails, and what to do next, the most worthwhile first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from etude.core.errors import listed
from etude.core.text import counted, percent, short_number
from etude.journal.report.folder import Row, RunFolder
from etude.journal.report.gallery import contradicts, sentence_of
from etude.journal.report.scores import Evaluated, class_rows, confused_pairs
from etude.journal.runs import is_complete

_FEW = 10  # images of a class
_FEW_LABELS = 100  # images a class, up to which those without labels have helped
_COPIED = 0.01  # of the validation images
_OVERFITS = 1.2  # validation loss at the end over its lowest
_SURE = 0.2  # training loss over validation loss
_SOURCES = {
    "image size",
    "shape",
    "format",
    "camera",
    "folder",
}  # leaks by which a network may know where images are from
_NEXT = {"quick": "default", "default": "best"}  # recipes, and those with fewer errors in more time


@dataclass(frozen=True, slots=True)
class Advice:
    text: str
    command: str = ""
    section: str = ""  # of the page, which shows more


def failures_of(valid: Evaluated) -> list[str]:
    """Return the weakest class and the most frequent confusion as sentences; nothing where all is right."""
    pairs, names = confused_pairs(valid), valid.classes
    if not pairs:
        return []
    recall, weakest = min(((row.recall, row) for row in class_rows(valid) if row.recall is not None), key=itemgetter(0))
    right = round(recall * weakest.images)
    interval = f"95% interval {percent(weakest.low)} to {percent(weakest.high)}"
    label, guess, often = pairs[0]
    share = f"{often:,} of {counted(sum(count for *_, count in pairs), 'error')}"
    return [
        f"Weakest class: {weakest.name}, {right:,} of {counted(weakest.images, 'image')} right ({interval}).",
        f"Most frequent confusion: {names[label]} predicted as {names[guess]}, {share}.",
    ]


def advice_of(run: RunFolder) -> list[Advice]:
    """Return what to do after a fit."""
    record = run.record
    if record["kind"] != "fit" or record["state"] == "running":
        return []
    if not is_complete(record):
        return [Advice("The run did not finish: go on with it.", shlex.join(["etude", "resume", str(run.path)]))]
    validated = int((record.get("result") or {}).get("validation_images") or 0)
    return [*_about_data(run.health or {}, validated), *_about_training(run)]


def _about_data(health: Mapping[str, Any], validated: int) -> Iterator[Advice]:
    both = [pair for pair in health.get("near_duplicates") or () if pair.get("exact") and contradicts(pair)]
    if both:
        text = f"{counted(len(both), 'pair')} of identical files with two labels"
        yield Advice(
            f"{text}, such as {both[0]['a']} and {both[0]['b']}: keep the right one of each.", section="health"
        )
    copied = (health.get("copied") or {}).get("validation") or ()
    if len(copied) > _COPIED * validated:
        text = f"Validation images that are near-duplicates of training images: {len(copied):,}"
        yield Advice(f"{text}. The score is too high: keep one of each, or all of them on one side.", section="health")
    if suspects := (health.get("counts") or {}).get("label_errors"):
        shown = len(health.get("label_errors") or ())
        where = "suspects.csv" if suspects <= shown else f"suspects.csv has the first {shown:,}"
        text = f"Labels that may be wrong: {suspects:,}. Look at them ({where}), mend them, and train again."
        yield Advice(text, section="health")
    for leak in [one for one in health.get("leaks") or () if one.get("kind") in _SOURCES][:1]:
        yield Advice(sentence_of(leak), section="health")
    sizes = (health.get("imbalance") or {}).get("classes") or {}
    if few := [f"{name} ({count:,})" for name, count in sizes.items() if 0 < count < _FEW]:
        yield Advice(f"Classes with fewer than {_FEW} images gain most by more of them: {listed(few, 3, str)}.")


def _about_training(run: RunFolder) -> Iterator[Advice]:
    record, settings = run.record, run.record["settings"]
    plain = not (settings.get("augment.mixup") or settings.get("train.label_smoothing"))
    if plain and (losses := _overfitting(next((model.history for model in run.models if model.history), ()))):
        train, valid = map(short_number, losses)
        text = f"It overfits (training loss {train}, validation loss {valid}): more images help most, or try MixUp."
        yield Advice(text, _again(record, "--set", "augment.mixup=0.2"), "curves")
    data = record.get("data") or {}
    images, classes = int(data.get("images") or 0), len(data.get("classes") or ())
    if not record.get("unlabelled") and classes and images / classes < _FEW_LABELS:
        text = "With so few labels, images without labels help (--unlabeled)."
        yield Advice(text, _again(record, "--unlabeled", "FOLDER"))
    if (recipe := record["recipe"]) in _NEXT and not record.get("budget"):
        text = f"If there is more time: recipe {_NEXT[recipe]} makes fewer errors on most data."
        yield Advice(text, _again(record, "--recipe", _NEXT[recipe]))


def _overfitting(history: Sequence[Row]) -> tuple[float, float] | None:
    """Return the last losses of training and validation where the latter has risen, and the former is far below."""
    losses = [(row.get("train_loss"), row.get("valid_loss")) for row in history]
    known = [(train, valid) for train, valid in losses if isinstance(train, float) and isinstance(valid, float)]
    if not known:
        return None
    train, valid = known[-1]
    rose = valid > _OVERFITS * min(loss for _, loss in known)
    return (train, valid) if rose and train < _SURE * valid else None


def _again(record: Mapping[str, Any], *words: str) -> str:
    """Return the run's command with an option that goes before what it had, into a new folder."""
    command = [str(word) for word in record["command"]]
    if command[:2] != ["etude", "fit"]:
        return ""
    for option in {"--out", words[0]} - {"--set"}:
        command = [word for word in command if not word.startswith(f"{option}=")]
        if option in command[:-1]:
            place = command.index(option)
            del command[place : place + 2]
    return shlex.join([*command, *words])
