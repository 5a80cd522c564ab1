from __future__ import annotations

from pathlib import Path

import pytest

from etude.core.errors import EtudeError
from etude.recipe import ImageFacts, Recipe, load_recipe, resolve
from etude.recipe.timeline import ImageSizes, image_sizes, maximum_of, timeline_warnings

SHORT_END = """
[[timeline.phases]]
name = "long"
length = 1.0
lr = 1.0
image_size = 128
dropout = { curve = "triangular", base = 0.0, peak = 0.4, cycle = 1.0 }

[[timeline.phases]]
name = "end"
length = "5st"
lr = 1.0
image_size = 224
"""


def test_a_last_phase_of_a_few_steps_counts(tmp_path: Path):
    (tmp_path / "short.toml").write_text(SHORT_END)
    recipe = load_recipe(str(tmp_path / "short.toml"))
    assert image_sizes(recipe) == ImageSizes(first=128, final=224, largest=224)
    assert maximum_of(recipe, "dropout") == pytest.approx(0.4, abs=0.01)


def test_a_fixed_length_that_fits_short_runs_only_has_sizes_too():
    recipe = load_recipe("default", ["timeline.length=30st", "timeline.warmup=2ep"])
    assert image_sizes(recipe).final == 224


def test_sizes_that_nobody_asked_for_are_no_reason_to_warn():
    facts = ImageFacts(median_side=100, channels=3)
    given = Recipe()
    assert timeline_warnings(resolve(given, facts), 100, given=given) == []
    asked = load_recipe("default", ["timeline.final_size=320"])
    assert "above their own median side" in timeline_warnings(resolve(asked, facts), 100, given=asked)[0]


@pytest.mark.parametrize("setting", ["timeline.final_size=384", "timeline.start_size=128", "model.feature_size=384"])
def test_a_network_of_one_size_refuses_others(setting: str):
    recipe = load_recipe("default", ["model.backbone=vit_tiny_patch16_224", setting])
    name, _, size = setting.partition("=")
    with pytest.raises(EtudeError, match=f"{name} asks for images of {size} px, and backbone .* takes 224 px alone"):
        resolve(recipe, ImageFacts(median_side=300, channels=3, required_size=224))


def test_a_network_of_one_size_refuses_phases_of_others(tmp_path: Path):
    (tmp_path / "short.toml").write_text(SHORT_END)
    recipe = load_recipe(str(tmp_path / "short.toml"), ["model.backbone=vit_tiny_patch16_224"])
    with pytest.raises(EtudeError, match="phase 'long' asks for images of 128 px"):
        resolve(recipe, ImageFacts(median_side=300, channels=3, required_size=224))
    assert image_sizes(
        resolve(load_recipe("progressive"), ImageFacts(median_side=300, channels=3, required_size=224))
    ) == ImageSizes(224, 224, 224)
