from __future__ import annotations

from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from etude.callbacks import CutMix, Distill, LabelSmoothing, MixUp
from etude.core.errors import EtudeError
from etude.functional.distill import distillation_loss, mean_probabilities


class Teacher(torch.nn.Module):
    """A linear map of the mean pixel, with a dropout that must be off; it writes down what it saw."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.dropout, self.layer = torch.nn.Dropout(0.5), torch.nn.Linear(3, classes)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return self.layer(self.dropout(images.mean((2, 3)) * 10))


class Dicts(Dataset[Any]):
    """24 images with dense targets, weights, and whatever ``more`` adds."""

    def __init__(self, images: TensorDataset, **more: torch.Tensor) -> None:
        target = torch.nn.functional.one_hot(images.tensors[1], 3).float()
        self.parts = {"image": images.tensors[0], "target": target, "weight": torch.ones(24), **more}

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: part[index] for name, part in self.parts.items()}


class Student(pl.LightningModule):
    """A user's module that learns from batches as dicts by etude's loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.seen: list[dict[str, torch.Tensor]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.mean((2, 3)) * 10)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return distillation_loss(self(batch["image"]), batch["target"], batch["weight"], batch["teacher"], 4.0, 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02)


PLAIN = {"limit_val_batches": 0}


@pytest.fixture
def teachers() -> list[Teacher]:
    torch.manual_seed(1)
    return [Teacher(), Teacher()]


def test_batches_get_the_mean_of_their_teachers(fit_images, teachers, images):
    student = Student()
    fit_images(student, [Distill(teachers)], steps=4, data=Dicts(images), **PLAIN)
    assert not any(teacher.training for teacher in teachers)
    for step, batch in enumerate(student.seen):
        assert torch.equal(batch["image"], images.tensors[0][6 * step : 6 * step + 6])
        torch.testing.assert_close(batch["teacher"], mean_probabilities(teachers, batch["image"]))
        assert not batch["teacher"].requires_grad


def test_a_student_comes_to_agree_with_its_teacher(fit_images, teachers, images):
    student, pixels = Student(), images.tensors[0]
    expected = mean_probabilities([teachers[0].eval()], pixels)
    before = (mean_probabilities([student], pixels) - expected).abs().mean()
    weights = teachers[0].layer.weight.detach().clone()
    fit_images(student, [Distill(teachers[:1])], steps=100, data=Dicts(images), **PLAIN)
    assert (mean_probabilities([student], pixels) - expected).abs().mean() < 0.5 * before
    assert torch.equal(teachers[0].layer.weight, weights)


@pytest.mark.parametrize("mixing", [MixUp, CutMix])
def test_teachers_see_what_the_student_sees_after_mixing(mixing: Any, fit_images, teachers, images):
    student = Student()
    fit_images(student, [mixing(1.0), Distill(teachers)], steps=4, data=Dicts(images), **PLAIN)
    for step, batch in enumerate(student.seen):
        assert not torch.equal(batch["image"], images.tensors[0][6 * step : 6 * step + 6])
        assert all(torch.equal(teacher.seen[step], batch["image"]) for teacher in teachers)


@pytest.mark.parametrize("mixing", [MixUp, CutMix])
@pytest.mark.parametrize("weighted", [False, True])
def test_cached_probabilities_are_mixed_as_targets_are(mixing: Any, weighted: bool, fit_images, images):
    more = {"teacher": torch.nn.functional.one_hot(images.tensors[1], 3).float()}
    if weighted:
        more["weight"] = torch.rand(24, generator=torch.Generator().manual_seed(0))
    student = Student()
    fit_images(student, [mixing(1.0)], steps=4, data=Dicts(images, **more), **PLAIN)
    for batch in student.seen:
        torch.testing.assert_close(batch["teacher"], batch["target"])
        assert ((batch["teacher"] > 0).sum(1) > 1).any()


