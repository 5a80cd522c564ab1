from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.functional.mix import cross_entropy, one_hot


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 99))
def test_cross_entropy_is_torchs_on_hard_labels(classes: int, count: int, seed: int):
    torch.manual_seed(seed)
    logits, labels, weight = torch.randn(count, classes) * 5, torch.randint(classes, (count,)), torch.rand(count) + 0.01
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    ours = cross_entropy(logits, one_hot(labels, classes), weight)
    torch.testing.assert_close(ours, (losses * weight).sum() / weight.sum())
    equal = cross_entropy(logits, one_hot(labels, classes), torch.full((count,), 0.3))
    torch.testing.assert_close(equal, torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_torchs_with_smoothing(smoothing: float):
    torch.manual_seed(0)
    logits, labels = torch.randn(12, 4), torch.randint(4, (12,))
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, one_hot(labels, 4, smoothing), torch.ones(12)), expected)


def test_an_image_of_weight_zero_does_not_count():
    logits, target = torch.tensor([[2.0, 0.0], [-9.0, 9.0]]), one_hot(torch.tensor([0, 0]), 2)
    alone = cross_entropy(logits[:1], target[:1], torch.ones(1))
    torch.testing.assert_close(cross_entropy(logits, target, torch.tensor([3.0, 0.0])), alone)
    assert cross_entropy(logits, target, torch.zeros(2)).item() == 0.0


def test_the_loss_is_computed_in_float32():
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = one_hot(torch.arange(8) % 3, 3)
    loss = cross_entropy(logits, target, torch.ones(8))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), target, torch.ones(8)), rtol=0, atol=0)


@given(st.integers(1, 10), st.floats(0, 0.99), st.integers(0, 99))
def test_targets_sum_to_one_and_keep_the_label_on_top(classes: int, smoothing: float, seed: int):
    labels = torch.randint(classes, (7,), generator=torch.Generator().manual_seed(seed))
    target = one_hot(labels, classes, smoothing)
    assert (target.shape, target.dtype) == ((7, classes), torch.float32)
    torch.testing.assert_close(target.sum(1), torch.ones(7))
    assert (target.argmax(1) == labels).all()
    off = target[torch.arange(classes)[None, :] != labels[:, None]]
    torch.testing.assert_close(off, torch.full_like(off, smoothing / classes))
