"""Where images and labels come from: class folders, tables, flat or nested folders, single files."""

from __future__ import annotations

import csv
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np

from etude.core.context import Context
from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import replacing
from etude.core.ids import similar_labels, spellings
from etude.core.tables import is_table
from etude.core.text import counted
from etude.data import tables
from etude.data.compact import Paths, Texts
from etude.data.tables import PARTS, GivenSplit
from etude.data.walk import find_images, is_folder, is_image_file, is_own_folder, portable_text, visible_entries


@dataclass(frozen=True)
class BadFile:
    """An image that was left out, and why."""

    id: str
    path: Path
    reason: str


def read_bad_ids(path: Path) -> list[str]:
    """Return the ids in a file that :func:`write_bad_files` wrote; none where it is something else."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return [row["id"] for row in csv.DictReader(file) if row.get("id")]


def write_bad_files(path: Path, bad: Iterable[BadFile]) -> None:
    """Write ``bad_files.csv`` with the columns id, path and reason, atomically."""
    # File names on Linux are bytes; those that are no UTF-8 are written as \xNN.
    with replacing(path) as temporary, temporary.open("w", -1, "utf-8", "backslashreplace", "") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "reason"])
        writer.writerows([left_out.id, str(left_out.path), left_out.reason] for left_out in bad)


_SHOWN = 3  # labels named in a warning
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def ordered_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels in order: by value when all are numbers, otherwise by Unicode code point.

    The text of a label is never changed.

    >>> ordered_classes(["10", "2", "1", "2"]), ordered_classes(["10", "2", "b"])
    (('1', '2', '10'), ('10', '2', 'b'))
    """
    distinct = set(labels)
    if all(_NUMBER.fullmatch(label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (Decimal(label), label)))
    return tuple(sorted(distinct))


