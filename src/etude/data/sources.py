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
from etude.data import tables, walk
from etude.data.compact import Paths, Texts
from etude.data.tables import PARTS, GivenSplit
from etude.data.walk import FoundImages, is_folder, is_image_file, portable_text, visible_entries


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


_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def ordered_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels in order: by value when all are numbers, otherwise by Unicode code point.

    The text of a label is never changed.
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
    pairs = listed((f"{label!r} as {name!r}" for label, name in renamed.items()), 3, str)
    context.warn(
        f"{counted(count, 'label')} of {source} differ from a class only by outer white space or Unicode form, and are "
        f"read as that class: {pairs} (--labels strict makes classes of them)"
    )
    return [renamed.get(label, label) for label in labels]


def _warn_of_similar_labels(source: Path, labels: Sequence[str], classes: Sequence[str], context: Context) -> None:
    sizes = Counter(labels)
    groups = [" and ".join(f"{name!r} ({sizes[name]:,})" for name in names) for names in similar_labels(classes)]
    if groups:
        context.warn(
            f"{source} has classes that differ only by case, white space or how a number is written: "
            f"{listed(groups, 3, str)}. They are kept as different classes; where they mean the same, write them "
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
        found = walk.find_images(source)
        if not found.ids:
            raise EtudeError(
                f"{source} holds no images{_others(found)}; give a folder of JPEG, PNG, TIFF, WebP or other image files"
            )
        images = _sorted_set(source, source, found.ids, found.names)
        described = f"folder, {counted(len(images), 'image')}{_left_out(found)}"
        return replace(images, others=Texts(sorted(found.others)), described=described)
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


def read_files(files: Iterable[Path | str]) -> ImageSet:
    """Read image files that are named one by one, without labels; the ids are the names as they are given."""
    paths = {portable_text(str(file)): _existing(file) for file in files}
    if not paths:
        raise EtudeError("no image was given: name one or more, a folder of images, or a table with an image column")
    for path in paths.values():
        if not is_image_file(str(path), path.name):
            raise EtudeError(f"{path} is no image file; give image files alone, or one folder or table")
    images = _sorted_set(Path.cwd(), Path.cwd(), [*paths], [str(path) for path in paths.values()])
    return replace(images, described=f"{counted(len(images), 'image file')}")


def stated_labels(
    path: Path, images: ImageSet, classes: Sequence[str], column: str | None = None, rule: str = "tidy"
) -> tuple[np.ndarray | None, str]:
    """Return labels (N,) int64 of images that were read without, to score predictions by, and where they stand.

    None where every image of a folder is not below a class's own, or a table has no label ``column`` (by default one
    with a usual name) that holds nothing but classes, two or more. ``rule`` as :func:`encode_labels` takes it.
    """
    name = "class folders"
    if path.is_dir():
        labels = [name.partition("/")[0] if "/" in name else "" for name in images.ids]
    else:
        try:
            name, stated = tables.stated_labels(path, column) if is_table(path) else ("", {})
        except EtudeError:  # of several columns, or with blank cells: no labels to score by
            name, stated = "", {}
        labels = [stated.get(name, "") for name in images.ids]
    renamed = spellings(labels, classes) if rule == "tidy" else {}
    index = {label: position for position, label in enumerate(classes)}
    found = np.array([index.get(renamed.get(label, label), -1) for label in labels], np.int64)
    return None if (found < 0).any() or len(np.unique(found)) < 2 else found, name


def _read_class_folders(root: Path, allowed: Sequence[str] | None, spelling: str, context: Context) -> ImageSet:
    found = FoundImages()
    labels, empty, outside = list[str](), list[str](), list[str]()
    for entry in sorted(visible_entries(root), key=lambda entry: portable_text(entry.name)):
        if not is_folder(entry):
            (outside if is_image_file(entry.path, entry.name) else found.others).append(entry.name)
        elif walk.is_own_folder(entry.path):
            found.runs += 1
        else:
            before = len(found.ids), found.runs
            walk.find_images(root, entry.name, found)
            label = portable_text(entry.name)
            labels += [label] * (len(found.ids) - before[0])
            if (len(found.ids), found.runs) == before:
                empty.append(label)
    if not found.ids:
        raise EtudeError(_nothing_labelled(root, outside, found, empty))
    _refuse_parts(root, sorted({name.partition("/")[0] for name in found.names}))
    encoded = encode_labels(root, labels, allowed, rule=spelling, context=context)
    images = _sorted_set(root, root, found.ids, found.names, encoded)
    described = f"class folders, {_size_of(images)}{_left_out(found, outside, empty)}"
    return replace(images, others=Texts(sorted([*found.others, *outside])), described=described)


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


def _nothing_labelled(root: Path, outside: list[str], found: FoundImages, empty: list[str]) -> str:
    hint = _tables_in(root)
    if outside:
        return (
            f"{root} holds {counted(len(outside), 'image')} but no class folders: put the images of each class into a "
            f"sub-folder named after the class, or give a table with an image column and a label column{hint}"
        )
    where = f"the sub-folders of {root} ({listed(empty)}) hold" if empty else f"{root} holds"
    return f"{where} no images{_others(found)}; {_LABELLED_KINDS}{hint}"


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


def _others(found: FoundImages) -> str:
    return f", only {by_ending(found.others)}" if found.others else ""


def _left_out(found: FoundImages, outside: Sequence[str] = (), empty: Sequence[str] = ()) -> str:
    parts = [
        by_ending(found.others) if found.others else "",
        f"{counted(len(outside), 'image')} outside the class folders" if outside else "",
        f"{counted(found.repeated, 'link')} to a folder that was already read" if found.repeated else "",
        f"{counted(found.runs, 'folder')} of runs or caches" if found.runs else "",
        f"{counted(len(empty), 'class folder')} without images ({listed(empty, 3)})" if empty else "",
    ]
    text = ", ".join(part for part in parts if part)
    return f"; left out: {text}" if text else ""
