from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.functional.pseudo import Confidence, align, lee_weight, sharpen, softmatch_weight


def some_probabilities(images: int, classes: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


# --- Lee's weight ---


def test_lees_weight_is_the_papers():
    assert [lee_weight(t, 100, 600) for t in (0, 99, 100, 225, 350, 600, 5000)] == [0, 0, 0, 0.75, 1.5, 3, 3]
    assert [lee_weight(t, 5, 5, final=2.0) for t in (4.9, 5.0)] == [0.0, 2.0]


@given(st.floats(0, 50), st.floats(0, 50), st.floats(0, 10), st.floats(0, 120), st.floats(0, 20))
def test_lees_weight_rises_from_nothing_to_the_final(t1: float, length: float, final: float, t: float, more: float):
    value = lee_weight(t, t1, t1 + length, final)
    assert 0.0 <= value <= final * (1 + 1e-12)
    assert value <= lee_weight(t + more, t1, t1 + length, final) + 1e-9


@pytest.mark.parametrize(("t1", "t2", "final"), [(-1, 2, 3), (3, 2, 3), (1, 2, -1), (math.nan, 2, 3)])
def test_numbers_that_make_no_ramp_are_refused(t1: float, t2: float, final: float):
    with pytest.raises(EtudeError, match="the weight rises from t1 to t2"):
        lee_weight(0, t1, t2, final)


# --- sharpening and alignment ---


def test_a_temperature_of_one_is_the_identity():
    p = some_probabilities(5)
    assert sharpen(p, 1.0) is p


def test_sharpening_is_a_power():
    p = some_probabilities(5)
    for temperature in (0.25, 0.5, 3.0):
        power = p ** (1 / temperature)
        torch.testing.assert_close(sharpen(p, temperature), power / power.sum(1, keepdim=True))


def test_a_temperature_of_zero_leaves_the_largest():
    p = some_probabilities(6)
    assert torch.equal(sharpen(p, 0.0), torch.nn.functional.one_hot(p.argmax(1), 4).float())


def test_certainty_can_be_sharpened_and_softened():
    sure = torch.tensor([[1.0, 0.0, 0.0]])
    for temperature in (0.1, 2.0):
        torch.testing.assert_close(sharpen(sure, temperature), sure)


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
def test_other_temperatures_are_refused(temperature: float):
    with pytest.raises(EtudeError, match="the temperature is"):
        sharpen(some_probabilities(2), temperature)


def test_alignment_to_what_is_already_predicted_changes_nothing():
    p = some_probabilities(7)
    for shares in (torch.full((4,), 0.25), p.mean(0)):
        torch.testing.assert_close(align(p, shares, shares), p)


def test_alignment_moves_the_mean_towards_the_prior():
    p, prior = some_probabilities(200), torch.tensor([0.7, 0.1, 0.1, 0.1])
    aligned = align(p, prior, p.mean(0))
    torch.testing.assert_close(aligned.sum(1), torch.ones(200))
    assert (aligned.mean(0) - prior).abs().sum() < 0.5 * (p.mean(0) - prior).abs().sum()


def test_alignment_takes_classes_that_are_never_predicted_or_cannot_occur():
    p = torch.tensor([[0.5, 0.5, 0.0]])
    aligned = align(p, torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0]))
    assert aligned.tolist() == [[0.0, 1.0, 0.0]]


# --- SoftMatch's weight ---


def test_constant_confidence_weighs_one():
    p = torch.full((5, 4), 0.05)
    p[:, 2] = 0.85
    seen = Confidence.none(4)
    for _ in range(20):
        seen = seen.updated(p, momentum=0.9)
        torch.testing.assert_close(softmatch_weight(p.amax(1), seen.mean, seen.variance), torch.ones(5))


