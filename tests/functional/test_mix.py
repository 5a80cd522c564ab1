from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.seeds import rng_for
from etude.functional.mix import Box, cutmix, draw_box, draw_lambda, mixup, with_weights, without_weights

IMAGES = torch.rand(5, 3, 8, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(5)
PERMUTATION = torch.tensor([3, 0, 4, 2, 1])


def test_mixup_by_hand():
    images = torch.tensor([[0.0, 8.0], [4.0, 0.0]])
    mixed, targets = mixup(images, torch.eye(2), 0.75, torch.tensor([1, 0]))
    assert mixed.tolist() == [[1.0, 6.0], [3.0, 2.0]]
    assert targets.tolist() == [[0.75, 0.25], [0.25, 0.75]]


@pytest.mark.parametrize("images", [IMAGES, (IMAGES * 255).to(torch.uint8)], ids=["float", "uint8"])
def test_a_share_of_one_is_the_identity_and_of_none_the_partner(images: torch.Tensor):
    for lam, order in ((1.0, torch.arange(5)), (0.0, PERMUTATION)):
        mixed, targets = mixup(images, TARGETS, lam, PERMUTATION)
        assert torch.equal(mixed, images[order])
        assert torch.equal(targets, TARGETS[order])


def test_uint8_is_mixed_to_the_nearest_level():
    images = torch.tensor([[0, 255, 10], [255, 254, 11]], dtype=torch.uint8)
    mixed, _ = mixup(images, torch.eye(2), 0.7, torch.tensor([1, 0]))
    assert mixed.dtype == torch.uint8
    assert mixed.tolist() == [[76, 255, 10], [178, 254, 11]]  # 76.5 goes to even, 178.5 too


@given(lam=st.floats(0, 1), seed=st.integers(0, 99))
def test_mixed_targets_still_sum_to_one_and_images_stay_in_range(lam: float, seed: int):
    permutation = torch.from_numpy(rng_for(seed, "permutation").permutation(5))
    mixed, targets = mixup(IMAGES, TARGETS, lam, permutation)
    assert torch.allclose(targets.sum(1), torch.ones(5))
    assert IMAGES.min() - 1e-6 <= mixed.min() <= mixed.max() <= IMAGES.max() + 1e-6
    # Every image is used to the same amount in all.
    assert torch.allclose(mixed.sum(0), IMAGES.sum(0), atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_cutmix_by_hand(channels_last: bool):
    images = torch.arange(2.0)[:, None, None, None].expand(2, 1, 4, 5).clone()
    images = images.permute(0, 2, 3, 1) if channels_last else images
    before = images.clone()
    mixed, targets = cutmix(images, torch.eye(2), Box(1, 3, 2, 5), torch.tensor([1, 0]), channels_last=channels_last)
    plane = mixed[0, ..., 0] if channels_last else mixed[0, 0]
    assert plane.tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert torch.allclose(targets, torch.tensor([[0.7, 0.3], [0.3, 0.7]]))
    assert torch.equal(images, before)


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 6), st.integers(0, 6))
def test_cutmix_targets_are_the_exact_share_of_pixels(top: int, bottom: int, left: int, right: int):
    box = Box(min(top, bottom), max(top, bottom), min(left, right), max(left, right))
    numbers = torch.arange(5.0)[:, None, None, None].expand(5, 1, 8, 6)
    mixed, targets = cutmix(numbers, TARGETS, box, PERMUTATION)
    counted = torch.stack([(mixed == number).float().mean((1, 2, 3)) for number in range(5)], 1)
    assert torch.allclose(targets, counted, atol=1e-6)


def test_an_empty_box_is_the_identity():
    mixed, targets = cutmix(IMAGES, TARGETS, Box(3, 3, 0, 6), PERMUTATION)
    assert torch.equal(mixed, IMAGES)
    assert torch.equal(targets, TARGETS)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float):
    drawn = [draw_lambda(alpha, rng_for(0, "lambda", step)) for step in range(3000)]
    # Mean 1/2 and variance 1/(4(2 alpha + 1)) of Beta(alpha, alpha).
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.03)
    assert np.var(drawn) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_boxes_lie_within_the_image_and_never_cut_more_than_their_share(height: int, width: int, lam: float, seed: int):
    box = draw_box(height, width, lam, rng_for(seed, "box"))
    assert 0 <= box.top <= box.bottom <= height
    assert 0 <= box.left <= box.right <= width
    assert box.bottom - box.top <= round(height * (1 - lam) ** 0.5)
    assert box.right - box.left <= round(width * (1 - lam) ** 0.5)


def test_boxes_reach_every_pixel_and_have_the_drawn_area_where_they_fit():
    covered, areas = np.zeros((10, 20), int), []
    for step in range(400):
        box = draw_box(10, 20, 0.75, rng_for(0, "box", step))
        covered[box.top : box.bottom, box.left : box.right] += 1
        areas.append((box.bottom - box.top) * (box.right - box.left))
    assert covered.min() > 0
    assert max(areas) == 50
    empty = draw_box(10, 20, 1.0, rng_for(0, "box"))
    assert (empty.top, empty.left) == (empty.bottom, empty.right)


def test_weights_come_back_and_are_mixed_with_their_images():
    targets, weights = torch.eye(3), torch.tensor([1.0, 0.25, 0.0])
    same, kept = without_weights(with_weights(targets, weights))
    assert torch.equal(same[:2], targets[:2])
    assert torch.equal(kept, weights)
    _, weighted = mixup(torch.zeros(3, 1), with_weights(targets, weights), 0.5, torch.tensor([1, 2, 0]))
    mixed, weights = without_weights(weighted)
    assert weights.tolist() == [0.625, 0.125, 0.5]
    # An image of weight 1 counts four times as much as one of weight 1/4, and one of weight 0 not at all.
    assert torch.allclose(mixed, torch.tensor([[0.8, 0.2, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mixup(IMAGES, TARGETS, 1.5, PERMUTATION), r"share of MixUp is 1\.5; it must lie in \[0, 1\]"),
        (lambda: mixup(IMAGES, torch.arange(5), 0.5, PERMUTATION), "torch.int64; they must be floats"),
        (lambda: cutmix(IMAGES, torch.arange(5), Box(0, 1, 0, 1), PERMUTATION), "torch.int64; they must be floats"),
        (lambda: cutmix(IMAGES, TARGETS, Box(0, 9, 0, 1), PERMUTATION), "within images of 8 × 6 pixels"),
        (lambda: draw_lambda(-0.1, np.random.default_rng(0)), r"alpha is -0\.1"),
        (lambda: draw_lambda(float("nan"), np.random.default_rng(0)), "alpha is nan"),
    ],
)
def test_mistakes_are_told(call, sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        call()
