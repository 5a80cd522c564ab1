"""Recipes: the validated settings of a run."""

from etude.recipe.load import NAMED, changed_settings, flat, load_recipe
from etude.recipe.resolve import ImageFacts, resolve
from etude.recipe.settings import Recipe
from etude.recipe.timeline import needs_pace, nominal_timeline, resolved_run, timeline_of, timeline_warnings

__all__ = [
    "NAMED",
    "ImageFacts",
    "Recipe",
    "changed_settings",
    "flat",
    "load_recipe",
    "needs_pace",
    "nominal_timeline",
    "resolve",
    "resolved_run",
    "timeline_of",
    "timeline_warnings",
]
