"""What a run's images suffer from, and what is said where that cannot be known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etude.data.dataset import Dataset
from etude.data.split import Fold
from etude.health.summary import examine_health, labels_text, shift_text, split_names
from picture_folders import picture, write_classes, write_flat
from study.small_data import features_of, labelled, one_fold, unlabelled, write_faulty


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("faulty")
    return labelled(write_faulty(root / "train"), root / "cache")


def test_every_planted_fault_is_found(faulty: Dataset):
    health = examine_health(faulty, features_of(faulty), one_fold(faulty))
    assert json.loads(json.dumps(health)) == health
    assert health["corrupt"] == [{"id": "round/bad.png", "reason": "not an image of a known kind"}]
    assert health["tiny"] == [{"id": "round/tiny.png", "width": 9, "height": 9}]
    pairs = {(one["a"], one["b"], one["exact"]) for one in health["near_duplicates"]}
    assert {("round/003.png", "round/near.png", False), ("round/007.png", "striped/same.png", True)} <= pairs
    assert len(pairs) <= 3
    contradiction = next(one for one in health["near_duplicates"] if one["exact"])
    assert (contradiction["similarity"], contradiction["labels"]) == (1.0, ["round", "striped"])
    suspects = {one["id"]: one for one in health["label_errors"]}
    assert {"round/wrong-0.png", "round/wrong-1.png", "striped/same.png"} <= suspects.keys()
    assert suspects["round/wrong-0.png"]["label"] == "round"
    assert suspects["round/wrong-0.png"]["suggested"] == "striped"
    assert health["labels"]["doubted"] >= len(suspects) >= 3
    assert "of the labels" in health["labels"]["summary"]
    assert health["imbalance"]["classes"] == {"round": 44, "striped": 41}
    assert (health["shift"], health["notes"]) == (None, [])
    assert (health["images"], health["looked_at"]) == (85, 85)
    assert health["counts"]["corrupt"] == 1


def test_files_with_two_labels_come_first_then_pairs_across_the_split(faulty: Dataset):
    place = {name: row for row, name in enumerate(faulty.images.ids)}
    held = np.array([place["round/near.png"]])
    folds = [Fold(np.setdiff1d(np.arange(len(faulty)), held), held, 0)]
    health = examine_health(faulty, features_of(faulty), folds)
    mistaken, first = health["near_duplicates"][:2]
    assert mistaken["exact"]
    assert mistaken["labels"][0] != mistaken["labels"][1]
    assert (first["a"], first["b"], first["splits"]) == ("round/003.png", "round/near.png", ["train", "valid"])
    assert health["counts"]["across_splits"] == 1


def test_without_features_it_says_what_was_not_looked_for(faulty: Dataset):
    health = examine_health(faulty, None, one_fold(faulty))
    assert {one["exact"] for one in health["near_duplicates"]} == {True, False}  # pixels are enough for copies
    assert (health["label_errors"], health["labels"]) == ([], None)
    (note,) = health["notes"]
    assert "label errors" in note
    assert "has none" in note


def test_images_of_the_test_set_that_stand_in_training_are_found(faulty: Dataset, tmp_path: Path):
    write_flat(tmp_path / "test", count=30, side=32)
    moved = np.asarray(picture(1, 5, 32)) * 0.85 + 10
    Image.fromarray(moved.astype(np.uint8)).save(tmp_path / "test" / "near.png")
    picture(0, 9, 32).save(tmp_path / "test" / "same.png")
    test = unlabelled(tmp_path / "test", tmp_path / "cache")
    health = examine_health(faulty, features_of(faulty), one_fold(faulty), test=test, test_features=features_of(test))
    found = {(one["a"], one["b"]): one for one in health["near_duplicates"] if one["splits"][1] == "test"}
    assert found["round/009.png", "same.png"]["exact"]
    assert found["striped/005.png", "near.png"]["splits"][1] == "test"
    assert found["striped/005.png", "near.png"]["labels"] == ["striped", None]
    shift = health["shift"]
    assert shift["images"] == [85, 32]
    assert shift["interval"][0] <= shift["auc"] <= shift["interval"][1]
    without = examine_health(faulty, features_of(faulty), one_fold(faulty), test=test)
    assert without["shift"] is None
    assert any("shift" in note for note in without["notes"])
    assert without["near_duplicates"] == health["near_duplicates"]


def test_too_few_test_images_are_no_reason_to_stop(faulty: Dataset, tmp_path: Path):
    test = unlabelled(write_flat(tmp_path / "test", count=3, side=32), tmp_path / "cache")
    health = examine_health(faulty, features_of(faulty), one_fold(faulty), test=test, test_features=features_of(test))
    assert health["shift"] is None
    assert any("10 images of each" in note for note in health["notes"])


def test_of_many_images_a_sample_is_looked_at_and_that_is_said(faulty: Dataset):
    health = examine_health(faulty, features_of(faulty), one_fold(faulty), most=40)
    assert health["looked_at"] == 40
    assert "40 of 85 labelled images were examined" in health["notes"]
    assert [one["exact"] for one in health["near_duplicates"]].count(True) == 1  # identical files, among all
    assert health["imbalance"]["classes"]["round"] == 44  # of all too
    assert health == examine_health(faulty, features_of(faulty), one_fold(faulty), most=40)


def test_a_class_that_the_file_names_give_away_is_told(tmp_path: Path):
    root = write_classes(tmp_path / "train", count=30)
    for kind in ("round", "striped"):
        for path in (root / kind).iterdir():
            path.rename(path.with_name(f"{kind[0]}-{path.name}"))
    data = labelled(root, tmp_path / "cache")
    (leak,) = [one for one in examine_health(data, None, one_fold(data))["leaks"] if one["kind"].startswith("name")]
    assert (leak["accuracy"], leak["chance"]) == (1.0, 0.5)


def test_splits_are_named_by_what_validates_where():
    rows = np.arange(4)
    one = [Fold(rows[:3], rows[3:], 0)]
    two = [Fold(rows[:2], rows[2:], 0), Fold(rows[2:], rows[:2], 1)]
    assert split_names(4, one) == ("train", "train", "train", "valid")
    assert split_names(4, two) == ("fold 2", "fold 2", "fold 1", "fold 1")
    assert split_names(2, []) == ("train", "train")


def test_doubts_are_told_with_how_many_can_be_right():
    assert labels_text(0.97, 30, 30).endswith("all of the 30 that they doubt may be wrong, or hard to recognise")
    assert "of the 1,200 that they doubt, not more than about 1,000 can be wrong" in labels_text(0.4, 1200, 1000)


def test_a_shift_is_described_by_its_size():
    assert "do not differ" in shift_text(0.52, 0.48, False)
    assert "slightly" in shift_text(0.60, 0.55, True)
    assert "AUC 0.93" in shift_text(0.93, 0.90, True)
