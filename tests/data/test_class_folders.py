"""Class folders and unlabelled folders, as a new user would give them, right and wrong."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etude.core.context import Context, Silent
from etude.core.errors import EtudeError
from etude.data import walk
from etude.data.scan import scan_images
from etude.data.sources import read_labelled, read_unlabelled


def test_class_folders_give_sorted_ids_labels_and_classes(class_folders: Path, save_image) -> None:
    save_image(class_folders / "cat" / "deep" / "er" / "x.JPEG")
    images = read_labelled(class_folders)
    assert images.ids == (
        *("cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png", "cat/deep/er/x.JPEG"),
        *("dog/4.png", "dog/5.png", "dog/6.png", "dog/7.png"),
    )
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [0] * 5 + [1] * 4
    assert all((images.root / name).samefile(path) for name, path in zip(images.ids, images.paths, strict=True))
    assert images.described == "class folders, 9 images in 2 classes"
    assert len(images) == 9


def test_take_keeps_everything_aligned(class_folders: Path) -> None:
    images = read_labelled(class_folders).take(np.array([7, 0]))
    assert images.ids == ("dog/7.png", "cat/0.png")
    assert [path.name for path in images.paths] == ["7.png", "0.png"]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0]
    assert images.classes == ("cat", "dog")


def test_hidden_and_other_files_are_left_out_and_counted(class_folders: Path, save_image) -> None:
    for hidden in (".DS_Store", "cat/.hidden.png", "cat/__MACOSX/0.png", ".git/x.png", "@eaDir/x.png"):
        save_image((class_folders / hidden).with_suffix(".png")).rename(
            (class_folders / hidden).parent / Path(hidden).name
        )
    (class_folders / "cat" / "Thumbs.db").write_bytes(b"x")
    (class_folders / "cat" / "notes.txt").write_text("x")
    (class_folders / "empty").mkdir()
    save_image(class_folders / "stray.png")
    images = read_labelled(class_folders)
    assert len(images) == 8
    assert images.described.endswith(
        "left out: 2 other files (1 .db, 1 .txt), 1 image outside the class folders, 1 class folder without images "
        "('empty')"
    )
    assert [(file.id, file.reason) for file in images.left_out()] == [
        ("cat/Thumbs.db", "not an image (.db)"),
        ("cat/notes.txt", "not an image (.txt)"),
        ("stray.png", "outside the class folders"),
    ]


ODD_ENDINGS = (("jfif", "JPEG"), ("jpe", "JPEG"), ("ppm", "PPM"), ("tga", "TGA"), ("jp2", "JPEG2000"), ("qoi", "QOI"))


def test_files_are_images_by_their_content_where_the_ending_says_nothing(class_folders: Path) -> None:
    picture = Image.open(class_folders / "cat" / "0.png")
    for ending, kind in ODD_ENDINGS:
        picture.save(class_folders / "cat" / f"odd.{ending}", kind)
    for name, kind in (("none", "PNG"), ("as.dat", "JPEG"), ("IMG_1.5", "WEBP"), ("tiff.0001", "TIFF"), ("g.x", "GIF")):
        picture.save(class_folders / "cat" / name, kind)
    for name, content in (("Makefile", b"all:\n"), ("x.npy", b"\x93NUMPY"), ("a.wav", b"RIFF\0\0\0\0WAVE"), ("e", b"")):
        (class_folders / "cat" / name).write_bytes(content)
    (class_folders / "cat" / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    os.mkfifo(class_folders / "cat" / "pipe")
    os.mkfifo(class_folders / "cat" / "pipe.png")
    images = read_labelled(class_folders)
    assert len(images) == 8 + len(ODD_ENDINGS) + 5 + 1
    assert [(file.id, file.reason) for file in images.left_out()] == [
        ("cat/Makefile", "not an image (without an ending)"),
        ("cat/a.wav", "not an image (.wav)"),
        ("cat/e", "not an image (without an ending)"),
        ("cat/page.eps", "not an image (.eps)"),
        ("cat/pipe", "not an image (without an ending)"),
        ("cat/x.npy", "not an image (.npy)"),
    ]
    scan = scan_images(images, Silent())
    assert [(file.id, file.reason) for file in scan.bad] == [("cat/pipe.png", "not a regular file")]
    assert (scan.widths == 12).all()
    assert read_unlabelled(class_folders / "cat" / "none").ids == ("none",)
    with pytest.raises(EtudeError, match="neither a folder"):
        read_unlabelled(class_folders / "cat" / "Makefile")


def test_known_endings_cost_no_look_at_the_content(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (class_folders / "cat" / "0.json").write_text("{}")
    monkeypatch.setattr(walk, "is_image_content", pytest.fail)
    assert len(read_labelled(class_folders)) == 8


@pytest.mark.parametrize("label", ["con", " leading", "a,b", 'say "hi"', "🐈", "naïve", "aux.", "semi;colon"])
def test_any_folder_name_is_a_class(class_folders: Path, label: str) -> None:
    (class_folders / "dog").rename(class_folders / label)
    images = read_labelled(class_folders)
    assert set(images.classes) == {"cat", label}


def test_numeric_classes_are_in_number_order(class_folders: Path) -> None:
    (class_folders / "dog").rename(class_folders / "10")
    (class_folders / "cat").rename(class_folders / "9")
    assert read_labelled(class_folders).classes == ("9", "10")


def test_ids_do_not_depend_on_how_the_machine_writes_accents(tmp_path: Path, save_image) -> None:
    for form in ("NFC", "NFD"):
        for name in ("é", "z", "f"):
            save_image(tmp_path / form / unicodedata.normalize(form, name) / f"{unicodedata.normalize(form, name)}.png")
    composed, decomposed = (read_labelled(tmp_path / form) for form in ("NFC", "NFD"))
    assert composed.ids == decomposed.ids == ("f/f.png", "z/z.png", "é/é.png")
    assert composed.classes == decomposed.classes
    assert all(path.is_file() for path in decomposed.paths)


def test_file_names_that_are_no_text_get_ids_that_can_be_written(class_folders: Path, save_image) -> None:
    odd = os.fsdecode(bytes(class_folders / "cat") + b"/\xff.png")
    shutil.copy(class_folders / "cat" / "0.png", odd)
    images = read_labelled(class_folders)
    assert "cat/\\xff.png" in images.ids
    assert all(path.is_file() for path in images.paths)
    "".join(images.ids).encode("utf-8")


def test_links_are_followed_once_and_never_in_a_circle(class_folders: Path, tmp_path: Path, save_image) -> None:
    save_image(tmp_path / "elsewhere" / "a.png")
    (class_folders / "cat" / "up").symlink_to(class_folders)
    (class_folders / "cat" / "self").symlink_to("self")
    (class_folders / "cat" / "nested").mkdir()
    (class_folders / "cat" / "nested" / "back").symlink_to(class_folders / "cat")
    (class_folders / "cat" / "a_first").symlink_to(tmp_path / "elsewhere")
    (class_folders / "cat" / "b_second").symlink_to(tmp_path / "elsewhere")
    images = read_labelled(class_folders)
    assert len(images) == 9
    assert "cat/a_first/a.png" in images.ids
    assert "3 links to a folder that was already read" in images.described


def test_two_class_folders_may_link_to_the_same_place(class_folders: Path) -> None:
    (class_folders / "kitten").symlink_to(class_folders / "cat")
    assert read_labelled(class_folders).classes == ("cat", "dog", "kitten")


def test_validation_labels_take_the_training_classes(class_folders: Path) -> None:
    shutil.rmtree(class_folders / "cat")
    images = read_labelled(class_folders, classes=("ape", "cat", "dog"))
    assert images.classes == ("ape", "cat", "dog")
    assert images.labels is not None
    assert set(images.labels.tolist()) == {2}


def test_unknown_validation_label_names_the_nearest(class_folders: Path) -> None:
    with pytest.raises(EtudeError, match=r"1 label that the training images do not have: 'cat'.*Did you mean 'cats'"):
        read_labelled(class_folders, classes=("cats", "dog"))


def test_missing_folder_names_the_nearest(class_folders: Path) -> None:
    with pytest.raises(EtudeError, match=r"trian does not exist.* Did you mean 'train'"):
        read_labelled(class_folders.parent / "trian")
    with pytest.raises(EtudeError, match="does not exist"):
        read_unlabelled(class_folders / "no" / "where")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(EtudeError, match="holds no images; training images are read from a folder with one sub-folder"):
        read_labelled(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(EtudeError, match="holds no images, only 1 other file"):
        read_unlabelled(tmp_path)


def test_class_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(EtudeError, match=r"the sub-folders of .* \('cat'\) hold no images"):
        read_labelled(tmp_path)


def test_one_class(class_folders: Path) -> None:
    shutil.rmtree(class_folders / "dog")
    with pytest.raises(EtudeError, match=r"only one class \('cat', 4 images\); a classifier needs at least two"):
        read_labelled(class_folders)


def test_images_without_class_folders_point_at_the_table_beside_them(class_folders: Path) -> None:
    (class_folders / "cat" / "train.csv").write_text("image,label\n")
    with pytest.raises(EtudeError, match=r"holds 4 images but no class folders: .*it also holds 'train.csv'"):
        read_labelled(class_folders / "cat")


def test_the_top_of_a_data_set_is_not_class_folders(class_folders: Path) -> None:
    top = class_folders.parent / "a top"
    for name in ("Train", "val"):
        shutil.copytree(class_folders, top / name)
    for name in ("test", "unlabelled", "extra"):
        shutil.copytree(class_folders / "cat", top / name)
    with pytest.raises(EtudeError) as refused:
        read_labelled(top)
    parts = (("--test", "test"), ("--unlabeled", "unlabelled"), ("--valid", "val"))
    command = " ".join(["etude fit", f"'{top / 'Train'}'", *(f"{option} '{top / name}'" for option, name in parts)])
    assert command in str(refused.value)


def test_the_top_of_a_data_set_with_a_table_is_not_class_folders(class_folders: Path) -> None:
    for name in ("train", "test"):
        (class_folders / {"train": "cat", "test": "dog"}[name]).rename(class_folders / name)
    (class_folders / "train.csv").write_text("image,label\n")
    with pytest.raises(EtudeError, match=r"\('test', 'train'\) look like parts .*'train.csv'"):
        read_labelled(class_folders)


@pytest.mark.parametrize(
    "names", [("test", "exam", "quiz"), ("train", "test", "plane"), ("train", "bus"), ("dev", "x")]
)
def test_classes_may_be_called_like_parts_of_a_data_set(tmp_path: Path, save_image, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        save_image(tmp_path / name / "0.png", seed=number)
    save_image(tmp_path / "bus" / "old" / "1.png", seed=9)
    assert set(read_labelled(tmp_path).classes) == {*names, "bus"}


def test_classes_that_differ_by_outer_spaces_are_one(class_folders: Path) -> None:
    (class_folders / "dog").rename(class_folders / "cat ")
    (class_folders / "Dog").mkdir()
    shutil.copy(class_folders / "cat" / "0.png", class_folders / "Dog" / "0.png")
    told: list[str] = []
    images = read_labelled(class_folders, context=Context(warn=told.append))
    assert images.classes == ("Dog", "cat")
    assert {"cat/0.png", "cat /4.png", "Dog/0.png"} < set(images.ids)
    assert all(path.is_file() for path in images.paths)
    assert ["'cat '" in text for text in told] == [True]
    assert read_labelled(class_folders, spelling="strict", context=Context(warn=str)).classes == ("Dog", "cat", "cat ")


@pytest.mark.parametrize("place", ["runs/train", "cat/run", "mine"])
def test_runs_are_no_images(class_folders: Path, save_image, place: str) -> None:
    save_image(class_folders / place / "fold-1" / "timeline.png")
    (class_folders / place / "run.json").write_text('{\n  "schema_version": 2\n}')
    images = read_labelled(class_folders)
    assert (images.classes, len(images)) == (("cat", "dog"), 8)
    assert images.described.endswith("left out: 1 folder of runs or caches")
    unlabelled = read_unlabelled(class_folders)
    assert unlabelled.ids == images.ids
    assert unlabelled.described.endswith("left out: 1 folder of runs or caches")
    (class_folders / place / "run.json").write_text('{"laps": 3}')  # a record of something else says nothing
    assert len(read_unlabelled(class_folders)) == 9


def test_file_instead_of_folder(class_folders: Path) -> None:
    with pytest.raises(EtudeError, match="is a file, but training images are read from a folder"):
        read_labelled(class_folders / "cat" / "0.png")
    (class_folders / "notes.txt").write_text("x")
    with pytest.raises(EtudeError, match=r"neither a folder, nor a .csv"):
        read_unlabelled(class_folders / "notes.txt")


def test_table_options_have_no_meaning_for_a_folder(class_folders: Path) -> None:
    with pytest.raises(EtudeError, match="is a folder, so --image-column"):
        read_labelled(class_folders, label_column="label")


def test_forbidden_folder_is_told(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def forbid(folder: str | Path) -> object:
        if os.fspath(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied")  # root, who runs the tests in containers, is never refused
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(EtudeError, match=r"dog' cannot be read \(permission denied\): change its permissions"):
        read_labelled(class_folders)


def test_unlabelled_folder_is_nested_or_flat(class_folders: Path, save_image) -> None:
    save_image(class_folders / "top.webp")
    images = read_unlabelled(class_folders)
    assert images.labels is None
    assert images.classes == ()
    assert len(images) == 9
    assert images.ids[0] == "cat/0.png"
    assert images.ids[-1] == "top.webp"
    assert images.described == "folder, 9 images"
    assert images.take([8]).labels is None


def test_one_image_file(class_folders: Path) -> None:
    images = read_unlabelled(class_folders / "cat" / "0.png")
    assert images.ids == ("0.png",)
    assert images.paths[0].is_file()


def test_paths_stay_right_when_the_process_moves(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(class_folders.parent)
    images = read_labelled("train")
    monkeypatch.chdir("/")
    assert all(path.is_file() for path in images.paths)
