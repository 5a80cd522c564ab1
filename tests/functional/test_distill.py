from __future__ import annotations

import math

import pytest
import torch

from etude.core.errors import EtudeError
from etude.functional.distill import distillation_loss, mean_probabilities, soften
from etude.functional.mix import cross_entropy, mixup, one_hot


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


TEACHER = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).mul(3).softmax(1)
TARGET = one_hot(torch.arange(6) % 3, 3)
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0, 1.0])


def test_softening_is_a_power_and_takes_logits():
    power = TEACHER ** (1 / 4)
    torch.testing.assert_close(soften(TEACHER.log(), 4.0), power / power.sum(1, keepdim=True))
    torch.testing.assert_close(soften(TEACHER.log() + 5.0, 4.0), soften(TEACHER.log(), 4.0))
    torch.testing.assert_close(soften(TEACHER.log(), 1.0), TEACHER)


def test_no_share_is_the_plain_loss(logits: torch.Tensor):
    for temperature in (1.0, 7.0):
        loss = distillation_loss(logits, TARGET, WEIGHT, TEACHER, temperature, 0.0)
        assert torch.equal(loss, cross_entropy(logits, TARGET, WEIGHT))


def test_the_formula_by_hand(logits: torch.Tensor):
    temperature, share = 3.0, 0.25
    expected = 0.0
    for z, y, w, p in zip(logits.tolist(), TARGET.tolist(), WEIGHT.tolist(), TEACHER.tolist(), strict=True):
        total, soft_total = sum(map(math.exp, z)), sum(math.exp(a / temperature) for a in z)
        mass = sum(a ** (1 / temperature) for a in p)
        soft = -sum(
            a ** (1 / temperature) / mass * (b / temperature - math.log(soft_total)) for a, b in zip(p, z, strict=True)
        )
        hard = -sum(a * (b - math.log(total)) for a, b in zip(y, z, strict=True))
        expected += w * (share * temperature**2 * soft + (1 - share) * hard)
    loss = distillation_loss(logits, TARGET, WEIGHT, TEACHER, temperature, share)
    assert loss.item() == pytest.approx(expected / WEIGHT.sum().item(), rel=1e-5)


def test_at_a_temperature_of_one_it_is_the_loss_on_mixed_targets(logits: torch.Tensor):
    loss = distillation_loss(logits, TARGET, WEIGHT, TEACHER, 1.0, 0.4)
    torch.testing.assert_close(loss, cross_entropy(logits, 0.6 * TARGET + 0.4 * TEACHER, WEIGHT))


def test_the_student_that_agrees_gets_no_gradient_from_its_teacher():
    logits = torch.randn(4, 3).requires_grad_()
    ones = torch.ones(4)
    distillation_loss(logits, torch.zeros(4, 3), ones, logits.detach().softmax(1), 5.0, 1.0).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-6


def test_gradients_keep_their_size_whatever_the_temperature():
    """At high temperatures the gradient tends to (student's logits - teacher's) / C, both of mean zero (Hinton)."""
    student, teacher = torch.tensor([[0.4, 0.0, -0.4]]), torch.tensor([[-0.2, 0.5, -0.3]])
    for temperature in (20.0, 200.0):
        logits = student.clone().requires_grad_()
        distillation_loss(logits, torch.zeros(1, 3), torch.ones(1), teacher.softmax(1), temperature, 1.0).backward()
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad, (student - teacher) / 3, atol=0.02, rtol=0.0)


def test_an_unlabelled_image_has_the_soft_term_alone(logits: torch.Tensor):
    unlabelled = TARGET.clone()
    unlabelled[2:] = 0.0
    ones = torch.ones(6)
    loss = distillation_loss(logits, unlabelled, ones, TEACHER, 2.0, 0.5)
    soft = distillation_loss(logits, torch.zeros(6, 3), ones, TEACHER, 2.0, 1.0)
    hard = cross_entropy(logits[:2], TARGET[:2], ones[:2])
    torch.testing.assert_close(loss, 0.5 * soft + 0.5 * hard * 2 / 6)


def test_a_mixture_has_its_part_of_the_hard_term(logits: torch.Tensor):
    half = one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    half[3:] = 0.0
    images = torch.zeros(6, 1, 2, 2)
    _, mixed = mixup(images, half, 0.75, torch.tensor([3, 4, 5, 0, 1, 2]))
    ones = torch.ones(6)
    parts = [distillation_loss(logits, one, ones, TEACHER, 2.0, 0.5) for one in (half, half.roll(3, 0), mixed)]
    torch.testing.assert_close(0.75 * parts[0] + 0.25 * parts[1], parts[2])


def test_a_sure_teacher_gives_a_finite_loss(logits: torch.Tensor):
    for temperature in (0.5, 1.0, 20.0):
        loss = distillation_loss(logits, TARGET, WEIGHT, TARGET, temperature, 1.0)
        assert math.isfinite(loss.item())


def test_half_precision_logits_are_summed_in_single(logits: torch.Tensor):
    loss = distillation_loss(logits.bfloat16(), TARGET, WEIGHT, TEACHER, 2.0, 0.5)
    assert loss.dtype == torch.float32


def test_mean_probabilities_are_those_of_the_models_in_their_order():
    models = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
    images = torch.randn(5, 4)
    found = mean_probabilities(models, images)
    torch.testing.assert_close(found, (models[0](images).softmax(1) + models[1](images).softmax(1)).detach() / 2)
    assert not found.requires_grad


@pytest.mark.parametrize(
    "models",
    [
        [torch.nn.Flatten(0)],
        [torch.nn.Linear(4, 3), torch.nn.Linear(4, 2)],
        [lambda images: images[:1]],
    ],
)
def test_logits_of_other_shapes_are_refused(models: list[torch.nn.Module]):
    with pytest.raises(EtudeError, match=r"the neighbour gives .* for 5 images"):
        mean_probabilities(models, torch.randn(5, 4), "the neighbour")


@pytest.mark.parametrize(
    ("temperature", "share", "told"),
    [
        (0.0, 0.5, "the temperature is 0.0"),
        (math.inf, 0.5, "the temperature is inf"),
        (math.nan, 0.5, "the temperature is nan"),
        (2.0, -0.1, "the share of the teachers' loss is -0.1"),
        (2.0, 1.1, "the share of the teachers' loss is 1.1"),
    ],
)
def test_settings_out_of_range_are_refused(temperature: float, share: float, told: str, logits: torch.Tensor):
    with pytest.raises(EtudeError, match=told):
        distillation_loss(logits, TARGET, WEIGHT, TEACHER, temperature, share)


def test_teachers_of_other_classes_are_refused(logits: torch.Tensor):
    with pytest.raises(EtudeError, match=r"probabilities \(6, 2\) and the student logits \(6, 3\)"):
        distillation_loss(logits, TARGET, WEIGHT, TEACHER[:, :2], 2.0, 0.5)
