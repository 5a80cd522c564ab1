"""Fine-tuning with unlabelled rows: fixed mixes, online pseudo-labels, teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.errors import EtudeError
from etude.data.batches import TrainingRows
from etude.data.loader import concatenated_rows
from etude.data.order import FixedMix
from etude.functional.augment import POLICIES
from etude.training import fit
from etude.training.batches import Teacher, strong_policy
from etude.training.task import FineTuneTask
from training.digits import KillAt, Killed, rows, task, train

ONLINE = ("unlabeled.method=online", "unlabeled.ramp=[0.0, 0.2]", "train.epochs=1")


def unlabelled(first: int, count: int) -> TrainingRows:
    """Digits whose labels nobody knows."""
    known = rows(first, count)
    hidden = np.full(count, -1, np.int64)
    return replace(known, targets=hidden, num_classes=10, labelled=np.zeros(count, bool))


def mixed(
    folder: Path, *settings: str, share: float = 0.25, method: tuple[str, ...] = ONLINE, **options: Any
) -> FineTuneTask:
    both = concatenated_rows(rows(0, 40), unlabelled(40, 120))
    return task(folder, "default", [*method, *settings], train=both, mix=FixedMix(share), **options)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


def test_an_epoch_lasts_until_the_longer_stream_is_through(tmp_path: Path):
    one = mixed(tmp_path)
    assert one.images_per_epoch == 160  # 40 labelled at a quarter, 120 unlabelled at three
    assert replace(one, mix=FixedMix(0.7)).images_per_epoch == 400
    assert replace(one, mix=None).images_per_epoch == 160
    _, done = train(one)
    assert done.steps == 10
    weights = [row["unlabeled_weight"] for row in done.happened]
    assert weights[0] < weights[1] < weights[2] == weights[-1] == 1.0


def test_every_batch_is_mixed_and_only_unlabelled_images_are_seen_strongly(tmp_path: Path, monkeypatch):
    batches: list[dict[str, torch.Tensor]] = []
    own = fit.FineTune.training_step

    def step(self: Any, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        batches.append(batch)
        return own(self, batch, batch_idx)

    monkeypatch.setattr(fit.FineTune, "training_step", step)
    train(mixed(tmp_path, "augment.mixup=0"))
    for batch in batches:
        assert int(batch["is_labeled"].sum()) == 4
        assert batch["target"].sum(1).allclose(torch.ones(16))  # each unlabelled image has been given a label
        assert batch["weight"][batch["is_labeled"]].eq(1).all()
        assert (batch["image"] != batch["strong"])[batch["is_labeled"]].any().logical_not()
    late = batches[-1]
    unknown = ~late["is_labeled"]
    assert late["weight"][unknown].max() <= 4 / 12 + 1e-6  # together as much as the labelled ones, at most
    assert (late["image"] == late["strong"]).all()


def test_training_with_pseudo_labels_resumes_exactly(tmp_path: Path):
    settings = ("train.checkpoint_every=0.001s", "train.epochs=2")
    whole, _ = train(mixed(tmp_path / "whole", *settings))
    with pytest.raises(Killed):
        train(mixed(tmp_path / "run", *settings), KillAt(11, 16))
    resumed, done = train(mixed(tmp_path / "run", *settings, resume=True))
    assert done.steps == 20
    assert same(whole, resumed)


def test_unlabelled_images_teach(tmp_path: Path):
    """The weight switches them on: without it they leave no trace but in the statistics of batch norm."""
    plain, _ = train(mixed(tmp_path / "plain", "unlabeled.weight=0"))
    taught, _ = train(mixed(tmp_path / "taught"))
    assert not same(plain, taught)


def test_a_prior_reaches_the_labels(tmp_path: Path):
    only = np.full(10, 1e-6)
    only[3] = 1.0
    model, _ = train(mixed(tmp_path, "unlabeled.weight=20", "train.epochs=8", prior=only))
    images = rows(200, 100)
    with torch.no_grad():
        shape = task(tmp_path).preprocessing
        guesses = model.eval()(shape.to_input(torch.from_numpy(images.gather(images.rows, 28)))).argmax(1)
    assert (guesses == 3).float().mean() > 0.5


def test_a_mix_needs_both_kinds_and_two_images_a_step(tmp_path: Path):
    with pytest.raises(EtudeError, match="batches of at least 2"):
        train(mixed(tmp_path, "train.batch_size=1", "train.batchnorm=keep"))


def test_strong_views_keep_the_symmetries_and_go_farther():
    for name, policy in POLICIES.items():
        strong = strong_policy(policy)
        assert (strong.flip, strong.upside_down, strong.quarter_turns) == (
            policy.flip, policy.upside_down, policy.quarter_turns
        )  # fmt: skip
        assert (strong.hue, strong.saturation, strong.border) == (policy.hue, policy.saturation, policy.border)
        assert strong.angle == 1.5 * policy.angle
        assert strong.erase >= 0.5
        assert not strong.changes_nothing, name


def test_distillation_brings_the_student_to_its_teacher(tmp_path: Path):
    """On unlabelled images alone a student comes to agree with its teacher, whatever the labels say."""
    teacher, _ = train(task(tmp_path / "teacher", "default", ["train.epochs=12", "augment.mixup=0"]))
    shape = task(tmp_path).preprocessing
    probe = rows(300, 200)
    pixels = torch.from_numpy(probe.gather(probe.rows, 28))
    both = concatenated_rows(rows(0, 20), unlabelled(0, 300))

    def guesses(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(shape.to_input(pixels)).argmax(1)

    with torch.no_grad():
        said = teacher.eval()(shape.to_input(torch.from_numpy(both.gather(both.rows, 28)))).softmax(1).numpy()
    expected = guesses(teacher)
    settings = ["train.epochs=6", "distill.weight=0.9", "augment.mixup=0.2"]

    def agreement(folder: str, **given: Any) -> float:
        return float(
            (guesses(train(task(tmp_path / folder, "default", settings, **given))[0]) == expected).float().mean()
        )

    alone = agreement("alone", train=rows(0, 20))
    assert agreement("cached", train=replace(both, teacher=said)) > alone + 0.1
    shown = (Teacher(teacher, shape, [*range(10)], "fp32"),)
    assert agreement("shown", train=both, teachers=shown) > alone + 0.1
