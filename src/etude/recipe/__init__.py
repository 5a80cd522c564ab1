"""Recipes: the validated settings of a run."""

from etude.recipe.load import NAMED, changed_settings, flat, load_recipe
from etude.recipe.resolve import ImageFacts, resolve
from etude.recipe.settings import Recipe

__all__ = ["NAMED", "ImageFacts", "Recipe", "changed_settings", "flat", "load_recipe", "resolve"]
