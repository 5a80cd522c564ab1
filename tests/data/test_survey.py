"""The scan of every file, and the list of those that cannot be used."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from etude.core.context import Silent
from etude.core.errors import EtudeError
from etude.core.prefetch import prefetch
from etude.data.scan import scan_images
from etude.data.sources import BadFile, read_labelled, read_unlabelled, write_bad_files


def test_survey_reads_sizes_channels_and_hashes(class_folders: Path, save_image, progress) -> None:
    save_image(class_folders / "cat" / "wide.png", size=(40, 20), mode="L")
    (class_folders / "dog" / "copy.png").write_bytes((class_folders / "cat" / "0.png").read_bytes())
    images = read_labelled(class_folders)
    seen = scan_images(images, progress)
    assert len(seen) == 10
    assert seen.widths.max() == 40
    assert seen.median_short_side == 10
    assert seen.channels == 3
    assert seen.bad == ()
    hash_of = dict(zip(images.ids, seen.content_hashes, strict=True))
    assert hash_of["cat/0.png"] == hash_of["dog/copy.png"]
    assert len(set(seen.content_hashes)) == 9
    assert progress.bars == {"scan": [10, 10]}
    assert scan_images(images.take([4]), Silent()).channels == 1


def test_fingerprint_follows_contents_not_names(class_folders: Path, save_image) -> None:
    before = scan_images(read_unlabelled(class_folders), Silent()).fingerprint
    (class_folders / "cat").rename(class_folders / "bat")
    assert scan_images(read_unlabelled(class_folders), Silent()).fingerprint == before
    save_image(class_folders / "bat" / "0.png", seed=99)
    assert scan_images(read_unlabelled(class_folders), Silent()).fingerprint != before


def test_all_bad_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jpg").write_text("text")
    with pytest.raises(EtudeError, match=r"none of the 3 images in .* can be used \(3 times 'not an image.*0.jpg"):
        scan_images(read_unlabelled(tmp_path / "in"), Silent())


def test_write_bad_files(tmp_path: Path) -> None:
    odd = os.fsdecode(b'/data/\xff, and "more".png')
    write_bad_files(tmp_path / "out" / "bad.csv", [BadFile("a,b", Path("/x"), "r"), BadFile("c\n", Path(odd), 'q"')])
    with (tmp_path / "out" / "bad.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [["id", "path", "reason"], ["a,b", "/x", "r"]]
    assert rows[2][0] == "c\n"
    assert 'and "more".png' in rows[2][1]
    assert rows[2][2] == 'q"'


def test_results_come_in_order_and_few_wait() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        return number * number

    results = prefetch(work, range(1000), threads=2)
    assert next(results) == 0
    assert len(started) <= 16
    results.close()
    assert len(started) <= 16
    assert list(prefetch(work, range(100), threads=3)) == [number * number for number in range(100)]
