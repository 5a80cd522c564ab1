"""Images of 12 bits in 16-bit files: one range of values, in the run, its record, its model and its predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = ("--set", "model.backbone=tiny", "--set", 'stages=["finetune"]', "--set", "timeline.final_size=32")
TINY += ("--set", "train.epochs=1", "--set", "train.threads=1", "--set", "augment.policy=none")


def write(folder: Path, scale: float, count: int = 12, classes: bool = True) -> Path:
    """Write stripes across or down, values 40% to 60% of the scale, so that a wrong range shows next to nothing."""
    rng = np.random.default_rng(7)
    for k in range(count):
        values = 0.4 + 0.02 * rng.random((32, 32))
        at = int(rng.integers(4, 20))
        (values if k % 2 else values.T)[at : at + 8] += 0.18
        path = folder / (("across", "down")[k % 2] if classes else "") / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values * scale).astype(np.uint16 if scale > 255 else np.uint8)).save(path)
    return folder


def labels_in(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row["label"] for row in csv.DictReader(file)]


def test_the_range_of_a_run_is_printed_recorded_and_used_for_predictions(etude, tmp_path):
    train = write(tmp_path / "train", 4095)
    test = write(tmp_path / "test", 4095, 6, classes=False)
    write(tmp_path / "bright", 65535, 2, classes=False)
    ended = etude("fit", train, "--test", test, *TINY, "--out", "run")
    assert ended.code == 0, ended.err
    assert "values: 0..4095" in ended.out
    assert "nearly" not in ended.out + ended.err
    card = json.loads((tmp_path / "run" / "model.json").read_text(encoding="utf-8"))
    assert card["preprocessing"]["value_range"] == [0, 4095]
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["data"]["value_range"] == [0, 4095]
    assert etude("predict", "run", test, "--out", "again.csv").code == 0
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "run" / "submission.csv").read_text()
    ended = etude("predict", "run", test / "03.png", "--out", "one.csv")  # whose own largest value is another
    assert labels_in(tmp_path / "one.csv") == [labels_in(tmp_path / "again.csv")[3]]
    ended = etude("predict", "run", tmp_path / "bright", "--out", "bright.csv")
    assert "2 of 2 images have values outside" in ended.out + ended.err
    assert "2 of 2 images are nearly white" in ended.out + ended.err
    assert "UserWarning" not in ended.out + ended.err


def test_a_model_of_8_bits_lists_deep_images_unless_a_range_was_set(etude, tmp_path):
    train = write(tmp_path / "train", 255)
    test = write(tmp_path / "test", 255, 4, classes=False)
    Image.fromarray(np.full((32, 32), 2000, np.uint16)).save(test / "deep.png")
    assert etude("fit", train, *TINY, "--out", "run").code == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["preprocessing"]["value_range"] is None
    ended = etude("predict", "run", test, "--out", "four.csv")
    assert "deep.png" in ended.out + ended.err
    assert len(labels_in(tmp_path / "four.csv")) == 4
    ended = etude("fit", train, "--test", test, *TINY, "--set", "data.range=4095", "--out", "set")
    assert len(labels_in(tmp_path / "set" / "submission.csv")) == 5


@pytest.mark.parametrize("value", ["4095..0", "many", "0..", "0..inf", "1..2..3", "nan"])
def test_a_range_that_is_none_is_refused_by_name(etude, tmp_path, value):
    ended = etude("fit", tmp_path, "--set", f"data.range={value}")
    assert ended.code == 2
    assert "data.range" in ended.err
    assert ended.err.count("\n") == 1


def test_what_cannot_be_settled_is_refused_before_anything_is_stored(etude, tmp_path):
    train = write(tmp_path / "train", 4095)
    for path in sorted((train / "down").glob("*.png"))[:3]:
        Image.fromarray(np.asarray(Image.open(path)).astype(np.float32) / 4095).save(path.with_suffix(".tif"))
        path.unlink()
    ended = etude("fit", train, *TINY, "--out", "run")
    assert ended.code == 2
    assert "--set data.range=0..4095" in ended.err
    assert not (tmp_path / "cache" / "stores").exists()
