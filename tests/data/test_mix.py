"""Fixed mixes: exact shares, no image neglected, the same on every machine and after a break."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from data.loading import Step, batches, ids, mixed_rows, parts, training_rows
from etude.core.errors import EtudeError
from etude.data.batches import TrainingRows
from etude.data.order import FixedMix, FixedMixSampler, epoch_images, evenly, labelled_images

SHARES = st.floats(0.01, 0.99)


def labelled_ids(data: TrainingRows) -> list[int]:
    assert data.labelled is not None
    return sorted(data.rows[data.labelled].tolist())


def streams(made: list[Any]) -> tuple[list[int], list[int]]:
    """Ids of the labelled and of the unlabelled images, in the order in which they came."""
    known = [number for batch in made for number in batch["id"][batch["is_labeled"]].tolist()]
    return known, [number for batch in made for number in batch["id"][~batch["is_labeled"]].tolist()]


@pytest.mark.each(
    ("images", "share", "labelled"),
    [
        (64, 0.7, 45),
        (32, 0.7, 22),
        (5, 0.7, 4),
        (50, 0.29, 15),
        (15, 0.7, 11),
        (2, 0.01, 1),
        (4, 0.99, 3),
        (9, 1.0, 9),
        (9, 0.0, 0),
        (0, 0.7, 0),
        (1, 1.0, 1),
    ],
)
def test_halves_are_rounded_up_and_both_kinds_stay(images: int, share: float, labelled: int):
    assert labelled_images(images, share) == labelled


@given(st.integers(2, 500), SHARES)
def test_the_share_is_as_near_as_whole_images_allow(images: int, share: float):
    labelled = labelled_images(images, share)
    assert 1 <= labelled <= images - 1
    assert abs(labelled - share * images) <= max(0.5, 1 - share * images, 1 - (1 - share) * images) + 1e-9


@pytest.mark.parametrize("share", [-0.1, 1.5, 70, math.nan])
def test_a_share_beyond_the_whole_is_refused(share: float):
    for refused in (lambda: labelled_images(8, share), lambda: epoch_images(5, 5, share), lambda: FixedMix(share)):
        with pytest.raises(EtudeError, match="from 0 to 1, such as 0.7"):
            refused()


def test_a_batch_of_one_image_cannot_be_mixed():
    with pytest.raises(EtudeError, match="a batch of 1 image cannot hold labelled and unlabelled ones"):
        labelled_images(1, 0.7)


def test_an_epoch_lasts_until_the_longer_stream_has_been_seen():
    assert epoch_images(70, 1, 0.7) == 100  # exactly: floating point would say 101
    assert epoch_images(71, 1, 0.7) == 102
    assert epoch_images(100, 300, 0.7) == 1000
    assert epoch_images(100, 0, 1.0) == 100
    with pytest.raises(EtudeError, match="asks for unlabelled images, and there are none: give some, or .* 1$"):
        epoch_images(100, 0, 0.7)
    with pytest.raises(EtudeError, match="asks for labelled images, and there are none: give some, or .* 0$"):
        epoch_images(0, 100, 0.7)


@given(st.integers(0, 60), st.integers(0, 60))
def test_any_places_in_a_row_hold_their_share(count: int, more: int):
    total = count + more
    placed = np.concatenate([[0], np.cumsum(evenly(count, total))])
    assert placed[-1] == count
    for start in range(total):
        for stop in range(start + 1, total + 1):
            assert abs((placed[stop] - placed[start]) - (stop - start) * count / total) < 1


@given(st.integers(1, 30), st.integers(1, 30), st.integers(2, 20), SHARES, st.booleans(), st.integers(0, 9))
def test_every_batch_has_its_exact_share(labelled, unlabelled, batch_size, share, balanced, seed):
    data, mix = mixed_rows(labelled, unlabelled), FixedMix(share, balanced)
    size = min(batch_size, len(data))
    made = list(batches(data, batch_size, 6, seed, mix=mix))
    for batch in made:
        assert len(batch["id"]) == size
        assert int(batch["is_labeled"].sum()) == labelled_images(size, share)
        told = [number in labelled_ids(data) for number in batch["id"].tolist()]
        assert told == batch["is_labeled"].tolist()


@given(st.integers(1, 25), st.integers(1, 25), st.integers(2, 12), SHARES)
def test_each_stream_is_seen_whole_before_any_of_it_comes_again(labelled, unlabelled, batch_size, share):
    data = mixed_rows(labelled, unlabelled)
    known, others = streams(list(batches(data, batch_size, 40, mix=FixedMix(share))))
    for stream, everything in (known, labelled_ids(data)), (others, sorted({*data.rows} - {*labelled_ids(data)})):
        rounds = [stream[start : start + len(everything)] for start in range(0, len(stream), len(everything))]
        assert all(sorted(one) == everything for one in rounds[:-1])
        assert len(set(rounds[-1])) == len(rounds[-1])


def test_the_streams_are_shuffled_anew_and_each_on_its_own():
    data = mixed_rows(20, 20)
    known, others = streams(list(batches(data, 10, 12, mix=FixedMix(0.5))))
    places = [np.searchsorted(np.sort(stream[:20]), stream[:20]).tolist() for stream in (known, others)]
    assert places[0] != places[1]
    for stream in (known, others):
        assert len({tuple(stream[start : start + 20]) for start in (0, 20, 40)}) == 3
    assert streams(list(batches(data, 10, 12, 1, mix=FixedMix(0.5))))[0] != known


def test_which_labelled_image_comes_is_independent_of_the_unlabelled_ones():
    """One stream must not lead the other: the labelled order is the same however many unlabelled images there are."""
    data = mixed_rows(12, 30)
    fewer = data.subset(np.flatnonzero(data.labelled | (np.arange(42) % 2 == 0)))
    known, _ = streams(list(batches(data, 6, 20, mix=FixedMix(0.5))))
    assert streams(list(batches(fewer, 6, 20, mix=FixedMix(0.5))))[0] == known


@given(st.integers(2, 30), st.integers(0, 5))
def test_balanced_labels_come_class_by_class_in_turns(common: int, seed: int):
    classes = np.array([0] * 2 + [1] * common + [2] + [-1] * 9)
    data = replace(training_rows(len(classes)), targets=classes, num_classes=4, labelled=classes >= 0)
    class_of = dict(zip(data.rows.tolist(), classes.tolist(), strict=True))
    known, _ = streams(list(batches(data, 6, common + 2, seed, mix=FixedMix(0.5, balanced=True))))
    turns = [[class_of[number] for number in known[start : start + 3]] for start in range(0, len(known), 3)]
    assert all(sorted(turn) == [0, 1, 2] for turn in turns)
    common_ids = [number for number in known if class_of[number] == 1]
    assert sorted(common_ids[:common]) == sorted(data.rows[classes == 1].tolist())  # none twice before all came


def test_the_order_of_turns_changes():
    data = replace(training_rows(12), targets=np.arange(12) % 3, num_classes=3, labelled=np.arange(12) < 9)
    class_of = dict(zip(data.rows.tolist(), (np.arange(12) % 3).tolist(), strict=True))
    known, _ = streams(list(batches(data, 4, 40, mix=FixedMix(0.75, balanced=True))))
    assert len({tuple(class_of[number] for number in known[start : start + 3]) for start in range(0, 120, 3)}) == 6


def test_balance_follows_dense_targets_too():
    data = mixed_rows(12, 12)
    dense = replace(data, targets=data.dense_targets(np.arange(24)), num_classes=None)
    mix = FixedMix(0.5, balanced=True)
    assert parts(batches(dense, 6, 10, mix=mix)) == parts(batches(data, 6, 10, mix=mix))


@given(st.integers(0, 12), st.integers(1, 5), st.booleans())
def test_a_resumed_mix_goes_on_with_the_batches_of_the_uninterrupted_one(start: int, prefetch: int, balanced: bool):
    sizes = [3, 3, 5, 2, 8, 2, 2, 7, 4, 4, 9, 6]
    plan, mix = [Step(batch_size=size) for size in sizes], FixedMix(0.6, balanced)
    whole = parts(batches(mixed_rows(7, 5), 4, 12, plan=plan.__getitem__, mix=mix))
    assert [len(part) for part in whole] == sizes
    resumed = batches(mixed_rows(7, 5), 4, 12, plan=plan.__getitem__, mix=mix, start=start, prefetch=prefetch)
    assert parts(resumed) == whole[start:]


def test_a_fixed_batch_asks_the_plan_for_no_earlier_step():
    asked: list[int] = []

    def plan(step: int) -> Step:
        asked.append(step)
        return Step()

    options: dict[str, Any] = {"mix": FixedMix(0.6), "plan": plan}
    known = parts(batches(mixed_rows(7, 5), 5, 9, **options))
    asked.clear()
    assert parts(batches(mixed_rows(7, 5), 5, 9, start=6, fixed_batch=True, **options)) == known[6:]
    assert min(asked) == 6


def test_a_changed_plan_drops_batches_of_the_old_one_and_loses_no_image():
    changed = [False]

    def plan(step: int) -> Step:
        return Step(12, 0.5, 4) if changed[0] and step > 3 else Step(8, 0.0, 10)

    made = []
    for step, batch in enumerate(batches(mixed_rows(11, 9), 10, 9, plan=plan, mix=FixedMix(0.5), prefetch=4)):
        made.append(batch)
        changed[0] = changed[0] or step == 3
    assert [len(batch["id"]) for batch in made] == [10] * 4 + [4] * 5
    known = list(batches(mixed_rows(11, 9), 10, 9, plan=plan, mix=FixedMix(0.5)))
    assert streams(made) == streams(known)


@given(st.integers(2, 4), st.integers(8, 17), st.integers(4, 20), st.integers(4, 20))
def test_processes_have_exact_shares_and_no_image_in_common(processes, batch_size, labelled, unlabelled):
    data, mix = mixed_rows(labelled, unlabelled), FixedMix(0.7)
    size = min(batch_size, len(data))
    shares = [list(batches(data, batch_size, 6, mix=mix, part=(rank, processes))) for rank in range(processes)]
    for rank, own in enumerate(shares):
        for batch in own:
            assert len(batch["id"]) == len(range(rank, size, processes))
            assert int(batch["is_labeled"].sum()) == labelled_images(len(batch["id"]), 0.7)
    stepwise = [share[step] for step in range(6) for share in shares]
    for stream, everything in zip(streams(stepwise), (labelled, unlabelled), strict=True):
        for start in range(0, len(stream) - everything + 1, everything):
            assert len(set(stream[start : start + everything])) == everything


@pytest.mark.parametrize("split", [2, 3])
def test_the_parts_of_a_step_have_the_share_within_one_image(split: int):
    for batch in batches(mixed_rows(40, 20), 20, 4, mix=FixedMix(0.7), parts=split):
        assert abs(int(batch["is_labeled"].sum()) - 0.7 * len(batch["id"])) < 1


def test_a_mix_of_one_kind_only_is_refused_at_once():
    with pytest.raises(EtudeError, match="a share of 0.7 .* asks for unlabelled images, and there are none"):
        batches(training_rows(8), mix=FixedMix(0.7))


def test_a_share_of_one_needs_no_unlabelled_images():
    data = training_rows(8)
    assert sorted(ids(batches(data, 4, 2, mix=FixedMix(1.0)))) == sorted(data.rows.tolist())


def sampler(labelled: int = 10, unlabelled: int = 20, batch_size: int = 6, **options: Any) -> FixedMixSampler:
    return FixedMixSampler(np.arange(labelled + unlabelled) < labelled, batch_size, **options)


def test_a_data_loader_gets_exact_batches_until_the_longer_stream_is_seen():
    dataset = TensorDataset(torch.arange(30))
    made = [batch.tolist() for (batch,) in DataLoader(dataset, batch_sampler=sampler(labelled_share=0.5))]
    assert len(made) == len(sampler(labelled_share=0.5)) == 7  # 20 images, 3 a batch
    assert all(sum(number < 10 for number in batch) == 3 for batch in made)
    assert {number for batch in made for number in batch} == set(range(30))


def test_epochs_of_a_sampler_follow_each_other_without_a_gap():
    one = sampler(labelled_share=0.5)
    drawn = [number for _ in range(20) for batch in one for number in batch if number >= 10]
    assert len(drawn) == 420
    assert all(len(set(drawn[start : start + 20])) == 20 for start in range(0, 420, 20))


def test_a_sampler_repeats_an_epoch_that_is_set_again():
    one = sampler()
    first, second = list(one), list(one)
    assert first != second
    one.set_epoch(0)
    assert list(one) == first
    one.set_epoch(1)
    assert list(one) == second
    assert list(sampler(seed=1)) != first


@pytest.mark.parametrize("taken", [0, 1, 4])
@pytest.mark.parametrize("told", [True, False])
def test_a_sampler_goes_on_where_its_state_says(taken: int, told: bool):
    whole, one, other = sampler(), sampler(), sampler()
    known = [list(whole) for _ in range(3)]
    passing = iter(one), iter(one)
    list(passing[0])
    assert [next(passing[1]) for _ in range(taken)] == known[1][:taken]
    other.load_state_dict(one.state_dict())
    if told:  # as Lightning does before each epoch, also before the one that it takes up again
        other.set_epoch(1)
    assert list(other) == known[1][taken:]
    assert list(other) == known[2]


def test_the_state_behind_an_epochs_end_is_the_next_epochs_start():
    one = sampler()
    list(one)
    assert one.state_dict() == {"epoch": 1, "batch": 0}


def test_a_pass_that_ends_early_is_followed_by_the_next_epoch():
    one, whole = sampler(), sampler()
    known = [list(whole), list(whole)]
    assert next(iter(one)) == known[0][0]
    assert list(one) == known[1]


def test_samplers_of_several_processes_share_each_step():
    """Two processes of 6 images take 8 of 10 labelled ones a step: none twice, and each batch has its share."""
    shares = [sampler(10, 20, labelled_share=0.7, rank=rank, processes=2) for rank in range(2)]
    assert len(shares[0]) == 5  # 20 unlabelled images, 2 a batch and process
    for batches_ in zip(*shares, strict=True):
        assert [sum(number < 10 for number in batch) for batch in batches_] == [4, 4]
        assert len({number for batch in batches_ for number in batch if number >= 10}) == 4
    assert {number for share in shares for batch in share for number in batch} == set(range(30))


def test_a_balanced_sampler_takes_any_labels():
    names = ["cat"] * 8 + ["dog"] * 2 + [""] * 20
    for batch in sampler(labelled_share=0.7, balanced_labels=names):
        assert [names[number] for number in batch].count("dog") == 2


def test_a_sampler_refuses_at_once_what_cannot_be():
    with pytest.raises(EtudeError, match="asks for unlabelled images"):
        sampler(unlabelled=0)
    with pytest.raises(EtudeError, match="batch_size is 0"):
        sampler(batch_size=0)
    with pytest.raises(EtudeError, match="a batch of 1 image"):
        sampler(batch_size=1)


def test_lightning_tells_the_sampler_its_epoch():
    one, seen = sampler(), []

    class Watching(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            seen.append(batch[0].tolist())
            return self.layer(batch[0].float()[:, None]).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    known = [*one, *one]
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Watching(), DataLoader(TensorDataset(torch.arange(30)), batch_sampler=one))
    assert seen == known
