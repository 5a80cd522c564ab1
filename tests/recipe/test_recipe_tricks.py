"""The list of tricks: each can be had and left out, and says where it makes no difference."""

from __future__ import annotations

import json

import pytest

from etude.core.errors import EtudeError
from etude.recipe import ImageFacts, Recipe, load_recipe, resolve
from etude.recipe.tricks import TRICKS, Trick, changed, switched, tricks_named, tricks_of

PHOTOS = ImageFacts(median_side=300, channels=3, count=1_000)
DIGITS = ImageFacts(median_side=28, channels=1, count=1_000)
EACH = pytest.mark.each("trick", TRICKS.values(), ids=TRICKS.keys())


def recipe_of(name: str = "default", *settings: str, facts: ImageFacts = PHOTOS) -> Recipe:
    return resolve(load_recipe(name, settings), facts)


def words(changes: dict[str, object]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


@EACH
@pytest.mark.each("facts", [PHOTOS, DIGITS], ids=["photos", "digits"])
def test_every_trick_can_be_had_and_left_out(trick: Trick, facts: ImageFacts):
    """The changes are settings that the recipe accepts, and after them the trick is as was asked."""
    recipe = recipe_of(facts=facts)
    for on in (True, False):
        made = resolve(load_recipe("default", words(trick.changes(recipe, on))), facts)
        assert trick.is_on(made) is on
        assert trick.changes(made, on) == {}
        back = trick.changes(made, not on)
        assert trick.is_on(changed(made, back)) is not on


@EACH
def test_a_trick_is_told_in_a_line(trick: Trick):
    assert trick.name == trick.name.lower().replace(" ", "-")
    assert len(trick.name) <= 18  # a table of 80 columns holds it
    assert len(trick.what) < 90
    assert trick.on.keys() >= {key for key in trick.off if trick.is_choice}


def test_a_recipe_has_the_tricks_that_its_settings_say():
    photos = {trick.name for trick in tricks_of(recipe_of())}
    assert {"warmup", "augment", "dropout", "clip", "ema", "layer-decay", "freeze", "tta", "head"} <= photos
    assert not photos & {"mixup", "cutmix", "swa", "resize", "one-cycle", "fade"}
    assert {trick.name for trick in tricks_of(recipe_of("progressive"))} - photos == {"resize"}
    digits = {trick.name for trick in tricks_of(recipe_of(facts=DIGITS))}
    assert not digits & {"dropout", "layer-decay", "freeze"}  # the small network has none of them
    swa = {trick.name for trick in tricks_of(recipe_of("default", "train.swa=true"))}
    assert "swa" in swa
    assert "ema" not in swa


def test_a_trick_by_hand_is_left_at_its_value():
    recipe = recipe_of("default", "augment.mixup=0.7")
    assert TRICKS["mixup"].changes(recipe, on=True) == {}
    assert TRICKS["mixup"].changes(recipe, on=False) == {"augment.mixup": 0.0}


@pytest.mark.parametrize(("name", "idle"), [("quick", "ema"), ("cyclic", "warmup"), ("quick", "resize")])
def test_what_changes_nothing_is_refused(name: str, idle: str):
    recipe = recipe_of(name)
    assert idle not in {trick.name for trick in tricks_of(recipe)}
    with pytest.raises(EtudeError, match=f"the same with and without '{idle}'"):
        tricks_named([idle], recipe)


def test_phases_of_ones_own_have_no_use_for_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[timeline.phases]]\nname = "all"\nlength = 1.0\nlr = 1.0\naugment = 0.0\n', encoding="utf-8")
    recipe = resolve(load_recipe(str(path)), PHOTOS)
    assert TRICKS["one-cycle"].is_idle(recipe)
    assert not TRICKS["mixup"].is_idle(recipe)


@pytest.mark.parametrize(
    ("names", "told"),
    [(["mixupp"], "Did you mean 'mixup'"), ([], "names no trick"), ([" ", ""], "names no trick")],
)
def test_other_names_are_refused(names: list[str], told: str):
    with pytest.raises(EtudeError, match=told):
        tricks_named(names, recipe_of())


def test_one_average_or_the_other():
    """EMA and SWA share the weights: either can be on, not both."""
    recipe = recipe_of()
    tricks = tricks_named(["ema", "swa"], recipe)
    assert switched(recipe, tricks, on=set()) == {"train.ema": 0.0}
    assert switched(recipe, tricks, on={"swa"}) == {"train.ema": 0.0, "train.swa": True}
    assert switched(recipe, tricks, on={"ema"}) == {}
    with pytest.raises(EtudeError, match="--mode add-one-in"):
        switched(recipe, tricks, on={"ema", "swa"})


def test_leaving_out_what_was_put_in_gives_the_recipe_back():
    """SWA switches EMA off; a recipe without SWA has its EMA again."""
    recipe = recipe_of()
    tricks = tricks_named(["swa", "mixup"], recipe)
    assert switched(recipe, tricks, on={"mixup"}) == {"augment.mixup": 0.2}
    assert switched(recipe, tricks, on=set()) == {}
