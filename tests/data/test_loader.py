from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data.loader import Batch, EpochBatches, OrderedBatches, TrainingRows, steps_per_epoch
from etude.functional.augment import POLICIES, augment


@dataclass(frozen=True)
class Step:
    image_size: int = 8
    augment: float = 0.0


class Images:
    """A store's ``gather`` that writes down what was asked; image r has the value r + 1 everywhere."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    def __call__(self, rows: np.ndarray, size: int) -> np.ndarray:
        self.asked.append((rows.tolist(), size))
        return np.broadcast_to(
            (rows % 255 + 1).astype(np.uint8)[:, None, None, None], (len(rows), size, size, 3)
        ).copy()


def training_rows(count: int, gather: Callable[[np.ndarray, int], np.ndarray] | None = None) -> TrainingRows:
    """Rows 10, 12, 14, ... of a store, in an order of their own; targets and weights tell the row."""
    rows = np.random.default_rng(0).permutation(10 + 2 * np.arange(count))
    targets = np.stack([rows, -rows], axis=1).astype(np.float32)
    return TrainingRows(gather or Images(), rows, targets, rows.astype(np.float32) / 2)


def unchanged(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return images


def batches(data: TrainingRows, batch_size: int = 4, epoch: int = 0, seed: int = 0, **options) -> EpochBatches:
    options = {"plan": lambda step: Step(), "augment": unchanged, **options}
    return EpochBatches(data, batch_size=batch_size, epoch=epoch, seed=seed, **options)


def ids(epoch: EpochBatches) -> list[int]:
    return [number for batch in epoch for number in batch["id"].tolist()]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3), st.integers(1, 5))
def test_an_epoch_visits_images_without_repetition_in_whole_batches(count, batch_size, epoch, prefetch):
    data = training_rows(count)
    loader = batches(data, batch_size, epoch, prefetch=prefetch)
    seen = [batch["id"].tolist() for batch in loader]
    size = min(batch_size, count)
    assert [len(part) for part in seen] == [size] * (count // size)
    assert len(loader) == len(seen) == steps_per_epoch(count, batch_size)
    flat = [number for part in seen for number in part]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(data.rows.tolist())
    assert count % size or set(flat) == set(data.rows.tolist())


def test_a_batch_holds_what_belongs_together():
    for batch in batches(training_rows(12)):
        rows = batch["id"].numpy()
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape == (4, 8, 8, 3)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0].numpy(), rows + 1)
        np.testing.assert_array_equal(batch["target"].numpy(), np.stack([rows, -rows], axis=1))
        np.testing.assert_array_equal(batch["weight"].numpy(), rows / 2)
        assert batch["target"].dtype == batch["weight"].dtype == torch.float32
        assert batch["is_labeled"].tolist() == [True] * 4


def noisy(rows: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.random.default_rng(row).integers(0, 256, (size, size, 3), dtype=np.uint8) for row in rows])


def photos(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return augment(images, POLICIES["photos"], strength, rng)


def augmented(epoch: int, seed: int = 0, prefetch: int = 3) -> list[Batch]:
    data = training_rows(24, noisy)
    return list(batches(data, 5, epoch, seed, plan=lambda step: Step(16, 0.7), augment=photos, prefetch=prefetch))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)


def test_the_same_seed_and_epoch_give_the_same_batches_bit_for_bit():
    assert same(augmented(epoch=2), augmented(epoch=2))
    assert same(augmented(epoch=2), augmented(epoch=2, prefetch=1))


@pytest.mark.parametrize("other", [{"epoch": 3}, {"epoch": 2, "seed": 1}])
def test_another_epoch_or_seed_gives_another_order(other: dict[str, int]):
    one, two = augmented(epoch=2), augmented(**other)
    assert [batch["id"].tolist() for batch in one] != [batch["id"].tolist() for batch in two]
    assert not same(one, two)


def test_iterating_again_makes_the_epoch_again():
    loader = batches(training_rows(20), 6)
    assert ids(loader) == ids(loader)


def test_every_epoch_leaves_out_other_images():
    data = training_rows(11)
    left_out = {frozenset(data.rows.tolist()) - frozenset(ids(batches(data, 4, epoch))) for epoch in range(10)}
    assert len(left_out) > 5


def test_every_step_has_the_size_and_strength_of_its_plan():
    gather, strengths = Images(), []

    def recorded(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
        strengths.append(strength)
        return images

    plan = {step: Step(8 + step, step / 100) for step in range(100)}
    loader = batches(training_rows(20, gather), 5, epoch=3, plan=plan.__getitem__, augment=recorded)
    assert [batch["image"].shape[1] for batch in loader] == [20, 21, 22, 23]  # steps 12 to 15 of the run
    assert [size for _, size in gather.asked] == [20, 21, 22, 23]
    assert strengths == [0.12, 0.13, 0.14, 0.15]


def test_every_step_draws_its_own_augmentation():
    drawn: list[float] = []

    def drawing(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
        drawn.append(rng.random())
        return images

    for epoch in range(2):
        ids(batches(training_rows(20), 5, epoch, augment=drawing))
    assert len(set(drawn)) == 8


@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_consumer_that_stops_early_stops_the_work(prefetch: int):
    gather = Images()
    iterator = iter(batches(training_rows(200, gather), 2, prefetch=prefetch))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]  (a generator; leaving a for loop does the same)
    assert len(gather.asked) <= prefetch
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("etude-batches")]


def test_batches_that_wait_when_the_consumer_stops_are_never_made():
    started, release, gather = threading.Event(), threading.Event(), Images()

    def slow(rows: np.ndarray, size: int) -> np.ndarray:
        images = gather(rows, size)
        if len(gather.asked) == 2:
            started.set()
            assert release.wait(30)
        return images

    iterator = iter(batches(training_rows(40, slow), 2, prefetch=5))
    next(iterator)
    assert started.wait(30)
    threading.Timer(0.2, release.set).start()
    iterator.close()  # type: ignore[attr-defined]
    assert len(gather.asked) == 2


def test_no_more_than_prefetch_batches_are_made_ahead():
    gather = Images()
    for taken, _ in enumerate(batches(training_rows(40, gather), 2, prefetch=3), start=1):
        assert len(gather.asked) <= taken + 2


def test_an_error_in_the_thread_reaches_the_consumer():
    def broken(rows: np.ndarray, size: int) -> np.ndarray:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        ids(batches(training_rows(8, broken)))


@given(st.integers(0, 40), st.integers(1, 15))
def test_ordered_batches_cover_all_rows_once_in_order(count: int, batch_size: int):
    data = training_rows(count)
    loader = OrderedBatches(data, batch_size=batch_size, size=6)
    parts = list(loader)
    assert len(parts) == len(loader)
    assert [row for asked, _ in data.gather.asked for row in asked] == data.rows.tolist()  # type: ignore[attr-defined]
    assert all(part["image"].shape[1:] == (6, 6, 3) for part in parts)
    weights = [weight for part in parts for weight in part["weight"].tolist()]
    targets = [target for part in parts for target in part["target"].tolist()]
    assert weights == data.weights.tolist()
    assert targets == data.targets.tolist()
