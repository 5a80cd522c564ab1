"""Rows of several stores as one."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.loading import Images, batches, training_rows
from etude.data.batches import TrainingRows
from etude.data.loader import OrderedBatches, concatenated_rows
from etude.data.order import FixedMix


class Fixed(Images):
    """Images of which all have one value, so that they tell their store."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value

    def __call__(self, rows: np.ndarray, size: int) -> np.ndarray:
        super().__call__(rows, size)
        return np.stack([np.full((size, size, 3), self.value, np.uint8) + (row % 100).astype(np.uint8) for row in rows])


def labelled(count: int) -> TrainingRows:
    data = training_rows(count, Fixed(0))
    return replace(data, targets=np.arange(count) % 2, num_classes=2, source_size=lambda size: min(size, 32))


def unlabelled(count: int) -> TrainingRows:
    none = np.full(count, -1)
    return replace(
        training_rows(count, Fixed(100)), targets=none, num_classes=2, labelled=none >= 0,
        source_size=lambda size: min(2 * size, 32),
    )  # fmt: skip


def on_device(data: TrainingRows) -> TrainingRows:
    return replace(data, gather_tensor=lambda rows, size: torch.from_numpy(data.gather(rows, size)))


@given(st.lists(st.integers(0, 13), min_size=1, max_size=30))
def test_images_come_from_their_own_store_in_the_order_asked_for(positions: list[int]):
    parts = labelled(5), unlabelled(6), labelled(3)
    whole = concatenated_rows(*parts)
    source = np.concatenate([part.gather(part.rows, 4)[:, 0, 0, 0] for part in parts])
    found = whole.gather(whole.rows[np.array(positions)], 4)
    assert found.shape == (len(positions), 4, 4, 3)
    np.testing.assert_array_equal(found, np.broadcast_to(source[positions][:, None, None, None], found.shape))
    tensor = concatenated_rows(*map(on_device, parts))
    assert tensor.gather_tensor is not None
    np.testing.assert_array_equal(tensor.gather_tensor(np.array(positions), 4).numpy(), found)


def test_all_that_belongs_to_a_row_stays_with_it():
    one, two = labelled(3), unlabelled(2)
    whole = concatenated_rows(one, two)
    assert len(whole) == 5
    assert whole.rows.tolist() == [0, 1, 2, 3, 4]
    assert whole.targets.tolist() == [0, 1, 0, -1, -1]
    assert whole.num_classes == 2
    assert whole.labelled is not None
    assert whole.labelled.tolist() == [True] * 3 + [False] * 2
    np.testing.assert_array_equal(whole.weights, [*one.weights, *two.weights])
    assert whole.weights.dtype == np.float32
    assert concatenated_rows(one, one).labelled is None


def test_targets_become_dense_when_one_part_has_them_dense():
    soft = replace(unlabelled(2), targets=np.array([[0.3, 0.7], [0.9, 0.1]], np.float32), num_classes=None)
    whole = concatenated_rows(labelled(2), soft)
    assert whole.num_classes is None
    np.testing.assert_array_equal(whole.targets, np.array([[1, 0], [0, 1], [0.3, 0.7], [0.9, 0.1]], np.float32))
    assert whole.targets.dtype == np.float32


def test_a_teacher_is_had_by_all_or_by_none():
    taught = [replace(part, teacher=np.full((len(part), 2), 0.5, np.float32)) for part in (labelled(3), unlabelled(2))]
    teacher = concatenated_rows(*taught).teacher
    assert teacher is not None
    assert teacher.shape == (5, 2)
    with pytest.raises(ValueError, match="1 of 2 parts have a teacher"):
        concatenated_rows(taught[0], unlabelled(2))


def test_a_side_that_serves_all_stores_is_read():
    whole = concatenated_rows(labelled(2), unlabelled(2))
    assert whole.source_size is not None
    assert [whole.source_size(size) for size in (8, 20, 64)] == [16, 32, 32]
    assert concatenated_rows(training_rows(2), training_rows(2)).source_size is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(labelled(2), num_classes=3), r"rows of \[2, 3\] classes"),
        (replace(labelled(2), source_size=lambda size: min(size, 48)), r"stores of \[32, 48\] px"),
    ],
)
def test_parts_that_do_not_fit_are_refused(other: TrainingRows, message: str):
    with pytest.raises(ValueError, match=message):
        concatenated_rows(labelled(2), other)


def test_grey_and_coloured_images_are_not_mixed():
    grey = replace(labelled(2), gather=lambda rows, size: np.zeros((len(rows), size, size, 1), np.uint8))
    with pytest.raises(ValueError, match="same channels"):
        concatenated_rows(labelled(2), grey).gather(np.arange(4), 8)


def test_an_image_stays_on_its_device_only_where_all_parts_are_on_one():
    assert concatenated_rows(on_device(labelled(2)), unlabelled(2)).gather_tensor is None


def test_a_mixed_run_over_two_stores_tells_them_apart():
    one, two = labelled(6), unlabelled(9)
    options: dict[str, Any] = {"mix": FixedMix(0.6)}
    for batch in batches(concatenated_rows(one, two), 5, 6, **options):
        assert batch["is_labeled"].tolist() == (batch["id"] < 6).tolist()
        rows = np.concatenate([one.rows, two.rows])[batch["id"].numpy()]
        shade = rows % 100 + np.where(batch["is_labeled"].numpy(), 0, 100)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0].numpy(), shade)
        assert batch["target"][~batch["is_labeled"]].sum() == 0
        assert batch["target"][batch["is_labeled"]].sum(1).tolist() == [1.0] * 3


def test_joined_rows_can_be_joined_and_chosen_from_again():
    whole = concatenated_rows(concatenated_rows(labelled(3), unlabelled(2)), labelled(2))
    chosen = whole.subset(np.array([6, 4, 0]))
    assert chosen.rows.tolist() == [6, 4, 0]
    assert chosen.targets.tolist() == [1, -1, 0]
    shown = torch.cat([batch["image"] for batch in OrderedBatches(chosen, batch_size=2, size=4)]).numpy()
    np.testing.assert_array_equal(shown, whole.gather(np.array([6, 4, 0]), 4))


def test_joined_rows_of_stores_that_pickle_do_so_too():
    parts = [replace(part, source_size=None) for part in (labelled(3), unlabelled(2))]
    again = pickle.loads(pickle.dumps(concatenated_rows(*parts)))
    np.testing.assert_array_equal(again.gather(np.arange(5), 4), concatenated_rows(*parts).gather(np.arange(5), 4))
