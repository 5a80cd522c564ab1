from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.core.submission import write_submission
from etude.refine.tables import Source, in_classes, read_probabilities, read_source, with_classes, with_labels

ONE = Predictions(("a", "b"), ("cat", "dog"), np.log([[[0.2, 0.8], [0.5, 0.5]]]), labels=np.array([1, -1]))


def written(folder: Path, text: str, name: str = "p.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def silent(sentence: str) -> None:
    raise AssertionError(f"no warning was due: {sentence}")


@pytest.mark.parametrize(
    "text",
    [
        "id,cat,dog\na,0.2,0.8\nb,0.5,0.5\n",
        "cat,image_id,dog\n0.2,a,0.8\n0.5,b,0.5\n",
        ",id,cat,dog\n0,a,0.2,0.8\n1,b,0.5,0.5\n",
        "\ufefffile,cat,dog\n\na,2e-1,.8\nb,0.5,0.5\n",
        "id;cat;dog\na;0.2;0.8\nb;0.5;0.5\n",
        "photo,cat,dog\na,0.2,0.8\nb,0.5,0.5\n",
    ],
)
def test_tables_of_other_tools_are_read(tmp_path: Path, text: str):
    found = read_probabilities(written(tmp_path, text), warn=silent)
    assert (found.ids, found.classes, found.labels) == (ONE.ids, ONE.classes, None)
    np.testing.assert_allclose(found.probabilities(), ONE.probabilities(), atol=1e-7)


def test_tsv_parquet_and_npz_are_read(tmp_path: Path):
    frame = pl.DataFrame({"id": ["a", "b"], "cat": [0.2, 0.5], "dog": [0.8, 0.5]})
    frame.write_parquet(tmp_path / "p.parquet")
    written(tmp_path, "id\tcat\tdog\na\t0.2\t0.8\nb\t0.5\t0.5\n", "p.tsv")
    ONE.save(tmp_path / "p.npz")
    for name in ("p.parquet", "p.tsv", "p.npz"):
        np.testing.assert_allclose(read_probabilities(tmp_path / name).probabilities(), ONE.probabilities(), atol=1e-6)


def test_what_was_written_is_read_again(tmp_path: Path):
    rng = np.random.default_rng(0)
    one = Predictions([f"{i}" for i in range(50)], ["x", "y", "z"], rng.normal(size=(1, 50, 3)) * 4)
    write_submission(tmp_path / "s.csv", one, probabilities=True)
    found = read_probabilities(tmp_path / "s.csv", warn=silent)
    np.testing.assert_allclose(found.probabilities(), one.probabilities(), rtol=1e-6)


@pytest.mark.parametrize("column", ["label", "Class", "target"])
def test_a_column_of_labels_is_found_by_its_name(tmp_path: Path, column: str):
    found = read_probabilities(written(tmp_path, f"id,cat,dog,{column}\na,0.2,0.8,dog\nb,0.5,0.5,\n"))
    assert found.classes == ("cat", "dog")
    assert found.labels is not None
    assert found.labels.tolist() == [1, -1]


def test_a_class_named_like_a_label_column_is_a_class(tmp_path: Path):
    found = read_probabilities(written(tmp_path, "id,target,rest\na,0.2,0.8\nb,0.5,0.5\n"))
    assert (found.classes, found.labels) == (("target", "rest"), None)


def test_columns_may_be_named(tmp_path: Path):
    path = written(tmp_path, "who,cat,dog,is\na,0.2,0.8,dog\nb,0.5,0.5,cat\n")
    found = read_probabilities(path, id_column="who", label_column="is")
    assert found.labels is not None
    assert (found.ids, found.labels.tolist()) == (("a", "b"), [1, 0])
    with pytest.raises(EtudeError, match=r"--label-column 'iss' is not in .* Did you mean 'is'"):
        read_probabilities(path, label_column="iss")


def test_rows_that_do_not_sum_to_one_are_divided_and_told(tmp_path: Path):
    told: list[str] = []
    found = read_probabilities(written(tmp_path, "id,cat,dog\na,1,4\nb,0.5,0.5\n"), warn=told.append)
    np.testing.assert_allclose(found.probabilities(), ONE.probabilities(), atol=1e-7)
    assert len(told) == 1
    assert "1 of 2 images" in told[0]
    assert "'a', 5" in told[0]


@pytest.mark.parametrize("cell", ["-0.1", "nan", "inf", "", "much"])
def test_what_is_no_probability_is_refused_with_its_place(tmp_path: Path, cell: str):
    with pytest.raises(EtudeError, match=rf"line 3 of .*p.csv \(image 'b'\) has '{cell}' in column 'dog'"):
        read_probabilities(written(tmp_path, f"id,cat,dog\na,0.2,0.8\nb,0.5,{cell}\n"))


@pytest.mark.each(
    ("text", "sentence"),
    [
        ("id,cat,dog\na,0,0\n", "every class a probability of zero"),
        ("id,cat,dog\na,0.2,0.8\na,0.5,0.5\n", "several rows for 'a'"),
        ("id,cat,cat\na,0.2,0.8\n", "several columns named 'cat'"),
        ("id,cat,dog\na,0.2\n", "line 2 of .* has 2 fields, but its header has 3"),
        ("id,target\na,0.2\nb,1.2\n", r"line 3 of .*'b'.* has '1.2' in column 'target'.* from 0 to 1"),
        ("id,target\na,x\nb, \n", r"line 3 of .*'b'.* has an empty cell in column 'target'"),
        ("id,label\na,cat\nb,dog\n", "label for each id and no probabilities"),
        ("id\na\n", "and has none"),
        ("id,cat,dog\n", "has no rows"),
        ("", "has no rows"),
        ("id,cat,dog,label\na,0.2,0.8,dogg\n", r"label of 'a' .* is 'dogg'.*Did you mean 'dog'"),
        ('id,cat,dog\n"a,0.2,0.8\n', "is not a well-formed table"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path: Path, text: str, sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        read_probabilities(written(tmp_path, text))


def test_files_that_are_no_tables_are_refused(tmp_path: Path):
    for name, sentence in (("p.xlsx", "no table that can be read"), ("none.csv", "does not exist")):
        with pytest.raises(EtudeError, match=sentence):
            read_probabilities(tmp_path / name)
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(EtudeError, match="not a readable Parquet"):
        read_probabilities(tmp_path / "p.parquet")
    (tmp_path / "p.csv").write_bytes(b"id,caf\xe9,x\na,1,0\n")
    with pytest.raises(EtudeError, match="not UTF-8"):
        read_probabilities(tmp_path / "p.csv")


@pytest.mark.parametrize(
    "text", ["id,label\nb,cat\na,dog\nc,dog\n", "name,other,label\na,1,dog\nb,2,cat\n", "id,kind\na,dog\nb,cat\n"]
)
def test_labels_come_from_a_file_of_their_own(tmp_path: Path, text: str):
    found = with_labels(ONE, written(tmp_path, text, "labels.csv"), warn=silent)
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0]


def test_labels_come_from_predictions_too(tmp_path: Path):
    ONE.save(tmp_path / "one.npz")
    told: list[str] = []
    turned = Predictions(("b", "a"), ("dog", "cat"), np.zeros((1, 2, 2)))
    found = with_labels(turned, tmp_path / "one.npz", warn=told.append)
    assert found.labels is not None
    assert found.labels.tolist() == [-1, 0]
    assert "1 of 2 images have no label" in told[0]


def test_labels_fit_with_or_without_endings_and_outer_spaces(tmp_path: Path):
    found = with_labels(ONE, written(tmp_path, "id,label\na.png, cat\nb.png,dog\n", "labels.csv"), warn=silent)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]
    other_folders = written(tmp_path, "id,label\nx/a,cat\nx/b,dog\n", "labels.csv")
    with pytest.raises(EtudeError, match="label for none"):
        with_labels(ONE, other_folders, warn=silent)


# --- single columns ---


def sources(folder: Path, *texts: str, positive: str | None = None) -> list[Source]:
    paths = [written(folder, text, f"{place}.csv") for place, text in enumerate(texts)]
    return in_classes([read_source(path, warn=silent) for path in paths], paths, positive)


SINGLE = "image,target\na,0.2\nb,1\n"


@pytest.mark.parametrize(
    ("other", "positive", "classes", "first"),
    [
        ("id,target\na,1e-3\nb,0\n", None, ("0", "1"), [0.8, 0.2]),
        ("id,yes,no\na,.5,.5\nb,.5,.5\n", None, ("no", "yes"), [0.8, 0.2]),
        ("id,target,rest\na,.5,.5\nb,.5,.5\n", None, ("rest", "target"), [0.8, 0.2]),
        ("id,cat,dog\na,.5,.5\nb,.5,.5\n", "cat", ("dog", "cat"), [0.8, 0.2]),
        ("id,label\na,0\nb,1\n", None, ("0", "1"), [0.8, 0.2]),
    ],
)
def test_a_single_column_is_the_probability_of_one_of_two_classes(
    tmp_path: Path, other: str, positive: str | None, classes: tuple[str, ...], first: list[float]
):
    single = sources(tmp_path, SINGLE, other, positive=positive)[0]
    assert (single.holds, single.columns, single.positive) == ("probability", ("image", "target"), classes[1])
    assert single.predictions.classes == classes
    np.testing.assert_allclose(single.predictions.probabilities()[0], first, atol=1e-7)


def test_labels_of_several_files_are_their_classes_together(tmp_path: Path):
    first, second = sources(tmp_path, "id,label\na,cat\nb,dog \n", "id,kind\na,cow\nb,dog\n")
    assert (first.holds, second.columns) == ("labels", ("id", "kind"))
    assert first.predictions.classes == second.predictions.classes == ("cat", "cow", "dog")
    assert (first.predictions.predicted().tolist(), second.predictions.predicted().tolist()) == ([0, 2], [1, 2])


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ("id,cat,dog\na,.5,.5\nb,.5,.5\n", r"0.csv .*'target'.*'cat', 'dog'.*--positive"),
        ("id,x,y,z\na,.5,.5,0\nb,.5,.5,0\n", r"0.csv .*'target'.*'x', 'y', 'z'"),
    ],
)
def test_whose_probability_a_single_column_is_is_not_guessed(tmp_path: Path, other: str, sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        sources(tmp_path, SINGLE, other)
    with pytest.raises(EtudeError, match="holds the label 'cow'"):
        sources(tmp_path, "id,label\na,cow\nb,cat\n", "id,cat,dog\na,.5,.5\nb,.5,.5\n")


def test_labels_that_do_not_fit_are_refused(tmp_path: Path):
    cases = [
        ("id,label\nx.png,cat\n", "label for none of the 2 predicted images"),
        ("id,label\na,cow\n", "is 'cow'"),
        ("id,one,two\na,cat,dog\n", "name it with --label-column"),
        ("id,label\na,cat\na,dog\n", "several rows for 'a'"),
    ]
    for text, sentence in cases:
        with pytest.raises(EtudeError, match=sentence):
            with_labels(ONE, written(tmp_path, text, "labels.csv"), warn=str)
    Predictions(ONE.ids, ONE.classes, ONE.logits).save(tmp_path / "bare.npz")
    with pytest.raises(EtudeError, match="holds no labels"):
        with_labels(ONE, tmp_path / "bare.npz")


def test_columns_are_brought_into_the_order_of_the_classes():
    turned = with_classes(ONE, ("dog", "cat"), "here")
    assert turned.labels is not None
    assert turned.labels.tolist() == [0, -1]
    np.testing.assert_allclose(turned.probabilities(), ONE.probabilities()[:, ::-1])
    with pytest.raises(EtudeError, match=r"classes of here .* lacks 'cow' and has 'dog' as well"):
        with_classes(ONE, ("cat", "cow"), "here")


def test_whole_numbers_with_a_point_are_labels_where_they_are_no_probabilities(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("id,label\na,0.0\nb,2.0\nc,1.0\n")
    found = read_source(tmp_path / "labels.csv")
    assert (found.holds, found.predictions.classes) == ("labels", ("0.0", "1.0", "2.0"))


def test_ids_that_parquet_holds_as_bytes_are_the_ids(tmp_path: Path):
    frame = pl.DataFrame({"id": [b"x.png", b"y.png"], "a": [0.2, 0.3], "b": [0.8, 0.7]})
    frame.with_columns(pl.Series("picture", [b"\xff\xfe", b"\x80"])).write_parquet(tmp_path / "p.parquet")
    found = read_probabilities(tmp_path / "p.parquet")
    assert (found.ids, found.classes) == (("x.png", "y.png"), ("a", "b"))
