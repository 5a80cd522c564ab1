"""CSV, TSV and Parquet tables of images: found columns, exact labels, and each mistake in one sentence."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.data.sources import ordered_classes, read_labelled, read_unlabelled


@pytest.fixture
def folder(tmp_path: Path, save_image) -> Path:
    """A folder with a.png, b.png, c.png, d.png."""
    for number, name in enumerate("abcd"):
        save_image(tmp_path / f"{name}.png", seed=number)
    return tmp_path


def write(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def labels_of(images) -> list[str]:
    return [images.classes[label] for label in images.labels]


def test_columns_are_found_by_what_they_hold(folder: Path) -> None:
    images = read_labelled(write(folder / "t.csv", "file,digit", "b.png,7", "a.png,3", "d.png,10", "c.png,3"))
    assert images.ids == ("a.png", "b.png", "c.png", "d.png")
    assert images.classes == ("3", "7", "10")
    assert labels_of(images) == ["3", "7", "3", "10"]
    assert images.root == folder
    assert images.described == "t.csv, 4 images in 3 classes (image column 'file', label column 'digit')"


def test_a_usual_label_name_wins_over_other_columns(folder: Path) -> None:
    table = write(folder / "t.csv", "width,Label,which", "3,x,a.png", "4,y,b.png")
    assert labels_of(read_labelled(table)) == ["x", "y"]


def test_tsv_semicolons_byte_order_mark_and_index_column(folder: Path) -> None:
    rows = ["image,label", "a.png,x", "b.png,y"]
    for name, separator, start in (("t.tsv", "\t", ""), ("s.csv", ";", ""), ("b.csv", ",", "\ufeff")):
        table = write(folder / name, *(start * (row == rows[0]) + row.replace(",", separator) for row in rows))
        assert labels_of(read_labelled(table)) == ["x", "y"]
    pandas_like = write(folder / "p.csv", ",image,kind", "0,a.png,x", "1,b.png,y")
    assert labels_of(read_labelled(pandas_like)) == ["x", "y"]


def test_ids_without_suffix_in_the_one_folder_that_has_them(folder: Path, save_image) -> None:
    save_image(folder / "deep" / "train_images" / "007.jpg")
    save_image(folder / "deep" / "train_images" / "8.png")
    save_image(folder / "deep" / "others" / "zzz.png")
    table = write(folder / "deep" / "train.csv", "image_id,label", "007,x", "8,y")
    images = read_labelled(table)
    assert images.ids == ("007", "8")
    assert [path.name for path in images.paths] == ["007.jpg", "8.png"]
    assert all(path.is_file() for path in images.paths)


def test_labels_that_also_look_like_ids_do_not_confuse(tmp_path: Path, save_image) -> None:
    for number in range(4):
        save_image(tmp_path / "images" / f"{number}.png", seed=number)
    table = write(tmp_path / "train.csv", "id,label", "0,1", "1,0", "2,1", "3,0")
    images = read_labelled(table)
    assert labels_of(images) == ["1", "0", "1", "0"]


def test_names_in_two_folders_need_the_root(tmp_path: Path, save_image) -> None:
    for place in ("train", "test"):
        for number in range(2):
            save_image(tmp_path / place / f"{number}.png", seed=number)
    table = write(tmp_path / "t.csv", "id,label", "0,x", "1,y")
    with pytest.raises(
        EtudeError, match=r"are found in several folders \(.*test.*train.*\); choose one with --image-root"
    ):
        read_labelled(table)
    images = read_labelled(table, image_root=tmp_path / "test")
    assert images.paths[0] == tmp_path / "test" / "0.png"


def test_an_id_that_fits_two_files(tmp_path: Path, save_image) -> None:
    for name in ("0.png", "0.jpg", "1.png"):
        save_image(tmp_path / name)
    with pytest.raises(EtudeError, match=r"the id '0' fits several files .*'0.jpg', '0.png'"):
        read_labelled(write(tmp_path / "t.csv", "id,label", "0,x", "1,y"))


def test_backslashes_of_a_table_written_on_windows(tmp_path: Path, save_image) -> None:
    save_image(tmp_path / "cats" / "a.png")
    save_image(tmp_path / "dogs" / "b.png")
    images = read_labelled(write(tmp_path / "t.csv", "file,label", "cats\\a.png,x", "dogs\\b.png,y"))
    assert all(path.is_file() for path in images.paths)
    assert images.ids == ("cats\\a.png", "dogs\\b.png")


def test_missing_files_are_kept_for_the_survey_unless_all_are(folder: Path) -> None:
    images = read_labelled(write(folder / "t.csv", "image,label", "a.png,x", "gone.png,y", "b.png,y"))
    assert images.ids == ("a.png", "b.png", "gone.png")
    table = write(folder / "t.csv", "image,label", "gone1.png,x", "gone2.png,y")
    with pytest.raises(EtudeError, match=r"none of the 2 images that .* names exists .*gone1.png.*--image-root"):
        read_labelled(table)


ODD_LABELS = ["a,b", 'say "hi"', "in/slash", "..", "con", "🐈‍⬛", "  leading", "two\nlines", "ÅÅ", "../../etc/passwd"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_odd_labels_survive_exactly(tmp_path: Path, save_image, kind: str) -> None:
    names = [save_image(tmp_path / f"{number:02}.png").name for number in range(len(ODD_LABELS))]
    table = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pl.DataFrame({"image": names, "label": ODD_LABELS}).write_parquet(table)
    else:
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([["image", "label"], *zip(names, ODD_LABELS, strict=True)])
    images = read_labelled(table)
    assert labels_of(images) == ODD_LABELS
    assert set(images.classes) == set(ODD_LABELS)


def test_parquet_types_become_text(folder: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    for values, expected in (
        ([2, 10, 1], ["2", "10", "1"]),
        ([True, False, True], ["true", "false", "true"]),
        ([0.0, 1.0, 0.5], ["0.0", "1.0", "0.5"]),
    ):
        pl.DataFrame({"path": names, "n": values}).write_parquet(folder / "t.parquet")
        assert labels_of(read_labelled(folder / "t.parquet")) == expected
    pl.DataFrame({"path": names, "n": pl.Series(["x", "y", "x"], dtype=pl.Categorical)}).write_parquet(
        folder / "t.parquet"
    )
    assert labels_of(read_labelled(folder / "t.parquet")) == ["x", "y", "x"]


def test_images_inside_a_parquet_file(folder: Path) -> None:
    pl.DataFrame({"image": [{"bytes": b"x", "path": "a"}]}).write_parquet(folder / "t.parquet")
    with pytest.raises(EtudeError, match="not images stored inside the table"):
        read_labelled(folder / "t.parquet")


def test_weights(folder: Path) -> None:
    table = write(folder / "t.csv", "image,label,w", "b.png,x,0.33", "a.png,y,1")
    images = read_labelled(table, weight_column="w")
    assert images.weights is not None
    assert images.weights.dtype == np.float32
    np.testing.assert_allclose(images.weights, [1, 0.33])
    np.testing.assert_allclose(images.take([1]).weights, [0.33])
    for wrong in ("0", "-1", "nan", "inf", "heavy"):
        table = write(folder / "t.csv", "image,label,w", f"b.png,x,{wrong}", "a.png,y,1")
        with pytest.raises(EtudeError, match=f"line 2 of .*'b.png'.* has the weight '{wrong}' in column 'w'"):
            read_labelled(table, weight_column="w")


def test_unlabelled_table(folder: Path) -> None:
    images = read_unlabelled(write(folder / "sample_submission.csv", "id,label", "b,0", "a,0"))
    assert images.ids == ("a", "b")
    assert images.labels is None
    assert images.described == "sample_submission.csv, 2 images (image column 'id')"


@pytest.mark.parametrize("blank", ["", "   ", '""'])
def test_empty_label(folder: Path, blank: str) -> None:
    table = write(folder / "t.csv", "image,label", "a.png,x", f"b.png,{blank}", "c.png,y")
    with pytest.raises(
        EtudeError, match=r"no label in column 'label' for 1 of its 3 rows, first in line 3 \(image 'b.png'\)"
    ):
        read_labelled(table)


def test_null_label_in_parquet(folder: Path) -> None:
    for values in ([1.0, float("nan")], ["x", None]):
        pl.DataFrame({"image": ["a.png", "b.png"], "label": values}).write_parquet(folder / "t.parquet")
        with pytest.raises(EtudeError, match="no label in column 'label' for 1 of its 2 rows, first in row 2"):
            read_labelled(folder / "t.parquet")


def test_empty_image_name(folder: Path) -> None:
    with pytest.raises(EtudeError, match="no image name in column 'image'"):
        read_labelled(write(folder / "t.csv", "image,label", "a.png,x", ",y"))


def test_duplicate_ids(folder: Path) -> None:
    table = write(folder / "t.csv", "image,label", "a.png,x", "b.png,y", "a.png,y", "b.png,y", "c.png,y")
    with pytest.raises(EtudeError, match=r"the same image more than once \(2 ids: 'a.png', 'b.png'\); keep one row"):
        read_labelled(table)


def test_wrong_column_name_names_the_nearest(folder: Path) -> None:
    table = write(folder / "t.csv", "image,label", "a.png,x", "b.png,y")
    with pytest.raises(EtudeError, match=r"--label-column 'lable' is not in .*'image', 'label'.* Did you mean 'label'"):
        read_labelled(table, label_column="lable")


def test_unclear_label_column(folder: Path) -> None:
    table = write(folder / "t.csv", "image,colour,shape", "a.png,x,1", "b.png,y,2")
    with pytest.raises(
        EtudeError, match=r"not clear which column .*'colour', 'shape'; choose one, such as --label-column"
    ):
        read_labelled(table)
    assert labels_of(read_labelled(table, label_column="shape")) == ["1", "2"]
    table = write(folder / "t.csv", "image,class,target", "a.png,x,1", "b.png,y,2")
    with pytest.raises(EtudeError, match="several columns that may hold the label"):
        read_labelled(table)


def test_unclear_image_column(folder: Path) -> None:
    table = write(folder / "t.csv", "left,right,label", "a.png,c.png,x", "b.png,d.png,y")
    with pytest.raises(EtudeError, match=r"several columns that may name the images \('left', 'right'\)"):
        read_labelled(table)
    assert read_labelled(table, image_column="right", label_column="label").ids == ("c.png", "d.png")


def test_no_image_column(folder: Path) -> None:
    with pytest.raises(EtudeError, match=r"no column of .* \('n', 'm'\) names image files.*--image-column"):
        read_labelled(write(folder / "t.csv", "n,m", "1,2", "3,4"))


def test_no_label_column(folder: Path) -> None:
    with pytest.raises(EtudeError, match="has an image column 'image' but no label column"):
        read_labelled(write(folder / "t.csv", "image", "a.png", "b.png"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"image,label\n", "has no rows"),
        (b"image,label\na.png,x\nb.png,y,z\n", "line 3 of .* has 3 fields, but its header has 2"),
        (b'image,label\na.png,"x\n', "not a well-formed table"),
        (b"image,label\na.png,\xe9\n", "is not UTF-8 text"),
        (b"image,image\na.png,x\n", "several columns named 'image'"),
    ],
)
def test_damaged_csv(folder: Path, content: bytes, told: str) -> None:
    (folder / "t.csv").write_bytes(content)
    with pytest.raises(EtudeError, match=told):
        read_labelled(folder / "t.csv")


def test_damaged_parquet(folder: Path) -> None:
    (folder / "t.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(EtudeError, match="is not a readable Parquet file"):
        read_labelled(folder / "t.parquet")


def test_image_root_must_be_a_folder(folder: Path) -> None:
    table = write(folder / "t.csv", "image,label", "a.png,x", "b.png,y")
    with pytest.raises(EtudeError, match="is not a folder"):
        read_labelled(table, image_root=folder / "a.png")
    with pytest.raises(EtudeError, match="does not exist"):
        read_labelled(table, image_root=folder / "nowhere")


@given(st.lists(st.integers(-999, 999).map(str), min_size=1))
def test_numeric_classes_are_ordered_by_value(labels: list[str]) -> None:
    assert list(ordered_classes(labels)) == [str(value) for value in sorted({int(label) for label in labels})]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=2, max_size=4, unique=True)
)
def test_any_text_is_a_label(folder: Path, labels: list[str]) -> None:
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [["image", "label"], *([f"{name}.png", label] for name, label in zip("abcd", labels, strict=False))]
        )
    assert labels_of(read_labelled(folder / "t.csv", spelling="strict", context=Context(warn=str))) == labels


# --- labels that are written in several ways ---


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["box", "box ", " box", "cat"], ("box", "cat")),
        (["box ", "\tbox", "cat", "cat"], ("box", "cat")),
        (["caf\u00e9", "cafe\u0301", "cat", "cat\u00a0"], ("caf\u00e9", "cat")),
        ([" cat", " dog", " cat", " dog"], (" cat", " dog")),
    ],
)
def test_outer_spaces_and_unicode_forms_make_no_class(
    folder: Path, labels: list[str], classes: tuple[str, ...]
) -> None:
    table = write(
        folder / "t.csv", "image,label", *(f"{name}.png,{label}" for name, label in zip("abcd", labels, strict=False))
    )
    told: list[str] = []
    assert read_labelled(table, context=Context(warn=told.append)).classes == tuple(sorted(classes))
    renamed = [label for label in labels if label not in classes]
    assert len(told) == bool(renamed)
    assert [label for label in renamed if repr(label) not in told[0]] == []
    assert set(read_labelled(table, spelling="strict", context=Context(warn=str)).classes) == set(labels)


def test_case_is_never_merged_and_warned_of_by_name(folder: Path) -> None:
    table = write(folder / "t.csv", "image,label", "a.png,box", "b.png,Box", "c.png,cat", "d.png,box")
    told: list[str] = []
    assert read_labelled(table, context=Context(warn=told.append)).classes == ("Box", "box", "cat")
    assert len(told) == 1
    assert "'Box' (1) and 'box' (2)" in told[0]
    assert "cat" not in told[0]


def test_labels_of_validation_rows_are_those_of_training_but_for_outer_spaces(folder: Path) -> None:
    table = write(folder / "t.csv", "image,label", "a.png,box ", "b.png,box", "c.png, cat")
    told: list[str] = []
    images = read_labelled(table, classes=("box", "cat"), context=Context(warn=told.append))
    assert (images.classes, labels_of(images)) == (("box", "cat"), ["box", "box", "cat"])
    assert ["'box '" in text and "' cat'" in text for text in told] == [True]
    for classes, spelling in ((("box", "cat"), "strict"), (("box", "cat", "cat "), "tidy")):
        with pytest.raises(EtudeError, match="' cat'"):
            read_labelled(table, classes=classes, spelling=spelling, context=Context(warn=str))
