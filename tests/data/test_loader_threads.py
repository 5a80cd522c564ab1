"""Batches made by several threads, in parts, for several processes, in page-locked memory and on a device."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.loading import Images, Step, batches, parts, training_rows
from etude.core.errors import EtudeError
from etude.data.loader import OrderedBatches, StepBatches, TrainingRows, default_threads


def noise(rows: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.random.default_rng(row).integers(0, 256, (size, size, 3), dtype=np.uint8) for row in rows])


def shifted(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws for each image, as a policy does; samples each second pixel from twice the size."""
    every = images.shape[1] // size
    return images[:, ::every, ::every] // 2 + rng.integers(0, 128, (len(images), 1, 1, 1), dtype=np.uint8)


def shifted_tensor(images: torch.Tensor, strength: float, rng: np.random.Generator, size: int) -> torch.Tensor:
    return torch.from_numpy(shifted(images.numpy(), strength, rng, size))


def on_cpu(data: TrainingRows, asked: list[int] | None = None) -> TrainingRows:
    """The same rows as a device's store gives them; the CPU is that device."""

    def gather_tensor(rows: np.ndarray, size: int) -> torch.Tensor:
        if asked is not None:
            asked.append(size)
        return torch.from_numpy(data.gather(rows, size))

    return replace(data, gather_tensor=gather_tensor)


def same(one: Any, other: Any) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True)
    )


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("etude-")]


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (2, 3), (4, 2), (3, None)])
def test_threads_change_neither_order_nor_content(threads: int, prefetch: int | None):
    def late(rows: np.ndarray, size: int) -> np.ndarray:
        time.sleep(0.002 * (rows[0] % 3))  # so that threads overtake each other
        return noise(rows, size)

    options: dict[str, Any] = {"plan": lambda step: Step(6 + step % 2, 0.5), "augment": shifted}
    plain = list(batches(training_rows(23, noise), 5, 14, threads=1, **options))
    assert same(batches(training_rows(23, late), 5, 14, threads=threads, prefetch=prefetch, **options), plain)


def test_threads_work_at_the_same_time():
    meeting = threading.Barrier(3, timeout=30)

    def gather(rows: np.ndarray, size: int) -> np.ndarray:
        meeting.wait()  # passes only when three threads are here
        return Images()(rows, size)

    assert len(list(batches(training_rows(12, gather), 2, 6, threads=3))) == 6


@given(st.integers(1, 4), st.integers(1, 6))
def test_no_more_than_prefetch_batches_wait_whatever_the_threads(threads: int, prefetch: int):
    gather = Images()
    loader = batches(training_rows(30, gather), 2, 12, threads=threads, prefetch=prefetch)
    for taken, _ in enumerate(loader, start=1):
        assert len(gather.asked) <= taken - 1 + prefetch


@pytest.mark.parametrize("broken_step", [0, 2, 5])
def test_an_error_surfaces_at_its_step_once_and_ends_all_threads(broken_step: int):
    lock, gathered = threading.Lock(), Images()
    wanted = batches(training_rows(40), 2, 8)
    fatal = parts(wanted)[broken_step]

    def gather(rows: np.ndarray, size: int) -> np.ndarray:
        with lock:
            images = gathered(rows, size)
        if rows.tolist() == fatal:
            raise OSError("the disk is gone")
        return images

    iterator = iter(batches(training_rows(40, gather), 2, 8, threads=3, prefetch=4))
    assert [next(iterator)["id"].tolist() for _ in range(broken_step)] == parts(wanted)[:broken_step]
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)
    assert loader_threads() == []
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("split", [1, 2])
def test_a_consumer_that_stops_early_leaves_no_thread(split: int):
    for taken, _ in enumerate(batches(training_rows(40), 4, 20, threads=4, prefetch=6, parts=split)):
        if taken == 2:
            break
    assert loader_threads() == []
    iterator = iter(OrderedBatches(training_rows(40), batch_size=4, size=6))
    next(iterator)
    del iterator
    assert loader_threads() == []


