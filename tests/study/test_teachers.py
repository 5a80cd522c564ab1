"""Teachers are brought to the student's images and classes, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from etude.core.errors import EtudeError
from etude.core.files import digest_of, write_json
from etude.core.predictions import Predictions
from etude.data.compact import Digests
from etude.journal.record import RunRecord
from etude.journal.screen import Screen
from etude.models.backbones import build_backbone
from etude.models.classifier import (
    Classifier,
    ModelCard,
    Preprocessing,
    load_model,
    load_validated,
    save_model,
    save_validated_head,
)
from etude.recipe import load_recipe
from etude.study.run.finish import TRAINED_ON
from etude.study.run.request import Request
from etude.study.run.session import Session
from etude.study.unlabelled.teachers import known_labels, open_teachers
from etude.training.batches import Teacher
from picture_folders import write_classes, write_flat
from recorded_runs import opened

SMALL = ('stages=["finetune"]', "train.epochs=2", "train.batch_size=8", "predict.tta=1")
IDS = tuple(f"{name}/{number:03d}.png" for name in ("round", "striped") for number in range(12))


def words(*settings: str) -> list[str]:
    return [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


def sentence_of(ended: Any) -> str:
    assert ended.code == 2, ended.out
    assert len(ended.err.strip().splitlines()) == 1
    return ended.err


def warnings_of(run: Path) -> list[str]:
    return [one["text"] for one in json.loads((run / "run.json").read_text())["warnings"]]


def save(path: Path, ids: tuple[str, ...], classes: tuple[str, ...], probabilities: np.ndarray) -> Path:
    Predictions.from_probabilities(ids, classes, probabilities).save(path)
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "train")


def test_a_file_of_probabilities_teaches_by_names_whatever_its_order(etude, train, tmp_path):
    """The student of a file that swaps the classes learns the swap: its labels count for nothing here."""
    swapped = np.array([[0.98, 0.02] if name.startswith("striped") else [0.02, 0.98] for name in IDS])
    file = save(tmp_path / "said.npz", IDS[::-1], ("striped", "round"), 1 - swapped[::-1])
    settings = words("distill.weight=1", "train.epochs=30", "distill.temperature=1")
    ended = etude("fit", train, "--teacher", file, *settings, "--out", "run")
    assert ended.code == 0, ended.err
    valid = Predictions.load(tmp_path / "run" / "valid.npz")
    assert valid.classes == ("round", "striped")
    assert (valid.predicted() != valid.labels).mean() > 0.7


def test_a_resumed_student_has_the_same_teachers(tmp_path):
    """Their files count, not their names."""
    file = save(tmp_path / "said.npz", IDS, ("round", "striped"), np.full((24, 2), [0.9, 0.1]))
    run = tmp_path / "run"
    prepared = cast(Any, SimpleNamespace(data=SimpleNamespace(images=SimpleNamespace(classes=("round", "striped")))))
    prepared.recipe = load_recipe("default")
    record = opened(run)
    session = Session(Request(tmp_path, teachers=[file]), record, Screen(quiet=True))
    for _ in range(2):
        assert open_teachers(session, prepared) is not None
    save(file, IDS, ("round", "striped"), np.full((24, 2), [0.8, 0.2]))
    with pytest.raises(EtudeError, match="the teachers have changed since .*run was begun"):
        open_teachers(session, prepared)


def test_several_teachers_are_averaged(etude, train, tmp_path):
    rng = np.random.default_rng(0)
    one, other = (rng.dirichlet([1, 1], len(IDS)) for _ in range(2))
    classes = ("round", "striped")
    files = [save(tmp_path / f"{k}.npz", IDS, classes, said) for k, said in enumerate((one, other))]
    ended = etude("fit", train, "--teacher", files[0], "--teacher", files[1], *words(), "--out", "run")
    assert ended.code == 0, ended.err
    said = Predictions.load(tmp_path / "run" / "teacher" / "labelled.npz")
    assert said.ids == IDS
    np.testing.assert_allclose(said.probabilities(), (one + other) / 2, atol=1e-6)


def test_a_file_must_know_the_labelled_images_and_the_classes(etude, train, tmp_path):
    even = np.full((len(IDS), 2), 0.5)
    short = save(tmp_path / "short.npz", IDS[1:], ("round", "striped"), even[1:])
    said = sentence_of(etude("fit", train, "--teacher", short, *words(), "--out", "never"))
    assert "says nothing about 1 of 24 labelled images, 'round/000.png' for one" in said
    other = save(tmp_path / "other.npz", IDS, ("round", "spotted"), even)
    said = sentence_of(etude("fit", train, "--teacher", other, *words(), "--out", "never-2"))
    assert "lacks 'striped' and has 'spotted' as well" in said
    said = sentence_of(etude("fit", train, "--teacher", short, "--recipe", "distill", *words(), "--out", "never-3"))
    assert "--set distill.views=cached" in said
    (tmp_path / "empty").mkdir()
    said = sentence_of(etude("fit", train, "--teacher", "empty", *words(), "--out", "never-4"))
    assert "empty is not a run" in said


def test_unlabelled_images_that_a_file_does_not_know_are_left_out(etude, train, tmp_path):
    write_flat(tmp_path / "more", count=5)
    ids = (*IDS, "t001.png", "t003.png")
    file = save(tmp_path / "said.npz", ids, ("round", "striped"), np.full((len(ids), 2), 0.5))
    ended = etude("fit", train, "--unlabeled", tmp_path / "more", "--teacher", file, *words(), "--out", "run")
    assert ended.code == 0, ended.err
    assert "the teachers' files say nothing about 3 unlabelled images: left out" in warnings_of(tmp_path / "run")
    assert Predictions.load(tmp_path / "run" / "teacher" / "unlabeled.npz").ids == ("t001.png", "t003.png")


def test_a_teacher_is_the_model_as_it_was_validated(tmp_path):
    """What learned from the validation images afterwards would make its students' scores too high."""
    backbone = build_backbone("tiny", "none")
    model = Classifier(backbone.module, backbone.num_features, 2).eval()
    shape = Preprocessing(16, 16, "squash", 3, 3, backbone.mean, backbone.std)
    save_validated_head(tmp_path, model)
    before = model.head.weight.detach().clone()
    model.set_head(np.ones((2, backbone.num_features)), np.zeros(2))
    save_model(tmp_path, model, ModelCard("tiny", ("a", "b"), shape, "fp32", 1, "none"))
    assert torch.equal(load_validated(tmp_path)[0].head.weight, before)
    assert torch.equal(load_model(tmp_path)[0].head.weight, torch.ones_like(before))


