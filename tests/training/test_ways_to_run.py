"""The same training in other ways: in parts, from a device's memory, in another layout, with a user's own transform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from etude.callbacks import Clock
from etude.core.context import Context, Silent
from etude.core.errors import EtudeError
from etude.models.classifier import Classifier
from etude.models.modes import Mode
from etude.recipe.timeline import resolved_run
from etude.training.batches import parts_of, step_batches
from etude.training.fit import fine_tune
from etude.training.resume import Finished
from training.digits import KillAt, Killed, network, rows, task, train

WHOLE = Mode("fp32", "channels_last", 1)
IN_PARTS = replace(WHOLE, micro_batch=4)
# Batch norm over a part differs from that over the batch, MixUp permutes within, Adam makes much of tiny differences.
SAME_IN_PARTS = ("train.batchnorm=keep", "augment.mixup=0", "train.ema=0", "train.optimizer=sgd", "train.lr=0.01")


def without_chance(folder: Path, mode: Mode) -> tuple[Classifier, Finished]:
    """Train without what a part draws anew: dropout."""
    model = network()
    model.dropout.p = 0.0
    one = replace(task(folder, "one-cycle", SAME_IN_PARTS), mode=mode)
    return model, fine_tune(model, one, context=Context(Silent(), print))


def largest_difference(one: Classifier, other: Classifier) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs)


def same(one: Classifier, other: Classifier) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one.parameters(), other.parameters(), strict=True))


def test_a_batch_in_parts_trains_as_the_whole_one(tmp_path: Path):
    whole, done = without_chance(tmp_path / "whole", WHOLE)
    parts, again = without_chance(tmp_path / "parts", IN_PARTS)
    assert (again.steps, len(again.history)) == (done.steps, len(done.history))
    assert not same(whole, parts)  # sums are taken in another order
    assert largest_difference(whole, parts) < 1e-3
    for mine, theirs in zip(done.history, again.history, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-3)


def test_a_run_in_parts_resumes_to_the_same_weights(tmp_path: Path):
    settings = ["train.checkpoint_every=0.0001s"]
    whole, done = train(replace(task(tmp_path / "whole", settings=settings), mode=IN_PARTS))
    one = replace(task(tmp_path / "killed", settings=settings), mode=IN_PARTS)
    for step in (3, 7, 12):
        with pytest.raises(Killed):
            train(replace(one, resume=step > 3), KillAt(step, one.batch_size))
    resumed, again = train(replace(one, resume=True))
    assert same(whole, resumed)
    assert again.steps == done.steps


def test_the_parts_follow_from_the_largest_batch(tmp_path: Path):
    one = task(tmp_path, "large-batch", ["train.batch_size=16", "timeline.batch_growth=4"])
    timeline, size = resolved_run(one.recipe, len(one.train.rows), one.pace)
    assert parts_of(one, timeline, size.steps) == 1
    assert parts_of(replace(one, mode=IN_PARTS), timeline, size.steps) == 16
    with pytest.raises(EtudeError, match=r"32 parts a step, and the smallest batch has 16: raise train.micro_batch"):
        parts_of(replace(one, mode=replace(WHOLE, micro_batch=2)), timeline, size.steps)


def test_images_in_a_devices_memory_train_as_those_on_disk(tmp_path: Path):
    data = rows(0, 160)
    near = replace(data, gather_tensor=lambda indices, size: torch.from_numpy(data.gather(indices, size)))
    disk, _ = train(replace(task(tmp_path / "disk"), train=data))
    device, _ = train(replace(task(tmp_path / "device"), train=near))
    assert largest_difference(disk, device) < 0.05  # warped pixels differ by a level or two


def test_the_layout_in_memory_changes_only_the_rounding(tmp_path: Path):
    last, _ = without_chance(tmp_path / "last", WHOLE)
    planes, _ = without_chance(tmp_path / "planes", replace(WHOLE, memory_format="contiguous"))
    assert largest_difference(last, planes) < 1e-3


def test_the_modes_threads_hold_while_training_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, seen = torch.get_num_threads(), []
    one = replace(task(tmp_path, settings=["train.epochs=0.3"]), mode=replace(WHOLE, threads=before + 1))
    gather = one.train.gather

    def counted(indices: np.ndarray, size: int) -> np.ndarray:
        seen.append(torch.get_num_threads())
        return gather(indices, size)

    train(replace(one, train=replace(one.train, gather=counted), valid=replace(one.train, gather=counted)))
    assert before + 1 in seen
    assert torch.get_num_threads() == before


def test_a_users_own_transform_comes_before_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_changes.py").write_text("def invert(image):\n    return 255 - image\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = task(tmp_path / "plain")
    own = task(tmp_path / "own", settings=['augment.transform="own_changes:invert"'])

    timeline, size = resolved_run(plain.recipe, len(plain.train.rows), plain.pace)
    images = {}
    for name, one in (("plain", plain), ("own", own)):
        batches = iter(step_batches(one, Clock(timeline, size.steps), size.steps // 2))
        images[name] = next(batches)["image"].numpy().astype(int)
    # Digits are white on black; each batch is then warped by draws of its own.
    assert images["plain"].mean() < 60 < 195 < images["own"].mean()


def test_a_transform_that_is_missing_is_told_before_training(tmp_path: Path):
    with pytest.raises(EtudeError, match="no_such_module"):
        train(task(tmp_path, settings=['augment.transform="no_such_module:change"']))
