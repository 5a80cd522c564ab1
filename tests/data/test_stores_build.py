"""Building a store: once, reused, keyed by what matters, and with every file that is left out named."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.storing import KINDS, build, whole_stores, write_images
from etude.core.context import Context, Silent
from etude.core.errors import EtudeError
from etude.data.decode import decode
from etude.data.scan import scan_images
from etude.data.sources import read_labelled, read_unlabelled
from etude.data.stores.build import build_store


@pytest.fixture
def partly_bad(class_folders: Path, save_image) -> Path:
    """The eight good images, and: zero bytes, text, truncated JPEG, broken link."""
    (class_folders / "cat" / "a_empty.png").touch()
    (class_folders / "cat" / "b_text.jpg").write_text("not an image")
    whole = save_image(class_folders / "cat" / "c_cut.jpg", size=(64, 64)).read_bytes()
    (class_folders / "cat" / "c_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (class_folders / "cat" / "d_gone.png").symlink_to("nowhere.png")
    return class_folders


@pytest.mark.parametrize("kind", ["raw", "blosc2"])
def test_bad_files_are_listed_and_left_out(kind: str, partly_bad: Path, tmp_path: Path, progress) -> None:
    images = read_labelled(partly_bad)
    for attempt in range(2):
        built = build(images, tmp_path / "cache", progress=progress, kind=kind)
        assert built.reused == bool(attempt)
        assert {file.id: file.reason for file in built.bad} == {
            "cat/a_empty.png": "empty file (zero bytes)",
            "cat/b_text.jpg": "not an image of a known kind",
            "cat/c_cut.jpg": "truncated",
            "cat/d_gone.png": "file not found",
        }
        kept = images.take(built.kept)
        assert len(kept) == len(built.store) == len(built.content_hashes) == 8
        for row, path in enumerate(kept.paths):
            expected = decode(path.read_bytes(), 8, built.fit, 3)
            np.testing.assert_array_equal(built.store.gather([row], 8)[0], expected)
    assert progress.bars["decode"] == [9, 9]
    assert progress.bars["check store"] == [built.store.record.total_bytes] * 2


def test_missing_files_of_a_table_are_listed(class_folders: Path, tmp_path: Path) -> None:
    table = class_folders / "t.csv"
    table.write_text("image,label\ncat/0.png,x\ngone.png,y\ndog/4.png,y\n")
    built = build(read_labelled(table), tmp_path / "cache")
    assert [(file.id, file.reason) for file in built.bad] == [("gone.png", "file not found")]
    assert built.kept.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_all_truncated_is_one_sentence_and_leaves_nothing(kind: str, tmp_path: Path, save_image) -> None:
    path = save_image(tmp_path / "in" / "a.jpg", size=(64, 64))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(EtudeError, match=r"none of the 1 image in .* can be used .*truncated"):
        build(read_unlabelled(tmp_path / "in"), tmp_path / "cache", kind=kind)
    assert whole_stores(tmp_path / "cache") == []


def test_a_second_build_reuses_and_the_key_covers_what_matters(class_folders: Path, tmp_path: Path) -> None:
    images = read_labelled(class_folders)
    cache = tmp_path / "cache"
    first = build(images, cache)
    assert not first.reused
    assert build(images, cache).store.folder == first.store.folder
    assert first.fit == "crop"
    swapped = images.take([1, 0])
    others = [
        build(images, cache, size=9),
        build(images, cache, fit="letterbox"),
        build(swapped, cache),
        build(images, cache, kind="encoded"),
        build(images, cache, kind="blosc2"),
    ]
    assert not any(other.reused for other in others)
    assert len({str(other.store.folder) for other in [first, *others]}) == 6
    assert others[1].fit_reason == "letterbox, as asked for"
    (class_folders / "dog").rename(class_folders / "dogs")
    assert build(read_labelled(class_folders), cache).reused, "names do not count"


@pytest.mark.parametrize("kind", KINDS)
def test_auto_takes_the_store_that_is_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "in", 3, 8)
    first = build(images, tmp_path / "cache", kind=kind)
    monkeypatch.setattr("etude.data.stores.build.choose_kind", None)  # nothing is measured
    again = build(images, tmp_path / "cache", kind="auto")
    assert again.reused
    assert again.store.folder == first.store.folder
    assert again.kind == kind
    assert again.kind_reason.startswith(f"{kind}: ")


def test_grey_images_take_one_channel(tmp_path: Path) -> None:
    built = build(write_images(tmp_path / "in", 3, 12, channels=1), tmp_path / "cache")
    assert built.store.channels == 1
    assert built.store.gather([2, 0], 8).shape == (2, 8, 8, 1)
    assert built.store.gather([2, 0], 5).shape == (2, 5, 5, 1)


def test_a_cache_that_is_a_file(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(EtudeError, match="cannot be written"):
        build(read_labelled(class_folders), tmp_path / "cache")


def test_a_file_that_changes_between_survey_and_build(class_folders: Path, tmp_path: Path, save_image) -> None:
    images = read_labelled(class_folders)
    seen = scan_images(images, Silent())
    save_image(class_folders / "cat" / "1.png", seed=50)
    built = build_store(images, seen, 8, Context(cache=tmp_path / "cache"))
    assert [(file.id, file.reason) for file in built.bad] == [("cat/1.png", "changed while it was being read")]
    assert built.kept.tolist() == [0, *range(2, 8)]


def test_wrong_settings(class_folders: Path, tmp_path: Path) -> None:
    images = read_labelled(class_folders)
    with pytest.raises(EtudeError, match=r"data.fit is 'croq'.* Did you mean 'crop'"):
        build(images, tmp_path / "cache", fit="croq")
    with pytest.raises(EtudeError, match=r"data.store is 'blosc'.*'encoded'.* Did you mean 'blosc2'"):
        build(images, tmp_path / "cache", kind="blosc")
    with pytest.raises(EtudeError, match="image size is 0"):
        build(images, tmp_path / "cache", size=0)


@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_does_not_grow_with_the_number_of_images(kind: str, tmp_path: Path) -> None:
    """2,000 rows of 64 x 64 x 3 are 24 MB; a build that held them all would show."""
    (tmp_path / "in").mkdir()
    for number in range(2000):
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(tmp_path / "in" / f"{number}.bmp")
    images = read_unlabelled(tmp_path / "in")
    seen = scan_images(images, Silent())
    build_store(images.take([0]), scan_images(images.take([0]), Silent()), 64,
                Context(cache=tmp_path / "imported"), kind=kind)  # fmt: skip
    tracemalloc.start()
    build_store(images, seen, 64, Context(cache=tmp_path / "cache"), threads=2, kind=kind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000
