"""Views of ``etude fit`` and ``etude predict``: how many, which, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageOps

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.data.dataset import Dataset, open_dataset
from etude.data.scan import Scan
from etude.data.sources import ImageSet
from etude.run import load
from etude.study.unlabelled.guards import EvaluatedModel
from picture_folders import picture, write_classes, write_flat

# Six images validate: whether views are harmless to them is a matter of luck.
ALWAYS = ("--set", "predict.tta_if=always")
PHOTOS = ("--recipe", "quick", "--set", "model.feature_size=64", "--set", "augment.policy=photos")


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    return write_classes(tmp_path / "train", count=15), write_flat(tmp_path / "test")


def test_a_recipe_averages_over_more_views_than_there_are_symmetries(etude, tmp_path, data):
    ended = etude("fit", data[0], "--test", data[1], *PHOTOS, "--set", "predict.tta=6", *ALWAYS, "--out", "run")
    assert ended.code == 0, ended.err
    valid, test = (Predictions.load(tmp_path / "run" / f"{name}.npz") for name in ("valid", "test"))
    assert (len(valid.logits), len(test.logits)) == (6, 6)
    assert "views: accuracy" in ended.out
    assert "with TTA, 6 views" in ended.out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (notes,) = [stage["notes"] for stage in record["stages"] if stage["name"] == "TTA"]
    assert notes["views"] == 6
    assert set(notes["views that are enough"]) == {"accuracy", "log_loss"}
    again = etude("predict", "run", data[1], "--out", "again.npz")
    assert again.code == 0, again.err
    assert "views, on the run's 6 validation images: accuracy" in again.out
    np.testing.assert_array_equal(Predictions.load(tmp_path / "again.npz").logits, test.logits)


def mirrored_classes(root: Path) -> Path:
    """Write two classes that are mirror images of each other, so that a mirrored view says the wrong one."""
    for number in range(15):
        for name in ("down", "up"):
            (root / name).mkdir(parents=True, exist_ok=True)
            image = picture(1, 2 * number + (name == "up"), 24)
            (image if name == "up" else ImageOps.mirror(image)).save(root / name / f"{number}.png")
    return root


def test_views_that_do_harm_are_left_out(etude, tmp_path):
    train, test = mirrored_classes(tmp_path / "train"), write_flat(tmp_path / "test")
    words = ("fit", train, "--test", test, *PHOTOS, "--set", "predict.tta=2")
    ended = etude(*words, "--out", "run")
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    assert [len(Predictions.load(run / f"{name}.npz").logits) for name in ("valid", "test")] == [1, 1]
    assert json.loads((run / "model.json").read_text())["tta"] == 1
    record = json.loads((run / "run.json").read_text())
    assert any("predict.tta_if=always" in one["text"] for one in record["warnings"])
    assert "2 views: not kept" in " ".join(ended.out.split())
    tried = next(stage for stage in record["stages"] if stage["name"] == "TTA")
    assert record["result"]["log_loss"] < tried["scores"]["log_loss"]
    again = etude("predict", "run", test, "--out", "again.npz")
    assert again.code == 0, again.err
    np.testing.assert_array_equal(
        Predictions.load(tmp_path / "again.npz").logits, Predictions.load(run / "test.npz").logits
    )
    assert etude(*words, *ALWAYS, "--out", "all").code == 0
    assert [len(Predictions.load(tmp_path / "all" / f"{name}.npz").logits) for name in ("valid", "test")] == [2, 2]


def test_pseudo_labels_do_without_views_that_do_harm(etude, tmp_path, monkeypatch):
    judged: list[tuple[int, int]] = []
    own = EvaluatedModel.calibrated

    def calibrated(valid: Predictions, pool: Predictions) -> EvaluatedModel:
        judged.append((len(valid.logits), len(pool.logits)))
        return own(valid, pool)

    monkeypatch.setattr(EvaluatedModel, "calibrated", calibrated)
    train, pool = mirrored_classes(tmp_path / "train"), write_flat(tmp_path / "pool")
    words = ("fit", train, "--unlabeled", pool, *PHOTOS[2:], "--set", "predict.tta=2", "--set", "stages=head")
    assert etude(*words, "--recipe", "pseudo-label", "--out", "run").code == 0
    assert set(judged) == {(1, 1)}
    judged.clear()
    assert etude(*words, "--recipe", "pseudo-label", *ALWAYS, "--out", "all").code == 0
    assert {pool for _, pool in judged} == {2}


def test_a_run_keeps_to_the_views_that_it_used(etude, tmp_path, data):
    """Runs of before, whose card asks for more views than the symmetries they were given."""
    etude("fit", data[0], "--test", data[1], *PHOTOS, *ALWAYS, "--set", "predict.tta=2", "--out", "two")
    etude("fit", data[0], "--test", data[1], *PHOTOS, "--set", "predict.tta=1", "--out", "one")
    for name, views in (("two", 2), ("one", 1)):
        edited(tmp_path / name / "model.json", tta=4)
        assert etude("predict", name, data[1], "--trust", "--out", f"{name}.npz").code == 0
        first = Predictions.load(tmp_path / name / "test.npz")
        assert len(first.logits) == views
        np.testing.assert_array_equal(Predictions.load(tmp_path / f"{name}.npz").logits, first.logits)
    edited(tmp_path / "one" / "run.json", state="interrupted")
    assert etude("predict", "one", data[1], "--trust", "--out", "four.npz").code == 0
    assert len(Predictions.load(tmp_path / "four.npz").logits) == 4


def test_a_larger_input_is_one_of_the_views(etude, tmp_path, data):
    etude("fit", data[0], "--test", data[1], *PHOTOS, "--out", "run")
    usual = etude("predict", "run", data[1], "--tta", "4", "--out", "usual.npz")
    larger = etude("predict", "run", data[1], "--tta", "5", "--larger", "1.25", "--out", "larger.npz")
    assert (usual.code, larger.code) == (0, 0), larger.err
    one, other = (Predictions.load(tmp_path / f"{name}.npz").logits for name in ("usual", "larger"))
    np.testing.assert_array_equal(other[[0, 1, 3, 4]], one)
    assert np.abs(other[2] - other[0]).max() > 1e-3
    ended = etude("predict", "run", data[1], "--larger", "1.25", "--tta", "2", "--out", "never.npz")
    assert (ended.code, "--tta 3" in ended.err) == (2, True)
    ended = etude("predict", "run", data[1], "--larger", "9", "--tta", "8", "--out", "never.npz")
    assert (ended.code, "a factor above 1 and up to 2, not 9" in ended.err) == (2, True)
    assert not (tmp_path / "never.npz").exists()


def test_the_larger_input_shows_more_detail(etude, tmp_path, monkeypatch):
    """Images are stored at 64 px: the view of 80 px is read from the files, not enlarged from the store."""
    train, test = write_classes(tmp_path / "train", count=15, side=96), write_flat(tmp_path / "test", side=96)
    etude("fit", train, "--test", test, *PHOTOS, "--out", "run")
    sizes: list[int] = []

    def watched(images: ImageSet, scanned: Scan, size: int, context: Context, **options: Any) -> Dataset:
        sizes.append(size)
        return open_dataset(images, scanned, size, context, **options)

    monkeypatch.setattr("etude.run.open_dataset", watched)
    plain = load("run").predict(test).predictions
    assert sizes == [64]
    found = load("run").predict(test, tta=3, larger=1.25).predictions
    assert sizes == [64, 64, 80]
    np.testing.assert_array_equal(found.logits[:1], plain.logits)


def test_views_out_of_range_are_refused_from_python(etude, data):
    etude("fit", data[0], *PHOTOS, "--out", "run")
    with pytest.raises(EtudeError, match="1 to 128 views, not 129"):
        load("run").predict(data[1], tta=129)
