"""What a report says to do next, and where the model fails."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etude.core.predictions import Predictions
from etude.journal.report.advice import advice_of, failures_of
from etude.journal.report.folder import RunFolder
from etude.journal.report.scores import Evaluated
from etude.study.diagnostics import write_suspects
from run_folders import write_run

HEALTH = {
    "near_duplicates": [{"a": "x.png", "b": "y.png", "exact": True, "labels": ["cat", "dog"], "splits": ["train"] * 2}],
    "counts": {"label_errors": 7},
    "copied": {"validation": ["v1", "v2", "v3"]},
    "imbalance": {"classes": {"round": 300, "striped": 4}},
    "leaks": [{"kind": "name pattern", "summary": "the name"}, {"kind": "camera", "summary": "the camera predicts"}],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder.read(write_run(tmp_path_factory.mktemp("advice")))


def texts(run: RunFolder) -> list[str]:
    return [f"{one.text} {one.command}" for one in advice_of(run)]


def test_what_is_wrong_with_the_data_comes_first_and_each_finding_once(run):
    found = texts(replace(run, health=HEALTH))
    words = (
        "x.png and y.png",
        "near-duplicates of training images: 3",
        "wrong: 7",
        "The camera predicts",
        "striped (4)",
    )
    for word, text in zip(words, found[:5], strict=True):
        assert word in text
    assert len(found) == 6
    assert "best" in found[-1]
    assert "striped (4)" not in " ".join(texts(replace(run, health={})))


def test_identical_files_of_one_label_contradict_nothing(run):
    same = {"near_duplicates": [{**HEALTH["near_duplicates"][0], "labels": ["cat", "cat"]}]}
    assert not any("two labels" in text for text in texts(replace(run, health=same)))


def test_commands_are_those_of_the_run_with_one_change(run):
    command = ["etude", "fit", "my images", "--recipe", "quick", "--out", "runs/a", "--seed", "3"]
    changed = replace(run, record={**run.record, "command": command, "recipe": "quick"}, health={})
    *_, last = advice_of(changed)
    assert last.command == "etude fit 'my images' --seed 3 --recipe default"
    joined = ["etude", "fit", "x", "--recipe=quick", "--out=runs/a"]
    *_, last = advice_of(replace(changed, record={**changed.record, "command": joined}))
    assert last.command == "etude fit x --recipe default"
    *_, last = advice_of(replace(changed, record={**changed.record, "command": ["etude.fit", "x"]}))
    assert last.command == ""


@pytest.mark.each("losses, settings, said", [
    ([(0.5, 0.6), (0.05, 1.2)], {}, True),
    ([(0.5, 0.6), (0.05, 0.6)], {}, False),  # validation loss has not risen
    ([(0.9, 0.6), (0.8, 1.2)], {}, False),  # training loss is as high
    ([(0.5, 0.6), (0.05, 1.2)], {"augment.mixup": 0.2}, False),  # its training loss is that of mixed images
    ([], {}, False),
])  # fmt: skip
def test_overfitting_is_seen_in_the_losses(run, losses, settings, said):
    rows = tuple({"train_loss": train, "valid_loss": valid} for train, valid in losses)
    model = replace(run.models[0], history=rows)
    changed = replace(run, models=(model,), record={**run.record, "settings": settings}, health={})
    assert any("overfits" in text for text in texts(changed)) == said


def test_few_labels_call_for_images_without(run):
    few = {**run.record, "data": {**run.record["data"], "images": 30}}
    assert any("--unlabeled" in text for text in texts(replace(run, record=few)))
    assert not any("--unlabeled" in text for text in texts(replace(run, record={**few, "unlabelled": {"images": 9}})))


@pytest.mark.each("state, said", [("interrupted", "etude resume"), ("running", "")])
def test_a_run_that_stopped_is_to_be_gone_on_with(run, state, said):
    found = texts(replace(run, record={**run.record, "state": state}))
    assert [said in text for text in found] == ([True] if said else [])


def test_failures_name_the_weakest_class_and_the_confusion():
    labels = np.array([0] * 10 + [1] * 10)
    guesses = np.array([0] * 9 + [1] + [1] * 4 + [0] * 6)
    probabilities = np.where(np.arange(2) == guesses[:, None], 0.9, 0.1)
    found = Predictions.from_probabilities([str(k) for k in range(20)], ("cat", "dog"), probabilities, labels)
    evaluated = Evaluated.of(found)
    assert evaluated is not None
    weakest, confusion = failures_of(evaluated)
    assert "dog, 4 of 10" in weakest
    assert "dog predicted as cat, 6 of 7 errors" in confusion
    # The lowest F1 is not the lowest recall: two rare images, both right, are taken for by four others.
    labels, guesses = np.array([0] * 100 + [1] * 2), np.array([1] * 4 + [0] * 96 + [1] * 2)
    probabilities = np.where(np.arange(2) == guesses[:, None], 0.9, 0.1)
    rare = Predictions.from_probabilities([str(k) for k in range(102)], ("many", "rare"), probabilities, labels)
    evaluated = Evaluated.of(rare)
    assert evaluated is not None
    assert "many, 96 of 100" in failures_of(evaluated)[0]
    right = Evaluated.of(replace(rare, labels=guesses))
    assert right is not None
    assert failures_of(right) == []


def test_suspects_are_a_table_for_other_tools(tmp_path: Path):
    rows = [{"id": 'a,"b".png', "label": "=cat", "suggested": "dog", "score": 0.9}]
    write_suspects(tmp_path / "suspects.csv", rows)
    with (tmp_path / "suspects.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{**rows[0], "score": "0.9"}]
    write_suspects(tmp_path / "suspects.csv", [])
    assert not (tmp_path / "suspects.csv").exists()
