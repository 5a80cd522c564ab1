from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.core.submission import Unreadable, write_submission

IDS = ("test/1.jpg", "test/2.jpg", "test/3.jpg")
TABLE = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
# Any text, and the names of files that are not UTF-8.
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8) | st.binary(
    max_size=8
).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


def predictions(ids: tuple[str, ...] = IDS, classes: tuple[str, ...] = ("cat", "dog")) -> Predictions:
    return Predictions.from_probabilities(ids, classes, TABLE)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def submit(folder: Path, sample: str | None, made: Predictions | None = None, **settings: Any) -> list[list[str]]:
    if sample is not None:
        (folder / "sample.csv").write_text(sample, encoding="utf-8")
        settings["sample"] = folder / "sample.csv"
    write_submission(folder / "out.csv", made or predictions(), **settings)
    return rows_of(folder / "out.csv")


def refused(folder: Path, sample: str, sentence: str, made: Predictions | None = None, **settings: Any) -> None:
    with pytest.raises(EtudeError, match=sentence):
        submit(folder, sample, made, **settings)
    assert [path.name for path in folder.iterdir()] == ["sample.csv"]


def test_labels_without_a_sample(tmp_path: Path):
    assert submit(tmp_path, None) == [["id", "label"], [IDS[0], "cat"], [IDS[1], "dog"], [IDS[2], "cat"]]
    assert submit(tmp_path, None, id_column="file", label_column="breed")[0] == ["file", "breed"]


def test_probabilities_without_a_sample(tmp_path: Path):
    header, *rows = submit(tmp_path, None, probabilities=True)
    assert header == ["id", "cat", "dog"]
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in rows], TABLE, atol=1e-7)


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(EtudeError, match="two columns named 'id'"):
        submit(tmp_path, None, predictions(classes=("id", "dog")), probabilities=True)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(NAMES, min_size=3, max_size=3, unique=True), st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_any_text_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, ids: list[str], classes: list[str]):
    path = tmp_path_factory.mktemp("text") / "out.csv"
    write_submission(path, Predictions(tuple(ids), tuple(classes), np.eye(3)[None]))
    assert rows_of(path)[1:] == [list(pair) for pair in zip(ids, classes, strict=True)]


def test_other_readers_see_the_same_text(tmp_path: Path):
    classes = ('a,"b"', "  =SUM(A1)\n🐕")
    submit(tmp_path, None, predictions(classes=classes))
    table = pl.read_csv(tmp_path / "out.csv")
    assert table["label"].to_list() == [classes[0], classes[1], classes[0]]


@pytest.mark.parametrize(
    "names",
    [
        ("test/3.jpg", "test/1.jpg", "test/2.jpg"),
        ("test/3", "test/1", "test/2"),
        ("3.jpg", "1.jpg", "2.jpg"),
        ("elsewhere/3.jpg", "elsewhere/1.jpg", "elsewhere/2.jpg"),
        ("3", "1", "2"),
        ("3.png", "1.png", "2.png"),
        ("test\\3.jpg", "test\\1.jpg", "test\\2.jpg"),
    ],
)
def test_the_sample_gives_order_columns_and_ids(tmp_path: Path, names: tuple[str, ...]):
    sample = "image,breed\n" + "".join(f"{name},cat\n" for name in names)
    expected = [["image", "breed"], [names[0], "cat"], [names[1], "cat"], [names[2], "dog"]]
    assert submit(tmp_path, sample) == expected


def test_an_exact_id_wins_over_a_file_name(tmp_path: Path):
    made = predictions(("a/1.jpg", "1.jpg", "b/1.jpg"))
    rows = submit(tmp_path, "id,label\nb/1.jpg,\n1.jpg,\na/1.jpg,\n", made)
    assert rows[1:] == [["b/1.jpg", "cat"], ["1.jpg", "dog"], ["a/1.jpg", "cat"]]


