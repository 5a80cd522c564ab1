"""Submissions that follow a competition's sample, as ``etude fit`` and ``etude predict`` write them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from etude.core.predictions import Predictions
from picture_folders import write_classes, write_flat

FAST = ("--recipe", "quick", "--set", "model.feature_size=32")


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def written(path: Path, header: Sequence[str], *rows: Sequence[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """A table of 8 + 16 images with labels 1 and 0, and test images of which t003 is cut off in the middle."""
    write_classes(tmp_path / "images", count=16)
    for number in range(8):
        (tmp_path / "images" / "round" / f"{number:03d}.png").unlink()
    names = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "images").rglob("*.png"))
    write_flat(tmp_path / "test")
    broken = tmp_path / "test" / "t003.png"
    broken.write_bytes(broken.read_bytes()[:400])
    return written(tmp_path / "train.csv", ("image", "label"), *((name, str(int("round" in name))) for name in names))


def test_an_unreadable_image_and_a_column_of_fractions(etude, tmp_path, binary):
    names = [f"t{number:03d}" for number in (5, 3, 0, 1, 2, 4)]
    sample = written(tmp_path / "sample.csv", ("id", "target"), *((name, "0.3") for name in names))
    ended = etude("fit", binary, "--test", "test", "--sample-submission", sample, *FAST, "--out", "run")
    assert ended.code == 0, ended.err
    header, *rows = rows_of(tmp_path / "run" / "submission.csv")
    assert header == ["id", "target"]
    assert [row[0] for row in rows] == names
    test = Predictions.load(tmp_path / "run" / "test.npz")
    positive = dict(zip(test.ids, test.probabilities()[:, test.classes.index("1")], strict=True))
    expected = [positive.get(f"{name}.png", 8 / 24) for name in names]
    np.testing.assert_allclose([float(cell) for _, cell in rows], expected, atol=1e-6)
    assert "t003.png" in (tmp_path / "run" / "bad_files.csv").read_text()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    texts = [warning["text"] for warning in record["warnings"]]
    assert [text for text in texts if "1 of 6 rows" in text and "'t003'" in text]
    assert "'target' holds the probability of class '1'" in record["submission"]["holds"]

    ended = etude("predict", "run", "test", "--sample-submission", sample, "--out", "again.csv")
    assert ended.code == 0, ended.err
    assert "'t003'" in ended.out
    assert rows_of(tmp_path / "again.csv") == rows_of(tmp_path / "run" / "submission.csv")
    assert "t003.png" in (tmp_path / "again.bad_files.csv").read_text()
    ended = etude("predict", "run", "test", "--sample-submission", sample, "--positive", 0, "--out", "other.csv")
    others = [1 - float(cell) for _, cell in rows_of(tmp_path / "other.csv")[1:]]
    np.testing.assert_allclose(others, expected, atol=1e-6)


def test_labels_for_an_unreadable_image_and_an_id_without_a_file(etude, tmp_path, binary):
    names = [f"t{number:03d}.png" for number in range(6)]
    sample = written(tmp_path / "sample.csv", ("id", "label"), *((name, "0") for name in names))
    assert etude("fit", binary, "--test", "test", "--sample-submission", sample, *FAST, "--out", "run").code == 0
    assert rows_of(tmp_path / "run" / "submission.csv")[4] == ["t003.png", "0"]
    written(sample, ("id", "label"), *((name, "0") for name in (*names, "t9.png")))
    ended = etude("fit", binary, "--test", "test", "--sample-submission", sample, *FAST, "--out", "other")
    assert ended.code == 2
    assert "1 of its 7 ids have no prediction ('t9.png')" in ended.err


def test_positive_needs_test_images_and_a_class(etude, tmp_path, binary):
    assert "--test" in etude("fit", binary, "--positive", "1", *FAST).err
    names = [f"t{number:03d}.png" for number in range(6)]
    sample = written(tmp_path / "sample.csv", ("id", "p"), *((name, "0.5") for name in names))
    words = ("--test", "test", "--sample-submission", sample, *FAST, "--positive", "yes")
    ended = etude("fit", binary, *words)
    assert (ended.code, "--positive is 'yes'" in ended.err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_marked_rows_validate_and_sloppy_labels_are_one_class(etude, tmp_path):
    write_classes(tmp_path / "images")
    names = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "images").rglob("*.png"))
    rows = [
        (name, Path(name).parent.name + " " * (k % 4 == 3), str(k % 6 == 0), f"p{k // 3}")
        for k, name in enumerate(names)
    ]
    written(tmp_path / "train.csv", ("image", "label", "is_valid", "patient_id"), *rows)
    ended = etude("fit", "train.csv", *FAST, "--out", "run")
    assert ended.code == 0, ended.err
    valid = Predictions.load(tmp_path / "run" / "valid.npz")
    assert (sorted(valid.ids), valid.classes) == (sorted(names[::6]), ("round", "striped"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "'is_valid'" in record["data"]["split"]
    texts = [warning["text"] for warning in record["warnings"]]
    assert ["4 of 4 values of 'patient_id'" in text for text in texts].count(True) == 1
    assert ["'round '" in text and "'striped '" in text for text in texts].count(True) == 1
    assert "by column 'is_valid'" in " ".join(ended.out.split())
    ended = etude("fit", "train.csv", *FAST, "--labels", "strict", "--out", "strict")
    assert json.loads((tmp_path / "strict" / "run.json").read_text())["data"]["classes"].keys() >= {"round", "round "}
    assert etude("fit", "train.csv", *FAST, "--labels", "loose").code == 2
