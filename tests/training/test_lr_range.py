from __future__ import annotations

from pathlib import Path

import etude.compat  # noqa: F401  (before lightning)

import numpy as np
import pytest

from etude.core.context import Context
from etude.core.lr_range import suggest_lr
from etude.training.lr_range import lr_range_test
from training.digits import network, task


def test_rates_grow_evenly_and_a_sensible_one_is_suggested(tmp_path: Path):
    rates, losses = lr_range_test(network(), task(tmp_path), steps=80, lowest=1e-5, highest=1.0, context=Context())
    assert len(rates) == len(losses) <= 80
    ratios = rates[1:] / rates[:-1]
    assert ratios == pytest.approx(np.full(len(ratios), (1.0 / 1e-5) ** (1 / 80)))
    found = suggest_lr(rates, losses)
    assert 1e-4 < found.lr < 0.1
    assert [*tmp_path.iterdir()] == []  # nothing is kept


def test_the_same_search_finds_the_same(tmp_path: Path):
    first = lr_range_test(network(), task(tmp_path), steps=12, context=Context())
    second = lr_range_test(network(), task(tmp_path), steps=12, context=Context())
    np.testing.assert_array_equal(first[1], second[1])


def test_it_ends_early_when_the_loss_has_diverged(tmp_path: Path):
    one = task(tmp_path, "default", ["train.optimizer=sgd", "train.clip=0"])
    rates, losses = lr_range_test(network(), one, steps=60, lowest=1e-3, highest=1e6, context=Context())
    assert len(rates) < 60
    assert not np.isfinite(losses[-1]) or losses[-1] > 4 * losses.min()
