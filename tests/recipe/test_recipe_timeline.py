"""From a recipe to its timeline and its steps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.recipe import (
    NAMED,
    ImageFacts,
    Recipe,
    load_recipe,
    needs_pace,
    nominal_timeline,
    resolve,
    resolved_run,
    timeline_of,
    timeline_warnings,
)
from etude.timeline import PRESETS, Pace, Timeline, timeline_from_tree, timeline_to_tree

PACE = Pace(0.1, size=224)
TRAINED = [name for name in NAMED if name != "quick"]


def recipe_of(*phases: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    sections["timeline"] = {**sections.get("timeline", {}), "phases": phases}
    return Recipe.model_validate({"name": "mine", **sections})


def longest_jump(values: list[float]) -> float:
    return max(abs(after - before) for before, after in itertools.pairwise(values))


def steps_of(recipe: Recipe, images: int, pace: Pace | None = None) -> int:
    return resolved_run(recipe, images, pace)[1].steps


@pytest.mark.each("name", TRAINED)
@pytest.mark.each("facts", [ImageFacts(28, 1), ImageFacts(300, 3)])
def test_every_named_recipe_makes_a_timeline_on_any_images(name: str, facts: ImageFacts):
    recipe = resolve(load_recipe(name), facts)
    timeline, size = resolved_run(recipe, 4_000, PACE)
    steps = size.steps
    moments = [timeline.at(step / 2_000) for step in range(2_001)]
    base = recipe.timeline.base_batch_size or recipe.train.batch_size
    peak = max(moment.lr for moment in moments)
    reached = 0.2 + 0.8 * 0.1**0.125 if name == "cyclic-exp" else 1.0  # its first peak comes after 1/8 of the decay
    assert math.isclose(peak, reached * recipe.train.lr * recipe.train.batch_size / base, rel_tol=0.01)
    assert moments[-1].augment == 0
    assert moments[-1].image_size == recipe.timeline.final_size
    assert not moments[-1].mixup
    assert longest_jump([moment.lr for moment in moments]) < 0.1 * peak
    assert timeline.phases[-1].name == "finish"
    assert steps >= 1
    for_photographs = name in ("fine-grained", "vgg19-baseline")
    assert bool(timeline_warnings(recipe, facts.median_side, timeline)) == (for_photographs and facts.median_side == 28)


@pytest.mark.each("name", TRAINED)
def test_a_timeline_survives_its_file(name: str):
    timeline = nominal_timeline(load_recipe(name, ["augment.mixup=0.2"]))
    assert timeline_from_tree(timeline_to_tree(timeline)) == timeline


def test_settings_reach_the_timeline():
    recipe = load_recipe(
        "default",
        [
            "timeline.start_size=96",
            "timeline.final_size=160",
            "timeline.warmup=0.25",
            "timeline.finish=0.5",
            "train.lr=2",
        ],
    )
    timeline = timeline_of(recipe)
    assert timeline.spans() == (("warmup", 0.0, 0.25), ("grow", 0.25, 0.5), ("finish", 0.5, 1.0))
    assert (timeline.at(0.25).lr, timeline.at(0.0).image_size, timeline.at(0.6).image_size) == (2.0, 96, 160)
    assert timeline.at(0.6).augment == 0.0
    fading = timeline_of(load_recipe("default", ["timeline.fade=true"]))
    assert 0.0 < fading.at(0.9).augment < 0.6
    assert fading.at(1.0).augment == 0.0


@pytest.mark.parametrize(
    ("changes", "start", "final"),
    [
        ([], 224, 224),
        (["timeline.final_size=128"], 128, 128),
        (["timeline.start_size=288"], 288, 288),
        (["timeline.start_size=128"], 128, 224),
    ],
)
def test_a_size_left_at_its_default_gives_way_to_the_one_given(changes: list[str], start: int, final: int):
    recipe = load_recipe("default", changes)
    for timeline in (timeline_of(recipe), timeline_of(resolve(recipe, ImageFacts(300, 3)))):
        assert (timeline.at(0.0).image_size, timeline.at(1.0).image_size) == (start, final)


def test_plateaus_take_their_settings():
    def plateau_of(*changes: str):
        (found,) = [phase.plateau for phase in timeline_of(load_recipe("plateau", changes)).phases if phase.plateau]
        return found

    assert (plateau_of().metric, plateau_of().mode, plateau_of().reductions) == ("valid_loss", "min", 2)
    changed = plateau_of("plateau.metric=valid_accuracy", "plateau.patience=5", "plateau.reductions=none")
    assert (changed.metric, changed.mode, changed.patience, changed.reductions) == ("valid_accuracy", "max", 5, None)


@pytest.mark.each("name", PRESETS)
def test_mixing_is_scheduled_when_it_is_on_and_ends_before_the_finish(name: str):
    assert {"mixup", "cutmix"}.isdisjoint(nominal_timeline(load_recipe(name)).quantities())
    timeline = nominal_timeline(load_recipe(name, ["augment.mixup=0.3"]))
    assert "cutmix" not in timeline.quantities()
    finish = timeline.spans()[-1][1]
    assert {timeline.at(k / 100).mixup for k in range(101) if k / 100 < finish - 0.01} == {0.3}
    assert {timeline.at(k / 100).mixup for k in range(101) if k / 100 > finish} == {0.0}


def test_own_phases_count_lr_in_multiples_and_are_filled_up_with_the_recipe():
    recipe = recipe_of(
        {"name": "up", "length": 0.5, "lr": {"curve": "linear", "start": 0, "end": 1}, "momentum": 0.95},
        {"name": "down", "length": 0.5, "dropout": 0.5},
        train={"lr": 0.02, "momentum": 0.8, "dropout": 0.1},
        augment={"mixup": 0.4},
        timeline={"final_size": 96},
    )
    timeline = timeline_of(recipe)
    assert math.isclose(timeline.at(0.25).lr, 0.01)
    first, last = timeline.at(0.25), timeline.at(1.0)
    assert (last.lr, last.momentum, first.dropout, last.dropout) == (0.02, 0.8, 0.1, 0.5)
    assert (first.image_size, first.augment, first.mixup, first.cutmix) == (96, 1.0, 0.4, None)
    assert timeline.quantities() == ("lr", "momentum", "image_size", "augment", "mixup", "dropout")


@given(epochs=st.floats(0.1, 50), images=st.integers(1, 20_000), batch=st.integers(1, 512))
def test_steps_see_every_image_as_often_as_asked(epochs: float, images: int, batch: int):
    recipe = Recipe.model_validate({"train": {"epochs": epochs, "batch_size": batch}})
    _, size = resolved_run(recipe, images)
    assert size.epoch_steps == images / min(batch, images)
    assert size.steps == max(1, round(epochs * images / min(batch, images)))


@pytest.mark.each(
    ("changes", "steps"),
    [
        (["timeline.length=77st"], 77),
        (["timeline.length=3ep"], 96),
        (["timeline.length=60s", "timeline.preset=default"], 600),  # 0.1 s a step at 224 px throughout
        (["timeline.phases=[{name='a', length='3ep'}, {name='b', length='10st'}]"], 106),
        (["timeline.phases=[{name='a', length='1m', image_size=224}]"], 600),
        (["timeline.phases=[{name='a', length='1m', image_size=112}]", "timeline.size_multiple=16"], 2_400),
        (["timeline.phases=[{name='a', length='3ep'}, {name='b', length=1.0}]"], 256),
        (["timeline.preset=five-minutes", "timeline.warmup=500st", "timeline.length=600st"], 600),
    ],
)  # fmt: skip
def test_the_length_of_the_run(changes: list[str], steps: int):
    assert steps_of(load_recipe("default", changes), 1_024, PACE) == steps


def test_minutes_are_kept_though_sizes_grow():
    timeline, size = resolved_run(load_recipe("five-minutes"), 5_000, PACE)
    steps = size.steps
    seconds = sum(PACE.at(moment.image_size) for moment in timeline.moments(steps))
    assert abs(seconds - 300) < 3
    assert steps > 1.5 * 300 / PACE.seconds


@settings(max_examples=20)
@given(growth=st.floats(0.25, 8), warmup=st.sampled_from([0.1, "1ep", "20st"]))
def test_a_growing_batch_takes_fewer_steps_over_as_many_images(growth: float, warmup: float | str):
    recipe = Recipe.model_validate(
        {"train": {"batch_size": 40, "epochs": 6}, "timeline": {"batch_growth": growth, "warmup": warmup}}
    )
    timeline, size = resolved_run(recipe, 4_000)
    steps = size.steps
    sizes = [moment.batch_size or 40 for moment in timeline.moments(steps)]
    assert abs(sum(sizes) / (6 * 4_000) - 1) < 0.02
    assert sizes[0] == 40
    assert sizes[-1] == math.floor(40 * growth + 0.5)
    assert math.isclose(size.epoch_steps or 0, 4_000 * steps / sum(sizes), rel_tol=0.02)


def test_batches_never_hold_more_than_there_is():
    recipe = load_recipe("default", ["timeline.batch_growth=64", "train.epochs=10"])
    assert steps_of(recipe, 10) == 10
    assert steps_of(load_recipe("large-batch", ["train.epochs=10"]), 50) == 10


def test_the_learning_rate_follows_the_batch_where_asked():
    growing = ["timeline.batch_growth=4", "timeline.batch_scaling=linear"]
    scaled, plain = (timeline_of(load_recipe("default", changes)) for changes in (growing, growing[:1]))
    assert math.isclose(scaled.at(0.05).lr, plain.at(0.05).lr)
    assert math.isclose(scaled.at(0.9).lr, 4 * plain.at(0.9).lr)
    large = load_recipe("large-batch", ["train.batch_size=256"])
    assert math.isclose(max(m.lr for m in timeline_of(large).moments(10_000)), large.train.lr * 256 / 32, rel_tol=1e-3)


@pytest.mark.each(
    ("changes", "needed"),
    [
        ([], False),
        (["timeline.warmup=3ep", "timeline.finish=50st"], False),
        (["timeline.finish=30s"], True),
        (["timeline.length=5m"], True),
        (["timeline.length=5m", 'stages=["head"]'], False),
        (["train.validate_every=30s"], True),
        (["timeline.preset=cyclic", "timeline.cycle=1m"], True),
        (["timeline.phases=[{name='5m', length=1.0}]"], False),
        (["timeline.phases=[{name='a', length=1.0, lr={curve='warmup', length='9s', after=1}}]"], True),
    ],
)  # fmt: skip
def test_time_is_measured_only_where_something_counts_in_it(changes: list[str], needed: bool):
    recipe = load_recipe("default", changes)
    assert needs_pace(recipe) == needed
    if needed:
        with pytest.raises(EtudeError, match="recipe 'default' counts in minutes or seconds, .*; give a pace"):
            steps_of(recipe, 1_000_000)
    assert steps_of(recipe, 1_000_000, PACE) > 100


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["timeline.warmup=500st", "train.epochs=1"],
         r"500st take 500 of 31 steps and leave nothing .* \(the run's length is train.epochs=1\)"),
        (["timeline.finish=9ep", "timeline.length=3ep"], r"\(the run's length is timeline.length=3ep\)"),
        (["timeline.phases=[{name='a', length='3ep'}]", "timeline.length=500st"], r"timeline.length=500st\)"),
        (["timeline.phases=[{name='a', length=1.0, image_size=4000}]"],
         "recipe 'default' takes images from 4,000 to 4,000 px; give sizes from 8 to 2,048"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_run_is_told_in_one_sentence(changes: list[str], sentence: str):
    with pytest.raises(EtudeError, match=sentence) as refused:
        resolved_run(load_recipe("default", changes), 1_000)
    assert str(refused.value).startswith("recipe 'default'")
    assert "\n" not in str(refused.value)


def test_a_length_that_the_preset_has_no_use_for_takes_no_time():
    assert steps_of(load_recipe("cyclic", ["timeline.warmup=90s"]), 1_000) == 250


def test_a_run_needs_images():
    with pytest.raises(ValueError, match="at least 1 training image, got 0"):
        steps_of(Recipe(), 0)


@pytest.mark.parametrize("changes", [[], ["timeline.warmup=5000st"], ["timeline.phases=[{name='a', length='3ep'}]"]])
def test_a_timeline_is_shown_without_images(changes: list[str]):
    timeline = nominal_timeline(load_recipe("default", changes))
    assert timeline.is_resolved


def test_what_fits_no_run_is_refused_without_images_too():
    with pytest.raises(EtudeError, match="leave nothing for the shares"):
        nominal_timeline(load_recipe("default", ["timeline.warmup=9ep"]))


def own(**last: Any) -> Recipe:
    return recipe_of({"name": "up", "length": 0.5, "augment": 1}, {"name": "down", "length": 0.5, "augment": 0, **last})


@pytest.mark.each(
    ("recipe", "side", "said"),
    [
        (own(), None, []),
        (own(augment=0.5), None, ["the last phase 'down' ends with augment=0.5, so"]),
        (own(augment=1, mixup=0.2), None, ["the last phase 'down' ends with augment=1 and mixup=0.2, so"]),
        (own(augment={"curve": "linear", "start": 1, "end": 0}), None, []),
        (own(image_size=448), 300, ["the timeline takes images to 448 px, above their own median side of 300 px"]),
        (own(image_size=320), 300, []),
        (own(lr=0.1), None, ["the learning rate jumps from 0.00015 to 1.5e-05 where phase 'down' begins"]),
        (own(lr=0.1, jump=True), None, []),
        (load_recipe("default", ["timeline.final_size=448"]), 300, ["the timeline takes images to 448 px"]),
        (load_recipe("default", ["timeline.cycle=0.5"]), None, ["timeline.cycle=0.5 changes nothing in"]),
        (load_recipe("cyclic", ["timeline.cycle=0.5"]), None, []),
        (load_recipe("cyclic", ["timeline.warmup=0.2"]), None, ["timeline.warmup=0.2 changes nothing in"]),
        (load_recipe("default", ["timeline.batch_scaling=sqrt"]), None, ["batch_scaling=sqrt changes nothing"]),
        (load_recipe("default", ["plateau.patience=9"]), None, ["plateau.patience=9 changes nothing"]),
        (load_recipe("plateau", ["plateau.patience=9", "timeline.fade=true"]), None, []),
        (Recipe(), 100, []),  # nobody asked for that size: it is the pretrained network's own
    ],
)  # fmt: skip
def test_what_is_seldom_meant_is_warned_of(recipe: Recipe, side: int | None, said: list[str]):
    warnings = timeline_warnings(recipe, side)
    assert len(warnings) == len(said), warnings
    for warning, part in zip(warnings, said, strict=True):
        assert part in warning
        assert "\n" not in warning


def test_warnings_are_about_the_run_itself_where_it_is_known():
    recipe = recipe_of(
        {"name": "a", "length": "3ep", "augment": 0}, {"name": "b", "length": 1.0, "augment": 0, "lr": 0.1}
    )
    timeline: Timeline = resolved_run(recipe, 100)[0]
    assert timeline_warnings(recipe, None, timeline) == list(timeline.jumps()) != []
