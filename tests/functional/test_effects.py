from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.functional.effects import Effects, apply_effects, blur_kernels, hashed, hashed_levels, hashed_normal


def applied(images: np.ndarray, fill: str = "mean", **fields: Any) -> np.ndarray:
    changed = images.copy()
    arrays = {name: np.array(value) for name, value in fields.items()}
    apply_effects(changed, dataclasses.replace(Effects.identity(len(images)), fill=fill, **arrays))
    return changed


def noise(count: int = 2, size: int = 24, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def test_neutral_parameters_are_the_identity():
    np.testing.assert_array_equal(applied(noise()), noise())


@pytest.mark.parametrize("channels", [1, 3])
def test_only_the_rectangle_is_erased_with_the_mean(channels: int):
    images = noise(2, 20, channels)
    changed = applied(images, erase=[[0.25, 0.5, 0.75, 1.0], [0.3, 0.3, 0.3, 0.9]])
    inside = np.zeros((20, 20), bool)
    inside[10:20, 5:15] = True
    np.testing.assert_array_equal(changed[0][~inside], images[0][~inside])
    assert (changed[0][inside] == np.rint(images[0].mean((0, 1)))).all()
    np.testing.assert_array_equal(changed[1], images[1])


def test_a_rectangle_of_noise_shows_all_levels_and_its_own_seed():
    images = np.full((2, 60, 60, 3), 100, np.uint8)
    changed = applied(images, "noise", erase=[[0, 0, 1, 1]] * 2, seed=np.array([1, 2]))
    assert changed.mean() == pytest.approx(127.5, abs=2)
    assert len(np.unique(changed)) == 256
    assert (changed[0] != changed[1]).mean() > 0.9


def test_noise_has_the_stated_deviation():
    images = np.full((2, 64, 64, 3), 128, np.uint8)
    changed = applied(images, noise=[0.1, 0.0], seed=np.array([5, 5])).astype(float)
    assert changed[0].mean() == pytest.approx(128, abs=1)
    assert changed[0].std() == pytest.approx(25.5, rel=0.03)
    assert (changed[1] == 128).all()


def test_hashed_noise_is_close_to_normal_and_uncorrelated():
    values = hashed_normal(np.array([[7], [8]]), np.arange(100_000)[None])
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)
    assert (np.abs(values) < 1).mean() == pytest.approx(0.683, abs=0.02)
    assert abs(np.corrcoef(values)[0, 1]) < 0.02
    assert abs(np.corrcoef(values[0, 1:], values[0, :-1])[0, 1]) < 0.02


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**24))
def test_tensors_hash_to_the_same_numbers(seed: int, start: int):
    places = np.arange(start, start + 5)[None]
    for function in (hashed, hashed_levels, hashed_normal):
        expected = function(np.array([[seed]]), places)
        found = function(torch.tensor([[seed]]), torch.from_numpy(places)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (hashed(np.array([[seed]]), places) >= 0).all()
    assert (hashed(np.array([[seed]]), places) < 2**32).all()


def test_blur_spreads_a_point_as_widely_as_stated_and_keeps_the_mean():
    images = np.zeros((2, 65, 65, 1), np.uint8)
    images[:, 32, 32] = 255
    images[:, 20:45, 20:45] = 250
    changed = applied(images, blur=[2.0 / 65, 0.0]).astype(float)
    assert changed[0].sum() == pytest.approx(images[0].astype(float).sum(), rel=0.01)
    np.testing.assert_array_equal(changed[1], images[1])
    # Along a row, the step at column 20 becomes the normal distribution function of deviation 2.
    rise = np.diff(changed[0, 32, 10:30, 0])
    columns = np.arange(10, 29) + 0.5
    centre = (rise * columns).sum() / rise.sum()
    assert centre == pytest.approx(19.5, abs=0.05)
    assert np.sqrt((rise * (columns - centre) ** 2).sum() / rise.sum()) == pytest.approx(2.0, rel=0.06)


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=4))
def test_blur_kernels_sum_to_one_and_are_even(deviations: list[float]):
    kernels = blur_kernels(np.array(deviations))
    np.testing.assert_allclose(kernels.sum(1), 1.0)
    np.testing.assert_allclose(kernels, kernels[:, ::-1])
    for kernel, deviation in zip(kernels, deviations, strict=True):
        alone = blur_kernels(np.array([deviation]))[0]
        np.testing.assert_allclose(kernel[kernel > 0], alone[alone > 0])


def test_sharpness_sharpens_and_smooths():
    image = noise(1)
    contrast = {amount: applied(image // 4 + 96, sharpness=[amount]).astype(float).std() for amount in (-0.9, 0.0, 0.9)}
    assert contrast[-0.9] < 0.8 * contrast[0.0] < contrast[0.0] < 0.9 * contrast[0.9]
    flat = np.full((1, 9, 9, 3), 77, np.uint8)
    np.testing.assert_array_equal(applied(flat, sharpness=[0.9]), flat)
