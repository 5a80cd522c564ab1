"""Which arms an ablation trains, and which of them it compares."""

from __future__ import annotations

import pytest

from etude.core.errors import EtudeError
from etude.recipe import ImageFacts, load_recipe, resolve
from etude.recipe.tricks import tricks_named
from etude.study.ablation.design import ArmContrast, Design, design_of, modes_named

RECIPE = resolve(load_recipe("default"), ImageFacts(300, 3, count=1_000))


def design(names: list[str], mode: str) -> Design:
    return design_of(RECIPE, tricks_named(names, RECIPE), modes_named(mode))


def test_leave_one_out():
    made = design(["ema", "clip", "mixup"], "leave-one-out")
    assert made.arms == {
        "full": {"augment.mixup": 0.2},
        "without-ema": {"train.ema": 0.0, "augment.mixup": 0.2},
        "without-clip": {"train.clip": 0.0, "augment.mixup": 0.2},
        "without-mixup": {},
    }
    assert made.baselines == ("full",)
    assert made.contrasts[0] == ArmContrast("ema", "leave-one-out", without="without-ema", with_it="full")


def test_add_one_in():
    made = design(["ema", "mixup", "cutmix"], "add-one-in")
    assert made.arms == {
        "bare": {"train.ema": 0.0},
        "with-ema": {},
        "with-mixup": {"train.ema": 0.0, "augment.mixup": 0.2},
        "with-cutmix": {"train.ema": 0.0, "augment.cutmix": 1.0},
    }
    assert made.baselines == ("bare",)
    assert made.contrasts[1] == ArmContrast("mixup", "add-one-in", without="bare", with_it="with-mixup")


def test_both_train_no_recipe_twice():
    made = design(["ema", "clip"], "both")
    assert list(made.arms) == ["full", "bare", "without-ema", "without-clip"]
    assert len({repr(sorted(changes.items())) for changes in made.arms.values()}) == 4
    assert len(made.contrasts) == 4
    alone = next(one for one in made.contrasts if one.mode == "add-one-in" and one.trick == "ema")
    assert (alone.without, alone.with_it) == ("bare", "without-clip")  # all but clip is ema alone


def test_a_single_trick_is_one_comparison():
    made = design(["ema"], "both")
    assert list(made.arms) == ["full", "bare"]
    assert made.contrasts == (ArmContrast("ema", "leave-one-out", without="bare", with_it="full"),)


def test_timelines_exclude_each_other():
    with pytest.raises(EtudeError, match="'resize' shares a setting"):
        design(["resize", "one-cycle"], "leave-one-out")
    made = design(["resize", "one-cycle"], "add-one-in")
    assert list(made.arms.values()) == [
        {},
        {"timeline.preset": "progressive"},
        {"timeline.preset": "one-cycle"},
    ]


def test_other_modes_are_refused():
    with pytest.raises(EtudeError, match="Did you mean 'both'"):
        modes_named("boht")