def test_teachers_of_another_size_and_split(etude, train, tmp_path):
    """A teacher decodes the images as it learned them; where it has seen validation labels a warning says so."""
    size = ("timeline.start_size=16", "timeline.final_size=16")
    assert etude("fit", train, "--seed", 5, *words(*size), "--out", "teacher").code == 0
    for views in ("cached", "same"):
        ended = etude("fit", train, "--teacher", "teacher", *words(f"distill.views={views}"), "--out", views)
        assert ended.code == 0, ended.err
        (told,) = warnings_of(tmp_path / views)
        assert "of the images that validate here, so the validation scores are too high" in told
    unseen = {*Predictions.load(tmp_path / "teacher" / "valid.npz").ids}
    seen = {*Predictions.load(tmp_path / "cached" / "valid.npz").ids} - unseen
    assert f"was trained on {len(seen)} of the images" in told
    assert (tmp_path / "cached" / "teacher" / "labelled.npz").is_file()
    assert not (tmp_path / "same" / "teacher").exists()


def prepared_of(files: dict[str, str], folds: list[tuple[list[int], list[int]]]) -> Any:
    """Return as much of a prepared run as tells which images train and validate; ``files`` are contents by id."""
    hashes = Digests.from_hex("".join(digest_of(content) for content in files.values()))
    images = SimpleNamespace(ids=list(files), classes=("a", "b"))
    made = [SimpleNamespace(train=np.array(train), valid=np.array(valid)) for train, valid in folds]
    return SimpleNamespace(
        data=SimpleNamespace(images=images, build=SimpleNamespace(content_hashes=hashes)), folds=made
    )


def test_a_teacher_that_trained_on_the_validation_images_is_noticed_whatever_they_are_called(tmp_path: Path):
    student = prepared_of({"a/1": "one", "a/2": "two", "b/1": "three"}, [([0], [1, 2])])
    write_json(tmp_path / TRAINED_ON, {"files": digest_of("two") + digest_of("another")})
    assert known_labels(tmp_path, student, "other images") == 1
    write_json(tmp_path / TRAINED_ON, {"files": digest_of("one") + digest_of("another")})
    assert known_labels(tmp_path, student, "other images") == 0
    write_json(tmp_path / TRAINED_ON, {"files": "no hash"})
    with pytest.raises(EtudeError, match=TRAINED_ON):
        known_labels(tmp_path, student, "other images")


@pytest.mark.parametrize(
    ("held", "folds", "fingerprint", "seen"),
    [
        ("train.npz", [{}], "other", 1),  # the names of its training images are known
        ("valid.npz", [{}], "same", 1),  # it trained on all but those that it held out
        ("valid.npz", [{}, {}], "same", 2),  # each image was trained on in all folds but one
        ("valid.npz", [{}], "other", 0),
    ],
)
def test_of_older_runs_the_names_tell(tmp_path: Path, held: str, folds: list, fingerprint: str, seen: int):
    student = prepared_of({"a/1": "one", "a/2": "two", "b/1": "three"}, [([0], [1, 2])])
    record = RunRecord.open(tmp_path, command=["etude"], recipe="quick", settings={}, changed={}, seed=0)
    record.set("data", {"fingerprint": "same", "folds": folds})
    save(tmp_path / held, ("a/2", "x"), ("a", "b"), np.full((2, 2), 0.5))
    assert known_labels(tmp_path, student, fingerprint) == seen


def test_the_teacher_of_a_students_view_takes_its_own_size_and_order():
    torch.manual_seed(0)
    backbone = build_backbone("tiny", "none", 1)
    model = Classifier(backbone.module, backbone.num_features, 3).eval()
    shape = Preprocessing(16, 16, "squash", 1, 1, (0.5,), (0.25,))
    images = torch.randint(0, 256, (4, 16, 16, 1), dtype=torch.uint8)
    expected = model(shape.to_input(images))
    teacher = Teacher(model, shape, [2, 0, 1], "fp32").eval()
    torch.testing.assert_close(teacher(images), expected[:, [2, 0, 1]])
    plain = torch.tensor([10, 200], dtype=torch.uint8)[:, None, None, None]  # of one level, so alike at any size
    torch.testing.assert_close(teacher(plain.expand(2, 40, 40, 1)), teacher(plain.expand(2, 16, 16, 1)))
