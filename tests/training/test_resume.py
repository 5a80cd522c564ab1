"""A run that is killed anywhere and resumed ends with the very weights of the uninterrupted one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import numpy as np
import pytest
import torch

from etude.core.errors import EtudeError
from etude.models.classifier import Classifier
from etude.timeline import PRESETS, Pace
from etude.training.resume import Finished, ResumeFolder
from training.digits import KillAt, Killed, network, task, train

# Beside the presets: what they leave out.
OTHERS = {
    "plateaus": (
        "plateau",
        ["plateau.patience=0", "plateau.threshold=0.9", "plateau.reductions=1", "train.validate_every=2st"],
    ),
    "swa": ("default", ["train.swa=true", "train.ema=0"]),
    "cutmix": ("cyclic", ["augment.cutmix=1.0", "train.clip=0"]),
    "every step a checkpoint": ("one-cycle", ["train.checkpoint_every=0.0001s"]),
    "sgd": ("one-cycle", ["train.optimizer=sgd", "train.lr=0.1"]),
}
CASES = {name: (name, []) for name in PRESETS} | OTHERS
# Small images and a measured pace stand for five minutes here; two validations are too few for the preset's plateau.
SHORTER = {"five-minutes": ["timeline.length=2s"], "plateau": ["plateau.patience=0"]}


def made(name: str, folder: Path, **options: Any):
    recipe, settings = CASES[name]
    return task(folder, recipe, [*settings, *SHORTER.get(name, [])], pace=Pace(0.1, 20), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Classifier, Finished]]:
    """Return the uninterrupted run of a case, trained once."""
    known: dict[str, tuple[Classifier, Finished]] = {}

    def run(name: str) -> tuple[Classifier, Finished]:
        if name not in known:
            known[name] = train(made(name, tmp_path_factory.mktemp("whole")))
        return known[name]

    return run


def same_weights(one: Classifier, other: Classifier) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[key], others[key]) for key in mine)


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_killed_at_any_steps_ends_as_the_uninterrupted_one(name: str, whole, tmp_path: Path):
    model, done = whole(name)
    rng = np.random.default_rng([*name.encode()])
    kills = np.sort(rng.choice(np.arange(1, done.steps), size=6, replace=False))
    one = made(name, tmp_path)
    for number, step in enumerate(kills):
        # A step is later than the bar says where batches are smaller than at first, so a kill may come after the end.
        try:
            train(replace(one, resume=number > 0), KillAt(int(step), one.batch_size))
        except Killed:
            continue
    resumed, again = train(replace(one, resume=True))
    assert again.steps == done.steps
    assert again.timeline == done.timeline
    assert same_weights(resumed, model)
    assert without_seconds(again.history) == without_seconds(done.history)
    assert again.happened == done.happened


def test_the_cases_show_what_they_are_for(whole):
    """A plateau that never came would prove nothing."""
    assert {event.kind for event in whole("plateaus")[1].timeline.events} == {"scale", "end"}
    assert whole("plateaus")[1].steps < whole("plateau")[1].steps
    assert not same_weights(whole("default")[0], whole("swa")[0])
    assert not same_weights(whole("default")[0], network())


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole, tmp_path: Path):
    one = made("default", tmp_path)
    with pytest.raises(Killed):
        train(one, KillAt(2, one.batch_size))
    assert ResumeFolder(tmp_path).checkpoint is None
    assert same_weights(train(replace(one, resume=True))[0], whole("default")[0])


def test_a_finished_training_is_not_trained_again(whole, tmp_path: Path):
    one = made("default", tmp_path)
    train(one)
    resumed, done = train(replace(one, resume=True), KillAt(1, one.batch_size))
    assert same_weights(resumed, whole("default")[0])
    assert without_seconds(done.history) == without_seconds(whole("default")[1].history)


def test_a_run_killed_after_its_last_checkpoint_ends_with_the_average(whole, tmp_path: Path):
    """Lightning skips its hooks when no steps are left; the averaged weights must come out all the same."""
    one = made("every step a checkpoint", tmp_path)
    train(one)
    for name in ("finished.json", "finished.safetensors"):
        (tmp_path / "checkpoints" / name).unlink()
    assert same_weights(train(replace(one, resume=True))[0], whole("every step a checkpoint")[0])


def test_a_new_run_does_not_take_up_an_old_ones_state(whole, tmp_path: Path):
    one = made("default", tmp_path)
    train(made("cyclic", tmp_path))
    assert same_weights(train(one)[0], whole("default")[0])


def test_a_resumed_plan_in_minutes_keeps_the_pace_it_began_with(whole, tmp_path: Path):
    one = made("five-minutes", tmp_path)
    with pytest.raises(Killed):
        train(one, KillAt(15, one.batch_size))
    slower = replace(one, pace=Pace(0.3, 20), resume=True)
    resumed, done = train(slower)
    assert done.steps == whole("five-minutes")[1].steps
    assert same_weights(resumed, whole("five-minutes")[0])


def test_a_damaged_plan_is_told_in_one_sentence(tmp_path: Path):
    one = made("default", tmp_path)
    with pytest.raises(Killed):
        train(one, KillAt(12, one.batch_size))
    (tmp_path / "checkpoints" / "plan.json").write_text('{"steps": 3}')
    with pytest.raises(EtudeError, match=r"plan.json .*start the run anew"):
        train(replace(one, resume=True))


def test_a_checkpoint_that_cannot_be_written_costs_a_warning_only(whole, tmp_path: Path):
    one, warnings = made("default", tmp_path), []
    blocked = tmp_path / "checkpoints" / "last.ckpt"
    (blocked / "in the way").mkdir(parents=True)
    from etude.core.context import Context, Silent
    from etude.training.fit import fine_tune

    model = network()
    kept = shutil.rmtree
    try:
        shutil.rmtree = lambda *words, **more: None  # the folder in the way stays
        fine_tune(model, one, context=Context(Silent(), warnings.append))
    finally:
        shutil.rmtree = kept
    assert warnings
    assert "no checkpoint at step" in warnings[0]
    assert same_weights(model, whole("default")[0])