def test_a_suffix_that_is_part_of_the_name_stays(tmp_path: Path):
    made = predictions(("cell.1.png", "cell.2.png", "cell.3.png"))
    rows = submit(tmp_path, "id,label\ncell.2,\ncell.1,\ncell.3,\n", made)
    assert rows[1:] == [["cell.2", "dog"], ["cell.1", "cat"], ["cell.3", "cat"]]


def test_ids_that_are_ambiguous_without_folder_are_not_guessed(tmp_path: Path):
    made = predictions(("a/1.jpg", "b/1.jpg", "b/2.jpg"))
    refused(tmp_path, "id,label\n1.jpg,cat\n2.jpg,cat\n3.jpg,cat\n", "different ids", made)


def test_missing_and_extra_ids_are_named_and_counted(tmp_path: Path):
    refused(
        tmp_path,
        "id,label\n1.jpg,cat\n2.jpg,cat\n4.jpg,cat\n5.jpg,cat\n",
        r"2 of its 4 ids have no prediction \('4.jpg', '5.jpg'\) and "
        r"1 of 3 predictions are not in it \('test/3.jpg'\)",
    )


def test_a_sample_of_probabilities_gives_the_order_of_classes(tmp_path: Path):
    header, *rows = submit(tmp_path, "id,dog,cat\n2,0.5,0.5\n1,0.5,0.5\n3,0.5,0.5\n", probabilities=False)
    assert header == ["id", "dog", "cat"]
    assert [row[0] for row in rows] == ["2", "1", "3"]
    np.testing.assert_allclose(
        [[float(cell) for cell in row[1:]] for row in rows], [[0.8, 0.2], [0.1, 0.9], [0.3, 0.7]], atol=1e-7
    )


def test_columns_that_are_no_classes_are_named(tmp_path: Path):
    made = predictions(classes=("cat", "mouse"))
    refused(
        tmp_path, "id,cat,dog\n1,0,0\n2,0,0\n3,0,0\n", r"no class of the model \('dog'\).*no column \('mouse'\)", made
    )


@pytest.mark.parametrize("cells", [("0.3",) * 3, ("0", "1", "0.5"), ("1e-3", "0", "1"), ("0.0",) * 3])
def test_a_column_of_fractions_holds_the_probability_of_the_positive_class(tmp_path: Path, cells: tuple[str, ...]):
    sample = "id,target\n" + "".join(f"{name},{cell}\n" for name, cell in zip("312", cells, strict=True))
    for classes, expected in ((("0", "1"), [0.3, 0.1, 0.8]), (("Yes", "No"), [0.7, 0.9, 0.2])):
        header, *rows = submit(tmp_path, sample, predictions(classes=classes))
        assert header == ["id", "target"]
        np.testing.assert_allclose([float(cell) for _, cell in rows], expected, atol=1e-7)


def test_a_positive_class_may_be_named(tmp_path: Path):
    sample = "id,target\n1,0.5\n2,0.5\n3,0.5\n"
    for name, column in (("cat", 0), ("dog", 1)):
        _, *rows = submit(tmp_path, sample, positive=name)
        np.testing.assert_allclose([float(cell) for _, cell in rows], TABLE[:, column], atol=1e-7)
    header, *rows = submit(tmp_path, None, positive="dog")
    assert (header, len(rows)) == (["id", "dog"], 3)
    assert submit(tmp_path, None, positive="dog", id_column="a", label_column="p") == [["a", "p"], *rows]
    np.testing.assert_allclose([float(cell) for _, cell in rows], TABLE[:, 1], atol=1e-7)
    _, *rows = submit(tmp_path, "id,target\n1,0\n2,0\n3,0\n", positive="dog")
    assert float(rows[1][1]) == pytest.approx(0.8)


def test_whose_probability_a_column_holds_is_not_guessed(tmp_path: Path):
    sample = "id,target\n1,0.5\n2,0.5\n3,0.5\n"
    refused(tmp_path, sample, "'target' .*--positive.*'cat', 'dog'")
    refused(tmp_path, sample.replace("0.5", "cat"), "'target' .*--positive", probabilities=True)
    refused(tmp_path, sample, "--positive is 'dogg'.* Did you mean 'dog'", positive="dogg")
    refused(tmp_path, "id,cat,dog\n1,0,0\n2,0,0\n3,0,0\n", "--positive 'dog' has no meaning", positive="dog")


