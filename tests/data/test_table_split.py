"""Columns of tables that say which rows validate, and columns that look like groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.data.sources import ImageSet, read_labelled


@pytest.fixture
def table(tmp_path: Path, save_image):
    """``table(split=[...], ...)`` writes a table of six images with labels x and y and these columns."""
    for number in range(6):
        save_image(tmp_path / f"{number}.png", seed=number)

    def write(**columns: Sequence[str]) -> Path:
        rows = [["image", "label", *columns]]
        rows += [[f"{row}.png", "xy"[row % 2], *cells] for row, cells in enumerate(zip(*columns.values(), strict=True))]
        (tmp_path / "t.csv").write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path / "t.csv"

    return write


def folds_of(images: ImageSet) -> list[int]:
    assert images.split is not None
    return images.split.fold_of.tolist()


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("is_valid", ["True", "False", "False", "False", "True", "False"]),
        ("is_valid", ["1.0", "0.0", "0.0", "0.0", "1.0", ""]),
        ("Is_Validation", ["yes", "no", "no", "no", "YES", "no"]),
        ("split", ["valid", "train", "train", "train", "Validation", "training"]),
        ("subset", ["val", "train", "train", "train", "dev", " train"]),
    ],
)
def test_marked_rows_validate(table, name: str, cells: list[str]):
    images = read_labelled(table(**{name: cells}))
    assert folds_of(images) == [0, -1, -1, -1, 0, -1]
    assert f"split column {name!r}" in images.described
    assert folds_of(images.take([4, 1])) == [0, -1]
    assert images.split is not None
    assert [part.tolist() for part in images.split.pairs(all_folds=False)[0]] == [[1, 2, 3, 5], [0, 4]]


def test_folds_are_those_of_the_column(table):
    images = read_labelled(table(fold=["2", "0", "1", "2", "0", "1"]))
    assert folds_of(images) == [2, 0, 1, 2, 0, 1]
    assert images.split is not None
    assert images.split.folds == ("0", "1", "2")
    assert [valid.tolist() for _, valid in images.split.pairs(all_folds=True)] == [[1, 4], [2, 5], [0, 3]]
    assert [valid.tolist() for _, valid in images.split.pairs(all_folds=False)] == [[1, 4]]


def test_rows_keep_their_split_when_they_are_sorted(table, tmp_path):
    path = table(is_valid=["True", "False", "False", "False", "True", "False"])
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert folds_of(read_labelled(path)) == [0, -1, -1, -1, 0, -1]


def test_test_rows_neither_train_nor_validate_and_need_no_label(table):
    path = table(split=["train", "test", "valid", "train", "test", "valid"])
    path.write_text(path.read_text().replace("1.png,y", "1.png,"))
    told: list[str] = []
    images = read_labelled(path, context=Context(warn=told.append))
    assert images.ids == ("0.png", "2.png", "3.png", "5.png")
    assert folds_of(images) == [-1, 0, -1, 0]
    assert len(told) == 1
    assert "2 rows" in told[0]
    assert "'split'" in told[0]
    path.write_text(path.read_text().replace("3.png,y", "3.png,"))
    with pytest.raises(EtudeError, match=r"first in line 5 \(image '3.png'\)"):
        read_labelled(path, context=Context(warn=told.append))


def test_test_rows_alone_leave_the_split_to_etude(table):
    told: list[str] = []
    images = read_labelled(
        table(split=["train", "test", "train", "train", "test", "train"]), context=Context(warn=told.append)
    )
    assert (len(images), images.split, len(told)) == (4, None, 2)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("split", ["a", "b", "c", "a", "b", "c"]),
        ("is_valid", ["0.3", "0.2", "1", "1", "0", "0"]),
        ("is_valid", ["False"] * 6),
        ("fold", ["0"] * 6),
        ("fold", ["1.5", "2", "3", "1.5", "2", "3"]),
    ],
)
def test_a_column_that_does_not_say_what_its_name_says_is_named_and_not_used(table, name: str, cells: list[str]):
    told: list[str] = []
    images = read_labelled(table(**{name: cells}), context=Context(warn=told.append))
    assert (len(images), images.split) == (6, None)
    assert len(told) == 1
    assert repr(name) in told[0]


def test_one_column_is_used_of_several(table):
    told: list[str] = []
    marked = ["True", "False", "False", "False", "True", "False"]
    images = read_labelled(table(is_valid=marked, fold=["0", "1", "2"] * 2), context=Context(warn=told.append))
    assert folds_of(images) == [0, -1, -1, -1, 0, -1]
    assert ["'fold'" in text and "'is_valid'" in text for text in told] == [True]
    path = table(is_valid=marked, fold=["0", "1", "2"] * 2, mine=["1", "0", "0"] * 2)
    assert folds_of(read_labelled(path, split_column="fold", context=Context(warn=told.append))) == [0, 1, 2, 0, 1, 2]
    assert folds_of(read_labelled(path, split_column="mine", context=Context(warn=told.append))) == [
        0,
        -1,
        -1,
        0,
        -1,
        -1,
    ]
    assert read_labelled(path, split_column="none", context=Context(warn=told.append)).split is None


def test_a_column_that_cannot_be_used_though_asked_for_is_refused(table):
    path = table(split=["a", "b", "c", "d", "e", "f"], is_valid=["True"] * 6)
    for asked, sentence in (
        ("splitt", "'splitt'.*Did you mean 'split'"),
        ("split", "'split' .*'a', 'b', 'c' and 3 more"),
        ("is_valid", "'is_valid' .* no row to train on"),
    ):
        with pytest.raises(EtudeError, match=sentence):
            read_labelled(path, split_column=asked, context=Context(warn=str))


def test_a_column_of_labels_or_images_is_no_split(table, tmp_path, save_image):
    path = table(val=["a", "b", "c", "a", "b", "c"])
    images = read_labelled(path, label_column="val")
    assert (images.classes, images.split) == (("a", "b", "c"), None)
    path.write_text(path.read_text().replace("image,label,val", "image,kind,is_valid").replace(",a\n", ",1\n"))
    path.write_text(path.read_text().replace(",b\n", ",0\n").replace(",c\n", ",0\n"))
    images = read_labelled(path)  # the column of validation rows is no other column that may hold the label
    assert (images.classes, folds_of(images)) == (("x", "y"), [0, -1, -1, 0, -1, -1])


def test_columns_that_look_like_groups(table):
    path = table(
        patient_id=["p", "p", "q", "q", "r", "r"],
        Site=["a", "a", "a", "b", "b", "b"],
        image_id=["10", "11", "12", "13", "14", "15"],
        class_id=["7", "8", "7", "8", "7", "8"],
        case=["", "", "", "", "", ""],
        width=["10", "10", "20", "20", "30", "30"],
    )
    images = read_labelled(path)
    assert set(images.groups) == {"patient_id", "Site"}
    assert tuple(images.take(np.array([5, 0])).groups["patient_id"]) == ("r", "p")


@pytest.mark.parametrize(
    ("name", "cells"), [("split", ["train", "train", "test"] * 2), ("is_valid", ["0"] * 6), ("set", ["train"] * 6)]
)
def test_a_split_column_that_is_not_used_is_no_label(table, name: str, cells: list[str]):
    path = table(**{name: cells})
    path.write_text(path.read_text().replace("label", "kind"))
    assert "label column 'kind'" in read_labelled(path, context=Context(warn=len)).described
