"""The recipe that an ablation ends with: what helped is in it, what hurt is not, and it can be read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.core.paired import Comparison, Scored, Verdict, compare
from etude.recipe import NAMED, ImageFacts, flat, load_recipe, resolve
from etude.study.ablation.ablate import best_changes, write_best, write_recipe
from etude.study.ablation.design import AblationMode, ArmContrast
from etude.study.ablation.runs import Found

RECIPE = resolve(load_recipe("default"), ImageFacts(300, 3, count=1_000))


def found(trick: str, verdict: Verdict, gain: float = 0.01, mode: AblationMode = "leave-one-out") -> Found:
    sign = {"helps": 1, "hurts": -1, "cannot tell": 0}[verdict]
    comparison = Comparison(sign * gain, 0.001, 4.0, 5, 800)
    return Found(ArmContrast(trick, mode, "without", "with"), comparison, 0.01, verdict, 3, 1.0, 100.0)


@pytest.mark.parametrize(
    ("seen", "changes"),
    [
        ([("mixup", "helps"), ("ema", "helps")], {"augment.mixup": 0.2}),  # ema is on already
        ([("ema", "hurts"), ("mixup", "hurts")], {"train.ema": 0.0}),  # mixup is off already
        ([("ema", "cannot tell"), ("mixup", "cannot tell")], {}),  # the recipe's word stands
    ],
)
def test_what_helped_is_in_and_what_hurt_is_out(seen: list[tuple[str, Verdict]], changes: dict[str, Any]):
    assert best_changes(RECIPE, [found(*one) for one in seen]) == (changes, [])


def test_arms_that_predict_alike_have_no_interval():
    """Nothing changed, so nothing is known of what might: neither an interval of width zero, nor a verdict."""
    alike = Scored(("a", "b"), np.ones(2))
    one = replace(found("ema", "cannot tell"), comparison=compare([alike] * 2, [alike] * 2))
    assert (one.interval, one.detectable, one.gain) == ("–", "–", "+0.00")
    told = one.as_dict()
    assert (told["low"], told["high"], told["detectable"], told["p"]) == (None, None, None, 1.0)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_two_modes_that_disagree_change_nothing():
    seen = [found("mixup", "helps"), found("mixup", "hurts", mode="add-one-in")]
    assert best_changes(RECIPE, seen) == ({}, [])
    seen = [found("mixup", "helps"), found("mixup", "cannot tell", mode="add-one-in")]
    assert best_changes(RECIPE, seen)[0] == {"augment.mixup": 0.2}


def test_of_two_that_exclude_each_other_the_better_is_taken():
    changes, told = best_changes(RECIPE, [found("resize", "helps", 0.01), found("one-cycle", "helps", 0.02)])
    assert changes == {"timeline.preset": "one-cycle"}
    assert told == ["resize helps too, but shares a setting with one-cycle, which weighs more"]


def test_what_helps_does_not_bring_back_what_hurts():
    changes, told = best_changes(RECIPE, [found("trivial", "helps", 0.01), found("augment", "hurts", 0.05)])
    assert changes == {"augment.policy": "none"}
    assert len(told) == 1


SETTINGS = [
    [],
    ["train.lr=0.00001", "train.swa=true", "timeline.warmup=3ep", "model.weights=none"],
    ["plateau.reductions=none", "timeline.length=none", "data.cache_limit=20GB"],
    ["head.inverse_regularization=[0.1, 1.0]", 'stages=["finetune"]', "train.find_lr=true", "predict.tta=1"],
]


@pytest.mark.each("settings", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.each("name", NAMED)
def test_a_written_recipe_reads_back_as_it_was(tmp_path: Path, name: str, settings: list[str]):
    recipe = load_recipe(name, settings)
    write_recipe(tmp_path / "again.toml", recipe, ["two\nlines"])
    again = load_recipe(str(tmp_path / "again.toml"))
    assert {**flat(again), "name": None} == {**flat(recipe), "name": None}
    facts = ImageFacts(28, 1, count=500)  # what was left open is decided as before
    assert {**flat(resolve(again, facts)), "name": None} == {**flat(resolve(recipe, facts)), "name": None}


def test_phases_of_ones_own_are_written_too(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(
        'base = "quick"\nstages = ["head", "finetune"]\n'
        '[[timeline.phases]]\nname = "the \\"first\\""\nlength = "1ep"\n'
        'lr = {curve = "linear", start = 0.0, end = 1.0}\nimage_size = 160\n'
        '[[timeline.phases]]\nname = "last"\nlength = 1.0\nlr = 1.0\naugment = 0.0\n',
        encoding="utf-8",
    )
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    write_recipe(tmp_path / "again.toml", recipe)
    assert flat(load_recipe(str(tmp_path / "again.toml"))) == {**flat(recipe), "name": "again"}


def test_verdicts_stand_above_the_settings(tmp_path: Path):
    path = tmp_path / "best.toml"
    made = write_best(path, "default", ["train.epochs=3"], {"augment.mixup": 0.2}, [found("mixup", "helps")])
    assert (made.augment.mixup, made.train.epochs) == (0.2, 3)
    assert flat(load_recipe(str(path))) == {**flat(made), "name": "best"}
    assert "# mixup: helps, +1.00 (+0.72 to +1.28), leave-one-out\n" in path.read_text(encoding="utf-8")