def test_labels_of_the_sample_that_are_no_classes_are_named(tmp_path: Path):
    refused(tmp_path, "id,breed\n1,beagle\n2,poodle\n3,beagle\n", "'beagle', 'poodle'.*'cat', 'dog'.*--label-column")
    for cells, named in ((("cat", "dog", "eel"), "'eel'"), (("?", "?", "?"), "'?'")):
        told: list[str] = []
        sample = "id,kind\n" + "".join(f"{name},{cell}\n" for name, cell in zip("123", cells, strict=True))
        assert submit(tmp_path, sample, warn=told.append)[1:] == [["1", "cat"], ["2", "dog"], ["3", "cat"]]
        assert [named in sentence for sentence in told] == [True]


def test_columns_and_labels_that_differ_by_outer_spaces_are_the_classes(tmp_path: Path):
    header, _, second, _ = submit(tmp_path, "id, dog,cat \n1,0,0\n2,0,0\n3,0,0\n")
    assert (header, [round(float(cell), 6) for cell in second]) == (["id", " dog", "cat "], [2, 0.8, 0.2])
    assert submit(tmp_path, "id,label\n1, cat\n2,dog \n3,\n")[1:] == [["1", "cat"], ["2", "dog"], ["3", "cat"]]


# --- images that cannot be read ---

BROKEN = Unreadable(["test/4.jpg", "test/9.jpg"], {"cat": 1, "dog": 3, "eel": 9})


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("id,label\n4.jpg,\n1.jpg,\n2.jpg,\n3.jpg,\n", ["dog"]),
        ("id,dog,cat\n4,0,0\n1,0,0\n2,0,0\n3,0,0\n", ["0.75", "0.25"]),
        ("id,cat\ntest/4.jpg,.5\ntest/1.jpg,.5\ntest/2.jpg,.5\ntest/3.jpg,.5\n", ["0.25"]),
    ],
)
def test_the_row_of_an_image_that_cannot_be_read_is_filled_and_named(tmp_path: Path, sample: str, expected: list[str]):
    told: list[str] = []
    _, first, *rest = submit(tmp_path, sample, unreadable=BROKEN, warn=told.append)
    assert [cell if cell == "dog" else f"{float(cell):.2f}" for cell in first[1:]] == expected
    assert len(rest) == 3
    assert rest == submit(tmp_path, re.sub("\n[^\n]*4[^\n]*", "", sample, count=1))[1:]
    assert len(told) == 1
    assert f"1 of 4 rows of {tmp_path / 'out.csv'}" in told[0]
    assert repr(first[0]) in told[0]


def test_an_unreadable_image_does_not_make_ids_ambiguous(tmp_path: Path):
    other = Unreadable(["train/1.jpg", "test/4.jpg", "test/4.jpg", "test/1.jpg"], {})
    assert submit(tmp_path, "id,label\n3,\n1,\n2,\n", unreadable=other)[2] == ["1", "cat"]
    rows = submit(tmp_path, "id,cat,dog\ntest/4,0,0\ntest/1,0,0\ntest/2,0,0\ntest/3,0,0\n", unreadable=other, warn=str)
    assert rows[1] == ["test/4", "0.5", "0.5"]


def test_an_id_without_any_file_is_refused_beside_one_that_cannot_be_read(tmp_path: Path):
    sample = "id,label\n1.jpg,\n2.jpg,\n3.jpg,\n4.jpg,\n5.jpg,\n"
    refused(tmp_path, sample, r"1 of its 5 ids have no prediction \('5.jpg'\)", unreadable=BROKEN)
    refused(
        tmp_path,
        sample.replace("3.jpg,\n", "").replace("5.jpg,\n", ""),
        r"1 of 3 predictions are not in it \('test/3.jpg'\)",
        unreadable=BROKEN,
    )
    assert len(submit(tmp_path, None, unreadable=BROKEN)) == 4