def encode_labels(
    source: Path,
    labels: Sequence[str],
    allowed: Sequence[str] | None,
    *,
    rule: str = "tidy",
    context: Context = Context(),
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn label texts into (N,) int64 class indices; return them with the class names.

    Only the classes ``allowed`` may occur, in their order. The rule ``tidy`` takes labels that differ only by outer
    white space or Unicode form as one, ``strict`` does not.
    """
    if rule == "tidy":
        labels = _tidied(source, labels, allowed, context)
    classes = tuple(allowed) if allowed is not None else ordered_classes(labels)
    if len(classes) < 2:
        raise EtudeError(
            f"{source} has only one class ({listed(classes)}, {counted(len(labels), 'image')}); a classifier needs "
            "at least two: check that the path names the folder above the class folders, or the right label column"
        )
    if allowed is None:
        _warn_of_similar_labels(source, labels, classes, context)
    index = {label: position for position, label in enumerate(classes)}
    unknown = sorted({label for label in labels if label not in index})
    if unknown:
        raise EtudeError(
            f"{source} has {counted(len(unknown), 'label')} that the training images do not have: {listed(unknown, 3)}"
            f"; the known classes are {listed(classes)}.{nearest(unknown[0], classes)}"
        )
    return np.fromiter((index[label] for label in labels), dtype=np.int64, count=len(labels)), classes


def _tidied(source: Path, labels: Sequence[str], allowed: Sequence[str] | None, context: Context) -> Sequence[str]:
    renamed = spellings(labels, allowed)
    if not renamed:
        return labels
    count = sum(label in renamed for label in labels)
    pairs = [f"{label!r} as {name!r}" for label, name in renamed.items()]
    more = f" and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
    context.warn(
        f"{counted(count, 'label')} of {source} differ from a class only by outer white space or Unicode form, and are "
        f"read as that class: {', '.join(pairs[:_SHOWN])}{more} (--labels strict makes classes of them)"
    )
    return [renamed.get(label, label) for label in labels]


def _warn_of_similar_labels(source: Path, labels: Sequence[str], classes: Sequence[str], context: Context) -> None:
    similar = similar_labels(classes)
    if not similar:
        return
    sizes = Counter(labels)
    groups = [" and ".join(f"{name!r} ({sizes[name]:,})" for name in names) for names in similar]
    more = f"; and {len(groups) - _SHOWN:,} more" if len(groups) > _SHOWN else ""
    context.warn(
        f"{source} has classes that differ only by case, white space or how a number is written: "
        f"{'; '.join(groups[:_SHOWN])}{more}. They are kept as different classes; where they mean the same, write them "
        "the same way"
    )


_LABELLED_KINDS = (
    "training images are read from a folder with one sub-folder per class, or from a .csv, .tsv or .parquet table "
    "with an image column and a label column"
)


@dataclass(frozen=True)
class ImageSet:
    """Images named by id, with their labels where there are any. Nothing is opened yet.

    Ids are unique: the POSIX path relative to ``root``, or the value as the table writes it. They are sorted by Unicode
    code point, which needs no locale, so every machine has the same order.
    """

    root: Path
    ids: Texts  # (N,)
    paths: Paths  # (N,) the file of each id; it may be missing or damaged, which the scan finds out
    labels: np.ndarray | None  # (N,) int64 index into ``classes``, or None for unlabelled images
    classes: tuple[str, ...]
    weights: np.ndarray | None  # (N,) float32 weight of each image in training
    described: str
    others: Texts = field(default_factory=lambda: Texts(()))  # no images, or outside the class folders; below ``root``
    split: GivenSplit | None = None  # which images validate, where a table says so
    groups: Mapping[str, Texts] = field(default_factory=dict[str, Texts])  # (N,) each: equal cells may belong together

    def __len__(self) -> int:
        return len(self.ids)

    def left_out(self) -> Iterator[BadFile]:
        """Yield the other files, with the reason why each is none of the images."""
        for name in self.others:
            path = self.root / name
            image = is_image_file(str(path), path.name)
            yield BadFile(
                portable_text(name), path, "outside the class folders" if image else f"not an image ({_ending(name)})"
            )

    def take(self, indices: np.ndarray | Sequence[int]) -> ImageSet:
        """Return the images at ``indices``, in that order; classes and description stay."""
        chosen = np.asarray(indices, dtype=np.int64)
        ids = self.ids.take(chosen)
        names = ids if self.paths.names is self.ids else self.paths.names.take(chosen)
        return replace(
            self,
            ids=ids,
            paths=Paths(self.paths.root, names),
            labels=None if self.labels is None else self.labels[chosen],
            weights=None if self.weights is None else self.weights[chosen],
            split=None if self.split is None else self.split.take(chosen),
            groups={name: values.take(chosen) for name, values in self.groups.items()},
        )


def read_labelled(
    path: Path | str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    weight_column: str | None = None,
    image_root: Path | str | None = None,
    split_column: str = "auto",
    classes: Sequence[str] | None = None,
    spelling: str = "tidy",
    context: Context = Context(),
) -> ImageSet:
    """Read labelled images from class folders or from a table.

    In a folder each direct sub-folder is a class. Columns of a table, and the folder that its file names start from,
    are found when unambiguous. ``classes`` and ``spelling`` as :func:`encode_labels` takes them.

    Raises:
        EtudeError: nothing usable is there, a column is ambiguous, a label is empty or unknown, ids repeat, or there
            is only one class.
    """
    source = _existing(path)
    if source.is_dir():
        _refuse_columns(source, image_column, label_column, weight_column, image_root)
        return _read_class_folders(source, classes, spelling, context)
    if not is_table(source):
        raise EtudeError(f"{source} is a file, but {_LABELLED_KINDS}")
    rows = tables.read_rows(
        source,
        tables.Columns(image=image_column, label=label_column, weight=weight_column, split=split_column),
        image_root=_optional_folder(image_root),
        labelled=True,
        context=context,
    )
    assert rows.labels is not None
    encoded = encode_labels(source, rows.labels, classes, rule=spelling, context=context)
    images = _sorted_set(source, rows.root, rows.ids, rows.names, encoded, rows)
    return replace(images, described=f"{source.name}, {_size_of(images)} ({rows.note})")


def read_unlabelled(
    path: Path | str, *, image_column: str | None = None, image_root: Path | str | None = None
) -> ImageSet:
    """Read images without labels: a flat or nested folder, a table with an image column, or one image file."""
    source = _existing(path)
    if source.is_dir():
        _refuse_columns(source, image_column, None, None, image_root)
        found = find_images(source)
        if not found.ids:
            raise EtudeError(
                f"{source} holds no images{_others(found.others)}; give a folder of JPEG, PNG, TIFF, WebP or other "
                "image files"
            )
        images = replace(_sorted_set(source, source, found.ids, found.names), others=Texts(sorted(found.others)))
        left_out = _left_out(found.others, found.repeated, found.runs)
        return replace(images, described=f"folder, {counted(len(images), 'image')}{left_out}")
    if is_table(source):
        columns = tables.Columns(image=image_column)
        rows = tables.read_rows(source, columns, image_root=_optional_folder(image_root), labelled=False)
        images = _sorted_set(source, rows.root, rows.ids, rows.names)
        return replace(images, described=f"{source.name}, {counted(len(images), 'image')} ({rows.note})")
    if not is_image_file(str(source), source.name):
        raise EtudeError(
            f"{source} is neither a folder, nor a .csv, .tsv or .parquet table, nor an image file: give one of those"
        )
    images = _sorted_set(source, source.parent, [portable_text(source.name)], [source.name])
    return replace(images, described="one image file")


def _read_class_folders(root: Path, allowed: Sequence[str] | None, spelling: str, context: Context) -> ImageSet:
    ids: list[str] = []
    names: list[str] = []
    labels: list[str] = []
    empty: list[str] = []
    others: list[str] = []
    outside: list[str] = []
    repeated = runs = 0
    for entry in sorted(visible_entries(root), key=lambda entry: portable_text(entry.name)):
        if not is_folder(entry):
            (outside if is_image_file(entry.path, entry.name) else others).append(entry.name)
            continue
        if is_own_folder(entry.path):
            runs += 1
            continue
        found = find_images(Path(entry.path), already_read=root)
        label = portable_text(entry.name)
        own = [f"{label}/{name}" for name in found.ids]
        same = entry.name == label and found.names == found.ids  # nearly always; their texts are then held once
        ids += own
        names += own if same else [f"{entry.name}/{name}" for name in found.names]
        labels.extend([label] * len(found.ids))
        others += [f"{entry.name}/{name}" for name in found.others]
        repeated += found.repeated
        runs += found.runs
        if not found.ids and not found.runs:
            empty.append(label)
    if not ids:
        raise EtudeError(_nothing_labelled(root, len(outside), others, empty))
    _refuse_parts(root, sorted({name.partition("/")[0] for name in names}))
    images = _sorted_set(root, root, ids, names, encode_labels(root, labels, allowed, rule=spelling, context=context))
    images = replace(images, others=Texts(sorted([*others, *outside])))
    left_out = _left_out(others, repeated, runs, len(outside), empty)
    return replace(images, described=f"class folders, {_size_of(images)}{left_out}")


def _sorted_set(
    source: Path,
    root: Path,
    ids: Sequence[str],
    names: Sequence[str],
    encoded: tuple[np.ndarray, tuple[str, ...]] | None = None,
    rows: tables.Rows | None = None,
) -> ImageSet:
    """Put images in the order of their ids; ``encoded`` holds their labels and classes, ``rows`` what a table adds."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    repeated = sorted({ids[a] for a, b in pairwise(order) if ids[a] == ids[b]})
    if repeated:
        raise EtudeError(
            f"{source} names the same image more than once ({counted(len(repeated), 'id')}: {listed(repeated, 3)}); "
            "keep one row or file for each id"
        )
    codes, classes = encoded or (None, ())
    own = Texts(ids[index] for index in order)
    weights, split, groups = (None, None, {}) if rows is None else (rows.weights, rows.split, rows.groups)
    return ImageSet(
        root=root,
        ids=own,
        paths=Paths(root, own if names == ids else Texts(names[index] for index in order)),
        labels=None if codes is None else codes[order],
        classes=classes,
        weights=None if weights is None else np.asarray(weights, dtype=np.float32)[order],
        described="",
        split=None if split is None else split.take(np.array(order)),
        groups={name: Texts(values[index] for index in order) for name, values in groups.items()},
    )


def _existing(path: Path | str) -> Path:
    """Make the path absolute, so that it stays right when the process changes its folder."""
    source = Path(os.path.abspath(os.path.expanduser(path)))
    if os.path.exists(source):
        return source
    siblings = os.listdir(source.parent) if os.access(source.parent, os.R_OK) and source.parent.is_dir() else []
    raise EtudeError(f"{source} does not exist; check the path.{nearest(source.name, siblings)}")


def _optional_folder(path: Path | str | None) -> Path | None:
    if path is None:
        return None
    folder = _existing(path)
    if not folder.is_dir():
        raise EtudeError(f"--image-root {folder} is not a folder; give the folder that the image names start from")
    return folder


def _refuse_columns(source: Path, *options: object) -> None:
    if any(option is not None for option in options):
        raise EtudeError(
            f"{source} is a folder, so --image-column, --label-column, --weight-column and --image-root have no "
            "meaning; leave them out, or give the table they belong to"
        )


def _refuse_parts(root: Path, folders: list[str]) -> None:
    """A data set's top folder (train/, test/) is a common slip; its parts would become the classes.

    Two or more folders with the names of parts are parts where the one for training holds folders itself, or where
    there are no other folders. A class may be called ``test``.
    """
    named = [name for name in folders if name.lower() in PARTS]
    parts = {PARTS[name.lower()]: name for name in named}
    train = parts.pop("train", None)
    holds_classes = train is not None and any(is_folder(entry) for entry in visible_entries(root / train))
    if len(named) < 2 or not (holds_classes or len(named) == len(folders)):
        return
    options = [f"--{part} {shlex.quote(str(root / name))}" for part, name in parts.items()]
    command = " ".join(["etude fit", shlex.quote(str(root / (train or named[0]))), *(options if train else [])])
    raise EtudeError(
        f"the sub-folders of {root} ({listed(folders)}) look like parts of a data set, not classes; give each part "
        f"where it belongs: {command}{_tables_in(root)}"
    )


def _nothing_labelled(root: Path, outside: int, others: list[str], empty: list[str]) -> str:
    hint = _tables_in(root)
    if outside:
        return (
            f"{root} holds {counted(outside, 'image')} but no class folders: put the images of each class into a "
            f"sub-folder named after the class, or give a table with an image column and a label column{hint}"
        )
    if empty:
        return f"the sub-folders of {root} ({listed(empty)}) hold no images{_others(others)}; {_LABELLED_KINDS}{hint}"
    return f"{root} holds no images{_others(others)}; {_LABELLED_KINDS}{hint}"


def _tables_in(root: Path) -> str:
    found = sorted(entry.name for entry in visible_entries(root) if is_table(Path(entry.name)))
    return f"; it also holds {listed(found)}: to read such a table, give its path" if found else ""


def _size_of(images: ImageSet) -> str:
    return f"{counted(len(images), 'image')} in {counted(len(images.classes), 'class', 'classes')}"


def by_ending(names: Iterable[str]) -> str:
    """Return how many files have which ending, the most frequent first."""
    counts = Counter(map(_ending, names))
    endings = [f"{count:,} {ending}" for ending, count in counts.most_common(3)]
    more = [f"{counts.total() - sum(count for _, count in counts.most_common(3)):,} more"] if len(counts) > 3 else []
    return f"{counted(counts.total(), 'other file')} ({', '.join([*endings, *more])})"


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"


def _others(names: Sequence[str]) -> str:
    return f", only {by_ending(names)}" if names else ""


def _left_out(others: Sequence[str], repeated: int, runs: int, outside: int = 0, empty: Sequence[str] = ()) -> str:
    parts = [
        by_ending(others) if others else "",
        f"{counted(outside, 'image')} outside the class folders" if outside else "",
        f"{counted(repeated, 'link')} to a folder that was already read" if repeated else "",
        f"{counted(runs, 'folder')} of runs or caches" if runs else "",
        f"{counted(len(empty), 'class folder')} without images ({listed(empty, 3)})" if empty else "",
    ]
    text = ", ".join(part for part in parts if part)
    return f"; left out: {text}" if text else ""
