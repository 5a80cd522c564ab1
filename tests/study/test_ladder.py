"""What of a recipe fits into a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.recipe import ImageFacts, flat, load_recipe, resolve
from etude.recipe.settings import changed
from etude.study.run.ladder import described, fitted
from etude.study.run.plan import Plan, Speed


def plan_of(name: str = "default", side: int = 300, **changes: float) -> Plan:
    """Return the plan of 1,250 images; a network infers 100 and trains 25 images a second."""
    recipe = resolve(load_recipe(name, {"model.others": ("auto",)}), ImageFacts(side, 3))
    speed = Speed(224, 0.01, 0.04)
    plan = Plan(
        recipe, 1250, 1000, 250, 100, decode=0.001, head_weights=10_000, features=speed,
        others=(("other", speed, 1_000),) if recipe.model.others else (),
        training=Speed(recipe.timeline.final_size, 0.01, 0.04) if "finetune" in recipe.stages else None,
    )  # fmt: skip
    return replace(plan, **changes)


def cost(plan: Plan) -> float:
    return sum(seconds for _, seconds in plan.seconds())


@pytest.mark.parametrize(("name", "side"), [("quick", 300), ("default", 300), ("best", 300), ("default", 28)])
@settings(max_examples=20)
@given(left=st.floats(1.0, 2_000.0))
def test_what_is_planned_fits_and_more_time_never_means_less(name: str, side: int, left: float):
    plan = plan_of(name, side)
    try:
        found = fitted(plan, left)
    except EtudeError:
        assert left < 150.0
        return
    assert cost(found) <= left or left < 150.0
    more = fitted(plan, 1.5 * left)
    assert cost(more) >= 0.99 * cost(found)
    assert set(found.recipe.stages) <= set(more.recipe.stages) or side == 28


def test_what_fits_whole_stays_as_it_is():
    plan = plan_of()
    assert fitted(plan, 2 * cost(plan)) is not plan
    assert fitted(plan, 2 * cost(plan)).recipe == plan.recipe
    assert described(plan.recipe, plan.recipe) == "all of the recipe"


def test_training_is_as_long_as_there_is_time_for():
    plan = plan_of()
    epochs = [fitted(plan, share * cost(plan)).recipe.train.epochs for share in (0.5, 0.7, 0.9, 1.2)]
    assert epochs == sorted(epochs)
    assert 1.0 < epochs[0] < epochs[2] < epochs[3] == 8
    found = fitted(plan, 0.7 * cost(plan))
    assert cost(found) == pytest.approx(0.9 * 0.7 * cost(plan), rel=0.02)


def test_without_time_to_train_there_is_the_head():
    plan = plan_of()
    found = fitted(plan, 45.0)
    assert (found.recipe.stages, found.training) == (("head",), None)
    assert "no fine-tune" in described(plan.recipe, found.recipe)
    smaller = fitted(plan, 17.0)
    assert smaller.recipe.model.feature_size < 224
    with pytest.raises(EtudeError, match="--sample"):
        fitted(replace(plan, labelled=12_500, train=10_000, valid=2_500), 17.0)


def test_small_images_rather_lose_the_head_than_their_training():
    assert fitted(plan_of(side=28), 300.0).recipe.stages == ("finetune",)


def test_one_long_training_goes_before_several_short_ones():
    plan = replace(plan_of(side=28), features=None, others=())
    several = replace(plan, recipe=changed(plan.recipe, {"train.networks": 3, "stages": ("finetune",)}))
    found = fitted(several, 0.5 * cost(several)).recipe.train
    assert (found.networks, found.epochs) == (1, plan.recipe.train.epochs)


@pytest.mark.parametrize("left", [0.0, 3.0, 8.0])
def test_less_time_than_the_least_takes_leaves_a_training_of_some_length(left: float):
    plan = replace(plan_of(side=28), others=(), features=None, training=Speed(28, 1e-4, 4e-4))
    plan = replace(plan, recipe=changed(plan.recipe, {"stages": ("finetune",)}), decode=0.01)
    assert fitted(plan, left).recipe.train.epochs > 0


def test_a_timeline_with_a_phase_of_fixed_length_is_shortened_as_far_as_it_goes():
    phases = [{"name": "warm", "length": "3ep", "lr": 1.0}, {"name": "fall", "length": 1.0, "lr": 0.5}]
    plan = plan_of()
    plan = replace(plan, recipe=changed(plan.recipe, {"timeline.phases": tuple(phases)}), others=())
    assert 3 < fitted(plan, 0.8 * cost(plan)).recipe.train.epochs < 8


def test_what_was_set_by_hand_stays():
    plan = plan_of()
    with pytest.raises(EtudeError):
        fitted(plan, 60.0, pinned=["train.epochs", "stages", "model.feature_size"])
    views = fitted(plan, 45.0, pinned=["predict.tta"]).recipe.predict.tta
    assert views == plan.recipe.predict.tta


def test_a_length_in_minutes_is_shortened_too():
    recipe = resolve(load_recipe("five-minutes"), ImageFacts(300, 3))
    plan = replace(plan_of(), recipe=recipe, others=())
    found = fitted(plan, 200.0)
    assert cost(found) <= 200.0
    assert flat(found.recipe)["timeline.length"] != "5m"
    assert "5m" in described(recipe, found.recipe)