def test_one_column_named_after_a_class_holds_its_probability(tmp_path: Path):
    rows = submit(tmp_path, "id,dog\n1,0.5\n2,0.5\n3,0.5\n", probabilities=True)
    assert rows[0] == ["id", "dog"]
    np.testing.assert_allclose([float(row[1]) for row in rows[1:]], TABLE[:, 1], atol=1e-7)


def test_numeric_classes_and_integer_placeholders_are_labels(tmp_path: Path):
    made = predictions(classes=("0.5", "1"))
    assert submit(tmp_path, "id,y\n1,0.5\n2,0.5\n3,0.5\n", made)[1:] == [["1", "0.5"], ["2", "1"], ["3", "0.5"]]
    assert submit(tmp_path, "id,y\n1,0\n2,0\n3,0\n", warn=str)[1:] == [["1", "cat"], ["2", "dog"], ["3", "cat"]]
    assert submit(tmp_path, "id,y\n1,0\n2,1\n3,0\n", predictions(classes=("1", "0")))[1] == ["1", "1"]


def test_a_byte_order_mark_and_empty_lines_of_the_sample_are_no_text(tmp_path: Path):
    assert submit(tmp_path, "\ufeffid,y\r\n1,\r\n\r\n2,\r\n3,\r\n\r\n")[0] == ["id", "y"]


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ("", "must have a header"),
        ("id,label\n", "at least one row"),
        ("id;label\n1;cat\n", "separated by commas"),
        ("id,label\n1,cat\n2\n", "has 1 cells in line 3, not 2"),
        ("id,label\n1,cat\n1,cat\n", "same id more than once: '1'"),
        ("id,cat,cat\n1,0,0\n", "same column more than once: 'cat'"),
        ('id,label\n1,"cat" x\n', "is not a well-formed CSV"),
    ],
)
def test_a_sample_that_is_no_sample(tmp_path: Path, sample: str, sentence: str):
    refused(tmp_path, sample, sentence)


def test_a_sample_that_is_not_there(tmp_path: Path):
    with pytest.raises(EtudeError, match=r"none.csv does not exist"):
        write_submission(tmp_path / "out.csv", predictions(), sample=tmp_path / "none.csv")
    with pytest.raises(EtudeError, match="is not a well-formed CSV"):
        write_submission(tmp_path / "out.csv", predictions(), sample=tmp_path)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(NAMES, min_size=3, max_size=3, unique=True), st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_any_ids_match_or_are_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, ours: list[str], theirs: list[str]
):
    folder = tmp_path_factory.mktemp("ids")
    with (folder / "sample.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["id", "label"], *([name, "cat"] for name in theirs)])
    try:
        write_submission(folder / "out.csv", predictions(tuple(ours)), sample=folder / "sample.csv")
    except EtudeError:
        assert not (folder / "out.csv").exists()
        assert set(ours) != set(theirs)
    else:
        assert [row[0] for row in rows_of(folder / "out.csv")[1:]] == theirs


@pytest.mark.parametrize(("classes", "column", "cells"), [(("cat", "dog"), "dog", "000"), (("0", "1"), "1", "000")])
def test_a_column_named_after_a_class_and_filled_with_a_number_holds_its_probability(
    tmp_path: Path, classes: tuple[str, str], column: str, cells: str
):
    sample = f"id,{column}\n" + "".join(f"{name},{cell}\n" for name, cell in zip(IDS, cells, strict=True))
    written = submit(tmp_path, sample, predictions(classes=classes))
    assert [float(row[1]) for row in written[1:]] == pytest.approx(TABLE[:, 1])


def test_a_column_named_after_a_class_may_hold_labels(tmp_path: Path):
    sample = "id,dog\n" + "".join(f"{name},{cell}\n" for name, cell in zip(IDS, ("cat", "dog", "cat"), strict=True))
    assert [row[1] for row in submit(tmp_path, sample)[1:]] == ["cat", "dog", "cat"]
