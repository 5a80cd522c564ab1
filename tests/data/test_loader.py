from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.loading import Images, Step, batches, ids, parts, training_rows
from etude.data.loader import Batch, OrderedBatches
from etude.functional.augment import POLICIES, augment


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 30), st.integers(1, 5))
def test_every_image_is_seen_once_an_epoch(count, batch_size, steps, prefetch):
    data = training_rows(count)
    loader = batches(data, batch_size, steps, prefetch=prefetch)
    seen = parts(loader)
    assert [len(part) for part in seen] == [min(batch_size, count)] * steps
    assert len(loader) == steps
    stream = [number for part in seen for number in part]
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count]) == sorted(data.rows.tolist())


@given(st.integers(0, 12), st.integers(1, 5))
def test_a_resumed_run_goes_on_with_the_batches_of_the_uninterrupted_one(start: int, prefetch: int):
    sizes = [3, 3, 5, 1, 8, 2, 2, 7, 4, 4, 9, 6]
    plan = [Step(batch_size=size) for size in sizes]
    whole = parts(batches(training_rows(11), 4, 12, plan=plan.__getitem__))
    assert [len(part) for part in whole] == [min(size, 11) for size in sizes]
    resumed = batches(training_rows(11), 4, 12, plan=plan.__getitem__, start=start, prefetch=prefetch)
    assert parts(resumed) == whole[start:]


@given(st.integers(1, 9), st.integers(1, 5))
def test_a_changed_plan_drops_what_was_made_for_the_old_one(change: int, prefetch: int):
    """After step ``change`` sizes grow and batches halve, as when a plateau ends a phase."""
    changed = [False]

    def plan(step: int) -> Step:
        return Step(12, 0.5, 2) if changed[0] and step > change else Step(8, 0.0, 4)

    seen = []
    for step, batch in enumerate(batches(training_rows(13), 4, 12, plan=plan, prefetch=prefetch)):
        seen.append((tuple(batch["image"].shape[:2]), batch["id"].tolist()))
        changed[0] = changed[0] or step == change
    assert [shape for shape, _ in seen] == [(4, 8)] * (change + 1) + [(2, 12)] * (11 - change)
    known = parts(batches(training_rows(13), 4, 12, plan=plan))  # made by the changed plan from the start
    assert [row for _, part in seen for row in part] == [row for part in known for row in part]


@given(st.integers(2, 4), st.integers(4, 12))
def test_processes_share_each_batch_without_overlap(processes: int, batch_size: int):
    data = training_rows(20)
    whole = parts(batches(data, batch_size, 6))
    shares = [parts(batches(data, batch_size, 6, part=(rank, processes))) for rank in range(processes)]
    for step, batch in enumerate(whole):
        assert sorted(row for share in shares for row in share[step]) == sorted(batch)


def test_processes_draw_other_augmentations():
    drawn: list[float] = []

    def drawing(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
        drawn.append(rng.random())
        return images

    for rank in range(2):
        ids(batches(training_rows(8), 4, 2, augment=drawing, part=(rank, 2)))
    assert len(set(drawn)) == 4


def test_a_plan_without_sizes_is_refused():
    with pytest.raises(ValueError, match="step 0 no image size"):
        ids(batches(training_rows(8), plan=lambda step: Step(None)))


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


def photos(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
    return augment(images, POLICIES["photos"], strength, rng, size)


def augmented(seed: int = 0, prefetch: int = 3, start: int = 0) -> list[Batch]:
    data = training_rows(24, noisy)
    plan = Step(16, 0.7)
    return list(batches(data, 5, 9, seed, plan=lambda step: plan, augment=photos, prefetch=prefetch, start=start))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)


def test_the_same_seed_gives_the_same_batches_bit_for_bit():
    assert same(augmented(), augmented())
    assert same(augmented(), augmented(prefetch=1))
    assert same(augmented()[4:], augmented(start=4))


def test_another_seed_gives_another_order():
    one, two = augmented(), augmented(seed=1)
    assert [batch["id"].tolist() for batch in one] != [batch["id"].tolist() for batch in two]
    assert not same(one, two)


def test_iterating_again_makes_the_batches_again():
    loader = batches(training_rows(20), 6)
    assert ids(loader) == ids(loader)


def test_every_epoch_has_another_order():
    stream = ids(batches(training_rows(12), 4, 9))
    assert len({tuple(stream[start : start + 12]) for start in (0, 12, 24)}) == 3


def test_every_step_has_the_size_and_strength_of_its_plan():
    gather, strengths = Images(), []

    def recorded(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
        strengths.append(strength)
        return images

    plan = {step: Step(8 + step, step / 100) for step in range(100)}
    loader = batches(training_rows(20, gather), 5, 16, plan=plan.__getitem__, augment=recorded, start=12)
    assert [batch["image"].shape[1] for batch in loader] == [20, 21, 22, 23]  # steps 12 to 15 of the run
    assert [size for _, size in gather.asked] == [20, 21, 22, 23]
    assert strengths == [0.12, 0.13, 0.14, 0.15]


def test_every_step_draws_its_own_augmentation():
    drawn: list[float] = []

    def drawing(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
        drawn.append(rng.random())
        return images

    ids(batches(training_rows(20), 5, 8, augment=drawing))
    assert len(set(drawn)) == 8


@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_consumer_that_stops_early_stops_the_work(prefetch: int):
    gather = Images()
    iterator = iter(batches(training_rows(200, gather), 2, 100, prefetch=prefetch))
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

    iterator = iter(batches(training_rows(40, slow), 2, 20, prefetch=5))
    next(iterator)
    assert started.wait(30)
    threading.Timer(0.2, release.set).start()
    iterator.close()  # type: ignore[attr-defined]
    assert len(gather.asked) == 2


def test_no_more_than_prefetch_batches_are_made_ahead():
    gather = Images()
    for taken, _ in enumerate(batches(training_rows(40, gather), 2, 20, prefetch=3), start=1):
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
