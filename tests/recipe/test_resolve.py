from __future__ import annotations

from pathlib import Path

import pytest

from etude.recipe import ImageFacts, Recipe, flat, load_recipe, resolve
from etude.recipe.resolve import DEFAULT_BACKBONE, RATES_BY_NORM, TINY, backbone_reason

DIGITS, PHOTOS = ImageFacts(median_side=28, channels=1), ImageFacts(median_side=300, channels=3)


@pytest.mark.parametrize(
    ("side", "backbone"), [(28, "tiny"), (40, "tiny"), (41, DEFAULT_BACKBONE), (300, DEFAULT_BACKBONE)]
)
def test_small_images_get_the_small_network(side: int, backbone: str):
    assert resolve(Recipe(), ImageFacts(side, 3)).model.backbone == backbone


def test_photos_keep_the_recipe():
    resolved = resolve(Recipe(), PHOTOS)
    assert flat(resolved) == flat(Recipe()) | {"model.backbone": DEFAULT_BACKBONE, "unlabeled.method": "off"}


def test_the_small_network_brings_its_own_settings():
    resolved = resolve(Recipe(), DIGITS)
    assert {key: value for key, value in flat(resolved).items() if key in TINY} == TINY
    assert (resolved.timeline.start_size, resolved.timeline.final_size) == (28, 28)


def test_what_the_user_set_stays_even_at_the_default():
    default_epochs = Recipe().train.epochs
    recipe = load_recipe(
        "default", [f"train.epochs={default_epochs}", "timeline.final_size=64", "model.feature_size=32"]
    )
    resolved = resolve(recipe, DIGITS)
    assert resolved.train.epochs == default_epochs != TINY["train.epochs"]
    assert (resolved.timeline.start_size, resolved.timeline.final_size) == (28, 64)
    assert resolved.model.feature_size == 32
    assert resolved.train.lr == TINY["train.lr"]


def test_what_a_file_set_stays(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text('[train]\nlr = 0.5\n[augment]\npolicy = "none"\n', encoding="utf-8")
    resolved = resolve(load_recipe(str(file)), DIGITS)
    assert resolved.train.lr == 0.5
    assert resolved.augment.policy == "none"


@pytest.mark.parametrize(("side", "size"), [(28, 28), (29, 32), (33, 36), (40, 40), (5, 8), (3, 8), (1, 8)])
def test_tiny_sizes_are_multiples_of_four_that_the_network_can_halve_three_times(side: int, size: int):
    assert resolve(Recipe(), ImageFacts(side, 1)).timeline.final_size == size


def test_a_backbone_by_name_is_kept_on_any_images():
    for facts in (DIGITS, PHOTOS):
        assert resolve(load_recipe("default", ["model.backbone=resnet18"]), facts).model.backbone == "resnet18"
    large = resolve(load_recipe("default", ["model.backbone=tiny"]), ImageFacts(64, 3))
    assert large.timeline.final_size == 64
    assert large.train.lr == TINY["train.lr"]


@pytest.mark.parametrize(
    ("facts", "policy"), [(DIGITS, "digits"), (ImageFacts(28, 3), "auto"), (ImageFacts(300, 1), "auto")]
)
def test_only_small_grey_images_are_taken_for_digits(facts: ImageFacts, policy: str):
    assert resolve(Recipe(), facts).augment.policy == policy


@pytest.mark.parametrize("facts", [DIGITS, PHOTOS])
def test_resolving_twice_changes_nothing(facts: ImageFacts):
    once = resolve(Recipe(), facts)
    assert resolve(once, facts) == once


def test_the_recipe_itself_stays():
    recipe = Recipe()
    resolve(recipe, DIGITS)
    assert recipe == Recipe()
    assert recipe.model.model_fields_set == set()


def test_random_weights_are_trained_throughout():
    train = resolve(load_recipe("default", ["model.weights=none"]), ImageFacts(224, 3)).train
    assert (train.batchnorm, train.freeze, train.freeze_depthwise) == ("train", 0.0, False)


def test_the_small_network_leaves_what_a_named_recipe_says():
    plain, large = resolve(load_recipe("default"), DIGITS).train, resolve(load_recipe("large-batch"), DIGITS).train
    assert (large.batch_size, large.optimizer, large.lr) == (128, "lamb", load_recipe("large-batch").train.lr)
    assert (large.epochs, large.layer_decay, large.ema) == (plain.epochs, plain.layer_decay, plain.ema)
    assert resolve(load_recipe("five-minutes"), DIGITS).timeline.length == "5m"
    assert resolve(load_recipe("default", ["train.swa=true"]), DIGITS).train.ema == 0.0


@pytest.mark.parametrize("facts", [DIGITS, PHOTOS])
@pytest.mark.parametrize("optimizer", ["lamb", "lars"])
def test_optimisers_that_go_by_norms_have_rates_of_their_own(facts: ImageFacts, optimizer: str):
    changes = [f"train.optimizer={optimizer}"]
    assert resolve(load_recipe("default", changes), facts).train.lr == RATES_BY_NORM[optimizer]
    assert resolve(load_recipe("default", [*changes, "train.lr=0.02"]), facts).train.lr == 0.02


@pytest.mark.parametrize(
    ("change", "sizes"), [("timeline.start_size=64", (64, 64)), ("timeline.final_size=16", (16, 16))]
)
def test_the_size_that_was_not_given_gives_way(change: str, sizes: tuple[int, int]):
    timeline = resolve(load_recipe("default", [change]), DIGITS).timeline
    assert (timeline.start_size, timeline.final_size) == sizes


def test_own_phases_with_lengths_in_steps_fit_a_backbone_of_one_size():
    warmup = {"curve": "warmup", "after": 224, "start": 224, "length": "10st"}
    phases = [{"name": "all", "length": 1.0, "lr": 0.001, "image_size": warmup}]
    recipe = load_recipe("default", {"timeline.phases": phases, "model.backbone": "resnet18"})
    assert resolve(recipe, ImageFacts(300, 3, count=1_000, required_size=224)).timeline.final_size == 224


def test_a_reason_is_given_for_a_network_that_was_chosen():
    auto, named = Recipe(), load_recipe("default", ["model.backbone=resnet18"])
    assert [backbone_reason(named, side) for side in (28, 300)] == ["", ""]
    assert "28 px" in backbone_reason(auto, 28)
    assert "300 px" in backbone_reason(auto, 300)
    assert backbone_reason(auto, 300).startswith(resolve(auto, ImageFacts(300, 3)).model.backbone)


@pytest.mark.parametrize(
    ("settings", "side", "given", "method"),
    [
        ((), 300, False, "off"),
        ((), 300, True, "head"),
        ((), 28, True, "online"),
        (('stages=["head"]',), 28, True, "head"),
        (('stages=["finetune"]',), 300, True, "rounds"),
        (("unlabeled.method=rounds",), 28, True, "rounds"),
        (('stages=["head"]', "unlabeled.method=rounds"), 300, True, "head"),
        (("unlabeled.method=off",), 28, True, "off"),
    ],
)
def test_what_learns_from_unlabelled_images(settings: tuple[str, ...], side: int, given: bool, method: str):
    found = resolve(load_recipe("default", settings), ImageFacts(side, 3, unlabelled=given)).unlabeled
    assert found.method == method
    assert found.is_on == (method != "off")
    like = load_recipe("consistency").unlabeled
    assert (found.labeled_share, found.kind, found.start) == (
        (like.labeled_share, like.kind, like.start) if method == "online" else (0.7, "auto", "fresh")
    )
