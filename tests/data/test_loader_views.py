"""What a training batch holds besides its images: targets from class indices, a second view, a teacher."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data.loading import Images, Step, batches, parts, training_rows
from etude.core.seeds import rng_for
from etude.data.batches import TrainingRows
from etude.data.loader import OrderedBatches


def with_labels(labels: list[int], images: Images | None = None) -> TrainingRows:
    """Rows with three classes; those of class -1 have no label."""
    known = np.array(labels)
    return replace(training_rows(len(labels), images), targets=known, num_classes=3, labelled=known >= 0)


HALF = [0, -1, 2, -1, 1, -1, 0, -1]


def brighter(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
    """A weak view: draws for each image."""
    return images[:, :size, :size] + rng.integers(0, 10, (len(images), 1, 1, 1), dtype=np.uint8)


def inverted(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
    """A strong view, which shows its strength in the corner."""
    views = 255 - images[:, :size, :size] - rng.integers(0, 10, (len(images), 1, 1, 1), dtype=np.uint8)
    views[:, 0, 0] = round(100 * strength)
    return views


def on_tensors(change: Any) -> Any:
    return lambda images, strength, rng, size: torch.from_numpy(change(images.numpy(), strength, rng, size))


def test_the_plain_order_is_that_of_earlier_versions():
    """Runs that were begun before are resumed with the batches that they would have had."""
    data = training_rows(7)
    stream = np.concatenate([rng_for(5, "order", epoch).permutation(7) for epoch in range(3)])
    assert parts(batches(data, 4, 5, 5)) == data.rows[stream[:20]].reshape(5, 4).tolist()
    assert parts(batches(data, 4, 5, 5, part=(1, 2))) == data.rows[stream[:20]].reshape(5, 4)[:, 1::2].tolist()


def test_class_indices_give_the_batches_of_dense_targets():
    sparse = with_labels([0, 2, 1, 2, 2, 0])
    dense = replace(sparse, targets=np.eye(3, dtype=np.float32)[sparse.targets], num_classes=None)
    for one, other in zip(batches(sparse), batches(dense), strict=True):
        assert one["target"].dtype == torch.float32
        assert torch.equal(one["target"], other["target"])
    for one, other in zip(*(OrderedBatches(data, batch_size=4, size=6) for data in (sparse, dense)), strict=True):
        assert torch.equal(one["target"], other["target"])
    assert sparse.class_indices.tolist() == dense.class_indices.tolist() == [0, 2, 1, 2, 2, 0]
    assert sparse.classes == dense.classes == 3


def test_a_row_without_a_label_has_a_target_of_zeros():
    data = with_labels(HALF)
    for batch in batches(data, 8, 3):
        assert batch["is_labeled"].tolist() == batch["target"].any(1).tolist()
        assert int(batch["is_labeled"].sum()) == 4


def test_a_subset_keeps_what_belongs_to_its_rows():
    teacher = np.arange(24, dtype=np.float32).reshape(8, 3)
    some = replace(with_labels(HALF), teacher=teacher).subset(np.array([6, 1]))
    whole = with_labels(HALF)
    assert some.rows.tolist() == whole.rows[[6, 1]].tolist()
    assert some.weights.tolist() == whole.weights[[6, 1]].tolist()
    assert some.targets.tolist() == [0, -1]
    assert some.labelled is not None
    assert some.labelled.tolist() == [True, False]
    assert some.teacher is not None
    assert some.teacher.tolist() == teacher[[6, 1]].tolist()
    assert training_rows(4).subset(np.array([2])).labelled is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": np.ones(3, np.float32)}, "4 rows have 3 weights"),
        ({"labelled": np.ones(5, bool)}, "4 rows have 5 labelled"),
        ({"num_classes": None}, "need num_classes"),
        ({"targets": np.eye(4, 3, dtype=np.float32)}, "dense targets .* go without"),
        ({"targets": np.array([0, 1, 3, 0])}, "from 0 to 2"),
        ({"targets": np.array([0, 1, -1, 0]), "labelled": None}, "from 0 to 2"),
        ({"teacher": np.ones((4, 2), np.float32)}, "for 3 classes"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(with_labels([0, 2, 1, 2]), **fields)


def test_a_teachers_probabilities_come_with_their_images():
    data = training_rows(9)
    taught = replace(data, teacher=data.targets / 100)
    for batch in batches(taught):
        assert torch.equal(batch["teacher"], batch["target"] / 100)
    assert all("teacher" not in batch for batch in batches(data))


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_only_unlabelled_images_get_a_second_view(device: bool, strength: float):
    data = with_labels(HALF)
    if device:
        data = replace(data, gather_tensor=lambda rows, size: torch.from_numpy(Images()(rows, size)))
    options: dict[str, Any] = {"augment": on_tensors(brighter) if device else brighter, "prefetch": 2}
    options["plan"] = lambda step: Step(8, strength)
    plain = list(batches(data, 6, 5, **options))
    seen = list(batches(data, 6, 5, strong=on_tensors(inverted) if device else inverted, **options))
    for one, batch in zip(plain, seen, strict=True):
        assert all(torch.equal(one[key], batch[key]) for key in one)  # the first view is drawn as without a second
        known = batch["is_labeled"]
        assert torch.equal(batch["strong"][known], batch["image"][known])
        strong = batch["strong"][~known]
        assert strong.dtype == torch.uint8
        assert strong[:, 0, 0].unique().tolist() == [100]  # at full strength, whatever the step's
        drawn = 255 - (batch["id"][~known] % 255 + 1) - strong[:, 4, 4, 0]
        assert ((drawn >= 0) & (drawn < 10)).all()
    assert "strong" not in plain[0]
    assert len({int(value) for batch in seen for value in batch["strong"][:, 4, 4, 0]}) > 8  # each draws its own


def test_a_second_view_is_sampled_from_the_size_that_augmentation_samples_from():
    images = Images()
    data = replace(with_labels(HALF, images), source_size=lambda size: 2 * size)
    sizes: list[int] = []

    def sampled(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
        sizes.append(images.shape[1])
        return images[:, ::2, ::2]

    list(batches(data, 8, 1, augment=sampled, strong=sampled))
    assert [size for _, size in images.asked] == [16]  # read once for both
    assert sizes == [16, 16]


def test_no_second_view_is_made_where_all_images_are_labelled():
    def never(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
        raise AssertionError

    for batch in batches(training_rows(8), strong=never):
        assert torch.equal(batch["strong"], batch["image"])


@pytest.mark.parametrize(("own", "expected"), [(0, 5), (-10, -5), (17, 19)])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_loader_threads_stand_back_for_the_network(own: int, expected: int, platform: str, monkeypatch: Any):
    gathering, set_to = set[int](), dict[int, int]()

    class Telling(Images):
        def __call__(self, rows: np.ndarray, size: int) -> np.ndarray:
            gathering.add(threading.get_native_id())
            return super().__call__(rows, size)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "getpriority", lambda which, who: own)
    monkeypatch.setattr(os, "setpriority", lambda which, who, value: set_to.update({who: value}))
    parts(batches(training_rows(9, Telling()), threads=2))
    assert set_to == (dict.fromkeys(set_to, expected) if platform == "linux" else {})
    assert gathering <= set(set_to) or platform == "darwin"
    assert threading.get_native_id() not in set_to