def test_with_a_share_the_teachers_join_the_target(fit_images, image_module, teachers, images):
    module = image_module()
    fit_images(module, [Distill(teachers, share=0.25)], steps=4)
    labels = torch.nn.functional.one_hot(images.tensors[1], 3).float()
    for step, (seen, target) in enumerate(module.seen):
        rows = slice(6 * step, 6 * step + 6)
        torch.testing.assert_close(target, 0.75 * labels[rows] + 0.25 * mean_probabilities(teachers, seen))
    assert all(not targets.is_floating_point() for _, targets in module.validated)


def test_labels_are_smoothed_and_teachers_are_not(fit_images, image_module, teachers, images):
    module = image_module()
    fit_images(module, [LabelSmoothing(0.3), Distill(teachers, share=0.5)], steps=1)
    seen, target = module.seen[0]
    smooth = torch.nn.functional.one_hot(images.tensors[1][:6], 3) * 0.7 + 0.1
    torch.testing.assert_close(target, 0.5 * smooth + 0.5 * mean_probabilities(teachers, seen))


def test_checkpoints_do_not_hold_the_teachers(teachers):
    assert Distill(teachers).state_dict() == {}


# --- mistakes ---


def test_settings_out_of_range_are_refused(teachers):
    with pytest.raises(EtudeError, match="Distill got no teachers"):
        Distill([])
    with pytest.raises(EtudeError, match=r"share=1\.5"):
        Distill(teachers, share=1.5)


def test_a_tuple_has_no_place_for_probabilities(fit_images, image_module, teachers):
    with pytest.raises(EtudeError, match="which has no place for 'teacher': yield batches as dicts"):
        fit_images(image_module(), [Distill(teachers)])


def test_two_kinds_of_teachers_are_refused(fit_images, teachers, images):
    data = Dicts(images, teacher=torch.full((24, 3), 1 / 3))
    with pytest.raises(EtudeError, match="hold a teacher's probabilities already: leave out Distill"):
        fit_images(Student(), [Distill(teachers)], data=data, **PLAIN)


def test_teachers_of_other_classes_are_refused(fit_images, image_module, teachers):
    with pytest.raises(EtudeError, match=r"a teacher of Distill gives \(6, 2\) for 6 images"):
        fit_images(image_module(), [Distill([*teachers, Teacher(2)], share=0.5)])
    with pytest.raises(EtudeError, match=r"give probabilities \(6, 2\) and the batch has targets \(6, 3\)"):
        fit_images(image_module(), [Distill([Teacher(2)], share=0.5)])


def test_a_student_cannot_be_its_own_teacher(fit_images, image_module):
    module = image_module()
    for one in (module, module.head):
        with pytest.raises(EtudeError, match="is part of the module that is trained; give it a copy"):
            fit_images(module, [Distill([one], share=0.5)])


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("own", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share", [None, 0.5])
def test_teachers_answer_in_any_precision(precision: Any, own: torch.dtype, share: float | None, fit_images, images):
    class Shown(Student):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            self.seen.append(batch)
            return torch.nn.functional.cross_entropy(self(batch["image"]), batch["target"])

    teacher, student = Teacher().to(own), Shown()
    before = [weight.clone() for weight in teacher.parameters()]
    expected = teacher.eval()(images.tensors[0][:6].to(own)).float().softmax(1)
    settings = {"data": Dicts(images), "precision": precision, "limit_val_batches": 0}
    assert fit_images(student, [Distill([teacher], share)], **settings).global_step == 8
    label, batch = torch.nn.functional.one_hot(images.tensors[1][:6], 3), student.seen[0]
    answer = batch["teacher"] if share is None else 2 * batch["target"].float() - label
    coarse = "bf16" in precision or own == torch.bfloat16
    torch.testing.assert_close(answer.float(), expected, atol=0.03 if coarse else 1e-5, rtol=0.0)
    assert all(torch.equal(weight, kept) for weight, kept in zip(teacher.parameters(), before, strict=True))
