"""The store: built once, reused, repaired, and never left half done."""

from __future__ import annotations

import json
import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from etude.core.errors import EtudeError
from etude.core.progress import Silent
from etude.data import build as build_module
from etude.data.build import StoreBuild, build_store
from etude.data.decode import decode
from etude.data.sources import ImageSet, read_labelled, read_unlabelled
from etude.data.store import DamagedStoreError, RawStore, Store
from etude.data.survey import survey


def build(images: ImageSet, cache: Path, size: int = 8, warn=None, progress=None, **options: object) -> StoreBuild:
    """Survey and build; a warning that no test expects fails it."""

    def unexpected(sentence: str) -> None:
        raise AssertionError(sentence)

    shown = progress or Silent()
    return build_store(
        images, survey(images, shown), size, cache=cache, progress=shown, warn=warn or unexpected, **options
    )


@pytest.fixture
def partly_bad(class_folders: Path, save_image) -> Path:
    """The eight good images, and: zero bytes, text, truncated JPEG, broken link."""
    (class_folders / "cat" / "a_empty.png").touch()
    (class_folders / "cat" / "b_text.jpg").write_text("not an image")
    whole = save_image(class_folders / "cat" / "c_cut.jpg", size=(64, 64)).read_bytes()
    (class_folders / "cat" / "c_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (class_folders / "cat" / "d_gone.png").symlink_to("nowhere.png")
    return class_folders


def test_bad_files_are_listed_and_left_out(partly_bad: Path, tmp_path: Path, progress) -> None:
    images = read_labelled(partly_bad)
    for attempt in range(2):
        built = build(images, tmp_path / "cache", progress=progress)
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
    assert progress.bars["check store"] == [8, 8]


def test_missing_files_of_a_table_are_listed(class_folders: Path, tmp_path: Path) -> None:
    table = class_folders / "t.csv"
    table.write_text("image,label\ncat/0.png,x\ngone.png,y\ndog/4.png,y\n")
    built = build(read_labelled(table), tmp_path / "cache")
    assert [(file.id, file.reason) for file in built.bad] == [("gone.png", "file not found")]
    assert built.kept.tolist() == [0, 1]


def test_all_truncated_is_one_sentence_and_leaves_nothing(tmp_path: Path, save_image) -> None:
    path = save_image(tmp_path / "in" / "a.jpg", size=(64, 64))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(EtudeError, match=r"none of the 1 image in .* can be used .*truncated"):
        build(read_unlabelled(tmp_path / "in"), tmp_path / "cache")
    assert list((tmp_path / "cache" / "stores").iterdir()) == []


def test_a_second_build_reuses_and_the_key_covers_what_matters(class_folders: Path, tmp_path: Path) -> None:
    images = read_labelled(class_folders)
    cache = tmp_path / "cache"
    first = build(images, cache)
    assert not first.reused
    assert build(images, cache).store.folder == first.store.folder
    assert first.fit == "crop"
    swapped = images.take([1, 0])
    others = [build(images, cache, size=9), build(images, cache, fit="letterbox"), build(swapped, cache)]
    assert not any(other.reused for other in others)
    assert len({str(other.store.folder) for other in [first, *others]}) == 4
    assert others[1].fit_reason == "letterbox, as asked for"
    (class_folders / "dog").rename(class_folders / "dogs")
    assert build(read_labelled(class_folders), cache).reused, "names do not count"


def test_grey_images_take_one_channel(tmp_path: Path, save_image) -> None:
    for number in range(3):
        save_image(tmp_path / "in" / f"{number}.png", mode="L", seed=number)
    built = build(read_unlabelled(tmp_path / "in"), tmp_path / "cache")
    assert built.store.channels == 1
    assert built.store.gather([2, 0], 8).shape == (2, 8, 8, 1)
    assert built.store.gather([2, 0], 5).shape == (2, 5, 5, 1)


def test_gather(class_folders: Path, tmp_path: Path) -> None:
    store: Store = build(read_labelled(class_folders), tmp_path / "cache", size=16).store
    assert (len(store), store.size, store.channels) == (8, 16, 3)
    whole = store.gather(np.arange(8), 16)
    for size, method in ((16, None), (8, cv2.INTER_AREA), (11, cv2.INTER_AREA), (24, cv2.INTER_CUBIC)):
        rows = store.gather([5, 0, 5], size)
        assert rows.shape == (3, size, size, 3)
        assert rows.dtype == np.uint8
        assert rows.flags.c_contiguous
        assert rows.flags.owndata
        for row, index in zip(rows, [5, 0, 5], strict=True):
            expected = whole[index] if method is None else cv2.resize(whole[index], (size, size), interpolation=method)
            np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(
        store.gather([3], 8)[0], np.rint(whole[3].reshape(8, 2, 8, 2, 3).mean(axis=(1, 3)) + 1e-6)
    )
    assert store.gather([], 8).shape == (0, 8, 8, 3)
    for size in (8, 16):
        with pytest.raises(IndexError):
            store.gather([8], size)


def test_a_store_travels_as_its_path(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = build(read_labelled(class_folders), Path("cache")).store
    packed = pickle.dumps(store)
    assert len(packed) < 500
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pickle.loads(packed).gather([1], 8), store.gather([1], 8))


def shorten(folder: Path) -> None:
    with (folder / "pixels.u8").open("r+b") as file:
        file.truncate(10)


def flip(folder: Path) -> None:
    with (folder / "pixels.u8").open("r+b") as file:
        value = file.read(1)[0]
        file.seek(0)
        file.write(bytes([value ^ 1]))


def change_record(folder: Path) -> None:
    record = json.loads((folder / "store.json").read_text())
    record["content_hashes"].pop()
    (folder / "store.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shorten, "10 bytes instead of"),
        (flip, "pixels changed since they were written"),
        (change_record, "does not fit"),
        (lambda folder: (folder / "store.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "store.json").write_text("{}"), "damaged"),
        (lambda folder: (folder / "store.json").write_text("[]"), "damaged"),
        (lambda folder: (folder / "store.json").unlink(), "does not exist"),
        (lambda folder: (folder / "pixels.u8").unlink(), "damaged"),
    ],
)
def test_a_damaged_store_is_told_and_built_again(class_folders: Path, tmp_path: Path, damage, told: str) -> None:
    images = read_labelled(class_folders)
    first = build(images, tmp_path / "cache")
    before = first.store.gather(np.arange(8), 8)
    damage(first.store.folder)
    warnings: list[str] = []
    again = build(images, tmp_path / "cache", warn=warnings.append)
    assert not again.reused
    assert len(warnings) == 1
    assert told in warnings[0]
    assert warnings[0].endswith("it is built again")
    np.testing.assert_array_equal(again.store.gather(np.arange(8), 8), before)
    assert [path.name for path in (tmp_path / "cache" / "stores").iterdir()] == [first.store.folder.name]


def test_opening_a_damaged_store_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DamagedStoreError, match=r"is damaged .*; delete it and run again"):
        RawStore(tmp_path)


def test_two_runs_at_once_both_succeed(class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = read_labelled(class_folders)
    both_written = threading.Barrier(2, timeout=20)
    save = build_module.StoreRecord.save

    def save_together(record, folder: Path) -> None:
        save(record, folder)
        both_written.wait()  # now both have a whole temporary store and neither has moved it into place

    monkeypatch.setattr(build_module.StoreRecord, "save", save_together)
    built: list[StoreBuild] = []
    runs = [threading.Thread(target=lambda: built.append(build(images, tmp_path / "cache"))) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(built) == 2
    np.testing.assert_array_equal(built[0].store.gather(range(8), 8), built[1].store.gather(range(8), 8))
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 1


def test_a_killed_build_leaves_no_store_and_is_cleaned_up(class_folders: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from etude.core.progress import Silent
from etude.data import build
from etude.data.sources import read_labelled
from etude.data.survey import survey
build.StoreRecord.save = lambda record, folder: os.kill(os.getpid(), signal.SIGKILL)
images = read_labelled({str(class_folders)!r})
seen = survey(images, Silent())
build.build_store(images, seen, 8, cache=Path({str(tmp_path / "cache")!r}), progress=Silent(), warn=print)
"""
    source = str(Path(build_module.__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": source}, check=False)
    assert killed.returncode == -9
    (leftover,) = (tmp_path / "cache" / "stores").iterdir()
    assert leftover.name.endswith(".tmp")
    other_host = leftover.with_name(leftover.name.replace(socket.gethostname(), "elsewhere"))
    other_host.mkdir()
    running = leftover.with_name(f".key.{socket.gethostname()}.{os.getpid()}.0.tmp")
    running.mkdir()
    built = build(read_labelled(class_folders), tmp_path / "cache")
    assert not built.reused
    assert set((tmp_path / "cache" / "stores").iterdir()) == {built.store.folder, other_host, running}


def test_a_full_disk_is_one_sentence_and_leaves_nothing(class_folders: Path, tmp_path: Path) -> None:
    images = read_labelled(class_folders)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # what the system allows a file to grow to
    try:
        with pytest.raises(EtudeError, match=r"the disk is full: .*stores.* could not be written"):
            build(images, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "cache" / "stores").iterdir()) == []
    assert not build(images, tmp_path / "cache").reused


def test_a_disk_that_fills_up_while_writing(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # as on systems that cannot reserve
    test_a_full_disk_is_one_sentence_and_leaves_nothing(class_folders, tmp_path)


def test_a_cache_that_is_a_file(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(EtudeError, match="cannot be written"):
        build(read_labelled(class_folders), tmp_path / "cache")


def test_a_file_that_changes_between_survey_and_build(class_folders: Path, tmp_path: Path, save_image) -> None:
    images = read_labelled(class_folders)
    seen = survey(images, Silent())
    save_image(class_folders / "cat" / "1.png", seed=50)
    built = build_store(images, seen, 8, cache=tmp_path / "cache", progress=Silent(), warn=print)
    assert [(file.id, file.reason) for file in built.bad] == [("cat/1.png", "changed while it was being read")]
    assert built.kept.tolist() == [0, *range(2, 8)]


def test_wrong_settings(class_folders: Path, tmp_path: Path) -> None:
    images = read_labelled(class_folders)
    with pytest.raises(EtudeError, match=r"data.fit is 'croq'.* Did you mean 'crop'"):
        build(images, tmp_path / "cache", fit="croq")
    with pytest.raises(EtudeError, match="image size is 0"):
        build(images, tmp_path / "cache", size=0)


def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """2,000 rows of 64 x 64 x 3 are 24 MB; a build that held them all would show."""
    (tmp_path / "in").mkdir()
    for number in range(2000):
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(tmp_path / "in" / f"{number}.bmp")
    images = read_unlabelled(tmp_path / "in")
    seen = survey(images, Silent())
    tracemalloc.start()
    build_store(images, seen, 64, cache=tmp_path / "cache", progress=Silent(), warn=print, threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000
