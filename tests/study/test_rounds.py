"""What a student of pseudo-labels is trained on, seen from inside a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.inference import predict as prediction
from etude.refine.propagation import Propagation
from etude.study.run import network as candidates
from etude.study.unlabelled import rounds
from etude.study.unlabelled.guards import EvaluatedModel
from etude.training.task import DivergedError, FineTuneTask
from picture_folders import picture, write_classes, write_flat

SMALL = (
    'stages=["finetune"]', "train.epochs=1", "train.batch_size=10", "unlabeled.length=4st", "predict.tta=1",
    "unlabeled.rounds=1",
)  # fmt: skip


def words(*settings: str) -> list[str]:
    return [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[FineTuneTask]:
    """The fine-tunings of a run, in order."""
    seen: list[FineTuneTask] = []
    own = candidates.fine_tune

    def kept(model: Any, task: FineTuneTask, **options: Any) -> Any:
        seen.append(task)
        return own(model, task, **options)

    monkeypatch.setattr(candidates, "fine_tune", kept)
    return seen


@pytest.fixture
def images(tmp_path: Path) -> tuple[object, ...]:
    write_classes(tmp_path / "train")
    write_flat(tmp_path / "more", count=20)
    return ("fit", tmp_path / "train", "--unlabeled", tmp_path / "more")


def test_no_copy_of_a_validation_image_is_trained_on(etude, images, tmp_path, tasks):
    """Every labelled image lies among the unlabelled ones too, saved anew: those that validate stay out."""
    for kind, name in enumerate(("round", "striped")):
        for number in range(12):
            copy = picture(kind, number, 24).point(lambda level: min(255, level + 2))
            copy.save(tmp_path / "more" / f"{name}-{number:03d}.png")
    ended = etude(*images, "--recipe", "consistency", *words(), "--out", "run")
    assert ended.code == 0, ended.err
    supervised, online = tasks
    assert supervised.valid is not None
    validating = {tuple(one.flatten() // 8) for one in supervised.valid.gather(supervised.valid.rows, 24).astype(int)}
    assert len(online.train.rows) == 19 + 20 + 19
    trained = online.train.gather(online.train.rows, 24).astype(int)
    for row in trained:
        distance = min(np.abs(row.flatten() // 8 - np.array(one)).mean() for one in validating)
        assert distance > 1.0
    assert "5 unlabelled images look like validation images: left out" in " ".join(ended.out.split())


def test_validation_holds_real_labels_only(etude, images, tasks):
    assert etude(*images, "--recipe", "pseudo-label", *words(), "--out", "run").code == 0
    supervised, student = tasks
    for task in tasks:
        assert task.valid is not None
        assert task.valid.labelled is None
        assert task.valid.num_classes == 2
    assert supervised.valid is not None
    assert student.valid is not None
    np.testing.assert_array_equal(supervised.valid.rows, student.valid.rows)
    assert supervised.mix is None
    assert student.mix is not None
    assert student.mix.share == 0.7
    assert student.train.is_labelled(np.arange(39)).tolist() == [True] * 19 + [False] * 20


def test_pseudo_labels_below_the_threshold_are_left_out(etude, images, tasks, monkeypatch):
    sure = np.linspace(0.5, 0.99, 20)
    own = EvaluatedModel.calibrated

    def calibrated(valid: Any, pool: Any) -> EvaluatedModel:
        made = type(pool).from_probabilities(pool.ids, pool.classes, np.stack([sure, 1 - sure], 1))
        return replace(own(valid, pool), pool=made)

    monkeypatch.setattr(EvaluatedModel, "calibrated", calibrated)
    settings = words("unlabeled.threshold=0.6", "unlabeled.prior=none", "unlabeled.kind=hard")
    assert etude(*images, "--recipe", "pseudo-label", *settings, "--out", "run").code == 0
    student = tasks[1].train
    unlabelled = np.flatnonzero(~student.is_labelled(np.arange(len(student))))
    assert len(unlabelled) == (sure >= 0.6).sum()
    assert student.dense_targets(unlabelled).tolist() == [[1.0, 0.0]] * len(unlabelled)
    assert (np.diff(student.weights[unlabelled]) >= 0).all()
    assert student.weights[unlabelled].min() < 1


def test_no_pseudo_label_ends_the_rounds(etude, images, tasks):
    ended = etude(*images, "--recipe", "pseudo-label", *words("unlabeled.threshold=0.999999"), "--out", "run")
    assert ended.code == 0, ended.err
    assert "no pseudo-label reaches unlabeled.threshold" in " ".join((ended.out + ended.err).split())
    assert len(tasks) == 1


def test_a_student_that_diverges_is_thrown_away(etude, images, tmp_path, monkeypatch):
    def diverges(*_: object, **__: object) -> None:
        raise DivergedError("training diverged: it was made to")

    monkeypatch.setattr(rounds, "finetune_candidate", diverges)
    ended = etude(*images, "--recipe", "consistency", *words(), "--out", "run")
    assert ended.code == 0, ended.err
    assert "online is thrown away, since training diverged" in " ".join((ended.out + ended.err).split())
    assert (tmp_path / "run" / "valid.npz").is_file()


def test_a_warm_student_starts_from_its_teacher(etude, images, monkeypatch):
    starts: list[Any] = []
    own = candidates.fine_tune

    def kept(model: Any, task: FineTuneTask, **options: Any) -> Any:
        starts.append({name: value.clone() for name, value in model.state_dict().items()})
        done = own(model, task, **options)
        starts.append({name: value.clone() for name, value in model.state_dict().items()})
        return done

    monkeypatch.setattr(candidates, "fine_tune", kept)
    for start, same in (("warm", True), ("fresh", False)):
        starts.clear()
        settings = words(f"unlabeled.start={start}")
        assert etude(*images, "--recipe", "pseudo-label", *settings, "--out", start).code == 0
        trained, student = starts[1], starts[2]
        assert all(bool((trained[name] == student[name]).all()) for name in trained) == same


def test_the_mix_of_a_head_is_a_limit_on_the_weights(etude, images, monkeypatch):
    fitted: list[tuple[np.ndarray, np.ndarray]] = []
    own = rounds.fit_head

    def kept(features: np.ndarray, labels: np.ndarray, *rest: Any, **options: Any) -> Any:
        fitted.append((labels, options["weights"]))
        return own(features, labels, *rest, **options)

    monkeypatch.setattr(rounds, "fit_head", kept)
    head = ("--recipe", "quick", "--set", "unlabeled.method=rounds", "--set", "unlabeled.rounds=1")
    head = (*head, "--set", "unlabeled.neighbours=0")
    for share in (0.7, 0.05):
        assert etude(*images, *head, "--set", f"unlabeled.labeled_share={share}", "--out", f"run-{share}").code == 0
        labels, weights = fitted[-1]
        assert len(labels) == len(weights) > 19
        assert weights[:19].tolist() == [1.0] * 19
        pseudo = weights[19:].sum()
        assert 0 < pseudo <= min(20, 19 * (1 - share) / share) + 1e-6


def test_rounds_on_a_head_propagate_labels_and_compute_no_features_twice(etude, images, tmp_path, monkeypatch):
    seen: list[tuple[str, ...]] = []
    in_rounds: list[tuple[str, ...]] = []
    features, run = prediction._features, rounds.Rounds.run

    def counted(model: Any, card: Any, gather: Any, rows: np.ndarray, views: Any) -> Any:
        seen.extend((str(gather.__self__.folder), rows.tobytes().hex(), view.name) for view in views)
        return features(model, card, gather, rows, views)

    def all_rounds(self: rounds.Rounds, kept: Any) -> Any:
        seen.clear()
        ended = run(self, kept)
        in_rounds.extend(seen)
        return ended

    def helpful(self: Propagation, classifier: Any) -> None:
        self.strength_, self.gain_ = 1.0, 0.1

    monkeypatch.setattr(Propagation, "_choose", helpful)
    monkeypatch.setattr(prediction, "_features", counted)
    monkeypatch.setattr(rounds.Rounds, "run", all_rounds)
    head = ("--recipe", "quick", "--set", "unlabeled.method=rounds", "--set", "model.feature_size=64")
    views = ("--set", "augment.policy=photos", "--set", "predict.tta_if=always", "--set", "predict.tta=3")
    assert etude(*images, *head, *views, "--out", "run").code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["rounds"]) >= 1
    assert {name for _, _, name in in_rounds} >= {"flip"}
    assert len(in_rounds) == len(set(in_rounds))
    stages = {stage["name"]: stage for stage in record["stages"]}
    assert stages["neighbours of round 1"]["notes"]["strength"] == 1.0
    assert etude(*images, *head, "--set", "unlabeled.neighbours=0", "--out", "none").code == 0
    record = json.loads((tmp_path / "none" / "run.json").read_text())
    assert not [stage for stage in record["stages"] if "neighbours" in stage["name"]]


def test_neighbours_that_do_not_help_end_the_rounds(etude, images, tmp_path, monkeypatch):
    def useless(self: Propagation, classifier: Any) -> None:
        self.strength_, self.gain_ = 0.0, 0.0

    monkeypatch.setattr(Propagation, "_choose", useless)
    head = ("--recipe", "quick", "--set", "unlabeled.method=rounds", "--set", "model.feature_size=64")
    ended = etude(*images, *head, "--out", "run")
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not record.get("rounds")
    assert record["result"]["kept"] == ["head"]
    assert "do not help to predict labelled ones" in " ".join((ended.out + ended.err).split())


def test_what_is_propagated_becomes_the_pseudo_labels(etude, images, monkeypatch):
    fitted: list[np.ndarray] = []
    own = rounds.fit_head

    def kept(features: np.ndarray, labels: np.ndarray, *rest: Any, **options: Any) -> Any:
        fitted.append(labels)
        return own(features, labels, *rest, **options)

    def fit(self: Propagation, features: Any, labels: np.ndarray, classifier: Any) -> Propagation:
        self.strength_ = self.gain_ = 1.0
        assert (labels[:19] >= 0).all()
        assert (labels[19:] == -1).all()
        assert classifier(np.arange(12)).shape == (len(labels), 2)
        return self

    def probabilities(self: Propagation, logits: np.ndarray) -> np.ndarray:
        return np.tile([0.0, 1.0], (len(logits), 1))

    monkeypatch.setattr(rounds, "fit_head", kept)
    monkeypatch.setattr(Propagation, "fit", fit)
    monkeypatch.setattr(Propagation, "probabilities", probabilities)
    head = ("--recipe", "quick", "--set", "unlabeled.method=rounds", "--set", "unlabeled.prior=none")
    assert (
        etude(*images, *head, "--set", "unlabeled.rounds=1", "--set", "model.feature_size=64", "--out", "run").code == 0
    )
    assert len(fitted[-1]) > 19
    assert (fitted[-1][19:] == 1).all()