def test_threads_follow_the_cores(monkeypatch: pytest.MonkeyPatch):
    for cores, threads in ((1, 1), (2, 1), (4, 2), (8, 4), (64, 4)):
        monkeypatch.setattr("etude.data.loader.usable_cores", lambda cores=cores: cores)
        assert default_threads() == threads
        assert batches(training_rows(8)).threads == threads


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_images_are_read_at_the_source_size_only_when_augmentation_samples_them(strength: float):
    gather, sizes = Images(), []

    def augment(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
        sizes.append((images.shape[1], size))
        return images[:, :size, :size]

    data = replace(training_rows(8, gather), source_size=lambda size: 2 * size)
    made = list(batches(data, 4, 2, plan=lambda step: Step(8, strength), augment=augment))
    read = 16 if strength else 8
    assert [size for _, size in gather.asked] == [read, read]
    assert sizes == [(read, 8)] * 2
    assert [tuple(batch["image"].shape) for batch in made] == [(4, 8, 8, 3)] * 2


@given(st.integers(1, 5), st.integers(5, 13), st.integers(0, 4))
def test_parts_follow_each_other_with_the_pixels_of_the_whole_step(split: int, batch_size: int, start: int):
    options: dict[str, Any] = {"plan": lambda step: Step(6, 0.5), "augment": shifted, "start": start}
    whole = list(batches(training_rows(17, noise), batch_size, 5, **options))
    loader = batches(training_rows(17, noise), batch_size, 5, parts=split, **options)
    pieces = list(loader)
    assert len(loader) == 5 * split
    assert len(pieces) == len(whole) * split
    for step, batch in enumerate(whole):
        own = pieces[step * split : (step + 1) * split]
        lengths = [len(piece["image"]) for piece in own]
        assert max(lengths) - min(lengths) <= 1
        assert same([{key: torch.cat([piece[key] for piece in own]) for key in batch}], [batch])


def test_a_step_of_fewer_images_than_parts_is_refused():
    with pytest.raises(EtudeError, match=r"a step's 3 images cannot come in 4 parts: raise train\.micro_batch"):
        list(batches(training_rows(3), 3, 2, parts=4))
    assert loader_threads() == []


def test_a_fixed_batch_asks_the_plan_for_no_earlier_step():
    asked: list[int] = []

    def plan(step: int) -> Step:
        asked.append(step)
        return Step()

    known = parts(batches(training_rows(11), 4, 9))
    assert parts(batches(training_rows(11), 4, 9, plan=plan, start=6, fixed_batch=True)) == known[6:]
    assert min(asked) == 6


def test_a_plan_that_changes_is_followed_with_several_threads_and_parts():
    changed = [False]

    def plan(step: int) -> Step:
        return Step(12, 0.5, 2) if changed[0] and step > 3 else Step(8, 0.0, 4)

    seen: list[list[int]] = []
    loader = batches(training_rows(13), 4, 9, plan=plan, threads=3, prefetch=5, parts=2)
    for number, batch in enumerate(loader):
        seen.append(batch["id"].tolist())
        assert batch["image"].shape[1] == (12 if number >= 8 else 8)
        changed[0] = changed[0] or number == 7
    known = parts(batches(training_rows(13), 4, 9, plan=plan))
    assert [row for part in seen for row in part] == [row for part in known for row in part]


@pytest.mark.parametrize("strength", [0.0, 0.6])
@pytest.mark.parametrize("split", [1, 2])
def test_images_on_a_device_come_in_the_same_batches_without_threads(strength: float, split: int):
    data, asked = replace(training_rows(17, noise), source_size=lambda size: 2 * size), []
    options: dict[str, Any] = {"plan": lambda step: Step(6, strength), "augment": shifted, "parts": split, "start": 2}
    known = list(batches(data, 5, 9, **options))
    names: set[str] = set()

    def watching(images: torch.Tensor, strength: float, rng: np.random.Generator, size: int) -> torch.Tensor:
        names.add(threading.current_thread().name)
        return shifted_tensor(images, strength, rng, size)

    found = list(batches(on_cpu(data, asked), 5, 9, **{**options, "augment": watching}))
    assert same(found, known)
    assert names == {threading.main_thread().name}
    assert set(asked) == {12 if strength else 6}


def test_a_batch_lies_where_its_images_are():
    """``meta`` stands for a device that is not the CPU: whoever kept the labels back would show."""

    def gather_tensor(rows: np.ndarray, size: int) -> torch.Tensor:
        return torch.zeros(len(rows), size, size, 3, dtype=torch.uint8, device="meta")

    data = replace(training_rows(8), gather_tensor=gather_tensor)
    loader = batches(data, 4, 1, augment=lambda images, strength, rng, size: images)
    ordered = OrderedBatches(data, batch_size=4, size=6)
    assert {tensor.device.type for batch in (*loader, *ordered) for tensor in batch.values()} == {"meta"}


@pytest.mark.parametrize("pin", [True, False])
def test_batches_are_pinned_when_asked_for(pin: bool, monkeypatch: pytest.MonkeyPatch):
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.data_ptr()) or tensor)
    loader: StepBatches = batches(training_rows(8), 4, 2, pin=pin)
    ordered = OrderedBatches(training_rows(8), batch_size=4, size=6, pin=pin)
    held = [tensor.data_ptr() for batch in (*loader, *ordered) for tensor in batch.values()]
    assert set(pinned) == (set(held) if pin else set())


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 9))
def test_processes_look_at_every_row_exactly_once(count: int, processes: int, batch_size: int):
    data = training_rows(count)
    loaders = [OrderedBatches(data, batch_size=batch_size, size=4, part=(rank, processes)) for rank in range(processes)]
    made = [list(loader) for loader in loaders]
    weights = [[weight for batch in share for weight in batch["weight"].tolist()] for share in made]
    assert sorted(weight for share in weights for weight in share) == sorted(data.weights.tolist())
    assert max(map(len, weights)) - min(map(len, weights)) <= 1
    assert [len(share) for share in made] == [len(loader) for loader in loaders]
    assert all(1 <= len(batch["weight"]) <= batch_size for share in made for batch in share)
    if batch_size > 1 and count >= processes:  # collective operations of a batch would wait forever
        assert len({len(share) for share in made}) == 1


def test_the_next_ordered_batch_is_made_while_one_is_looked_at():
    gather, two = Images(), threading.Event()

    def watched(rows: np.ndarray, size: int) -> np.ndarray:
        images = gather(rows, size)
        if len(gather.asked) == 2:
            two.set()
        return images

    for number, _ in enumerate(OrderedBatches(training_rows(20, watched), batch_size=4, size=6)):
        assert two.wait(30)
        assert len(gather.asked) <= number + 2