def test_softmatchs_weight_is_the_papers():
    mean, variance, n = 0.8, 0.04, 2.0
    confidence = torch.tensor([0.95, 0.8, 0.6, 0.4])
    expected = [math.exp(-(min(c - mean, 0) ** 2) / (2 * variance / n**2)) for c in (0.95, 0.8, 0.6, 0.4)]
    torch.testing.assert_close(softmatch_weight(confidence, mean, variance, n), torch.tensor(expected))
    assert softmatch_weight(confidence, mean, variance, n)[2].item() == pytest.approx(math.exp(-2.0))


def test_a_wider_n_is_refused_at_zero():
    with pytest.raises(EtudeError, match="SoftMatch's n is 0"):
        softmatch_weight(torch.ones(1), 0.5, 0.1, n=0.0)


# --- running statistics ---


def test_the_first_batches_are_averaged_as_one():
    batches = [some_probabilities(size, seed=size) for size in (8, 8, 8)]
    seen = Confidence.none(4)
    for batch in batches:
        seen = seen.updated(batch, momentum=0.99)
    together = torch.cat(batches)
    torch.testing.assert_close(seen.shares, together.mean(0))
    torch.testing.assert_close(seen.mean, together.amax(1).mean())
    torch.testing.assert_close(seen.variance, together.amax(1).var(correction=0))
    assert seen.batches == 3


def test_later_batches_follow_the_momentum():
    first, second = some_probabilities(16, seed=1), some_probabilities(16, seed=2)
    seen = Confidence.none(4).updated(first, momentum=0.0).updated(second, momentum=0.0)
    torch.testing.assert_close(seen.shares, second.mean(0))
    many = Confidence(seen.mean, seen.variance, seen.shares, batches=1000).updated(first, momentum=0.9)
    torch.testing.assert_close(many.shares, 0.9 * second.mean(0) + 0.1 * first.mean(0))
    mixture = 0.9 * second.amax(1).square().mean() + 0.1 * first.amax(1).square().mean() - many.mean**2
    torch.testing.assert_close(many.variance, mixture)


def test_batches_of_one_image_have_a_variance_in_time():
    p = some_probabilities(50)
    seen = Confidence.none(4)
    for row in p:
        seen = seen.updated(row[None], momentum=0.999)
    torch.testing.assert_close(seen.variance, p.amax(1).var(correction=0))


def test_a_batch_without_images_changes_nothing():
    seen = Confidence.none(4).updated(some_probabilities(3), momentum=0.9)
    assert seen.updated(torch.zeros(0, 4), momentum=0.9) is seen


def test_parts_of_several_processes_count_as_one_batch():
    p, prior = some_probabilities(10), torch.tensor([0.4, 0.3, 0.2, 0.1])
    whole = Confidence.none(4).updated(p, 0.9, prior)
    part, rest = p[:3], p[3:]

    def sums_of(piece: torch.Tensor) -> list[torch.Tensor]:
        said: list[torch.Tensor] = []

        def add(sums: torch.Tensor) -> torch.Tensor:
            said.append(sums)
            return sums if len(said) > 1 else counted  # the shares that alignment needs are those of all

        counted = torch.cat([p.sum(0), torch.tensor([10.0])])
        Confidence.none(4).updated(piece, 0.9, prior, add)
        return said

    other = sums_of(rest)
    turn = iter(other)
    seen = Confidence.none(4).updated(part, 0.9, prior, lambda sums: sums + next(turn))
    for name in ("mean", "variance", "shares"):
        torch.testing.assert_close(getattr(seen, name), getattr(whole, name))


def test_confidences_are_those_of_aligned_probabilities():
    p, prior = some_probabilities(30), torch.tensor([0.7, 0.1, 0.1, 0.1])
    seen = Confidence.none(4).updated(p, 0.9, prior)
    torch.testing.assert_close(seen.mean, align(p, prior, p.mean(0)).amax(1).mean())


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_other_momenta_are_refused(momentum: float):
    with pytest.raises(EtudeError, match="the momentum of the confidences"):
        Confidence.none(4).updated(some_probabilities(2), momentum)
