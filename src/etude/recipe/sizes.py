"""What a recipe's timeline goes through, before the length of the run is known."""

from __future__ import annotations

from dataclasses import dataclass

from etude.recipe.settings import Recipe
from etude.recipe.timeline import SAMPLES, nominal_timeline
from etude.timeline import Moment, step_progress


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Sides of the square training images, in pixels, rounded as the timeline does."""

    first: int
    final: int
    largest: int


def image_sizes(recipe: Recipe) -> ImageSizes:
    """Return the first, last and largest size of the recipe's timeline.

    >>> from etude.recipe import load_recipe
    >>> image_sizes(load_recipe("progressive"))
    ImageSizes(first=128, final=224, largest=224)
    """
    sizes = [moment.image_size or recipe.timeline.final_size for moment in _moments(recipe)]
    return ImageSizes(sizes[0], sizes[-1], max(sizes))


def most_of(recipe: Recipe, quantity: str) -> float:
    """Return the largest value of a quantity in the recipe's timeline; 0 where it is not scheduled.

    >>> from etude.recipe import load_recipe
    >>> most_of(load_recipe("default"), "drop_path")
    0.0
    """
    return max(getattr(moment, quantity) or 0.0 for moment in _moments(recipe))


def _moments(recipe: Recipe) -> list[Moment]:
    """Return moments of the whole run, both ends of every phase among them: a phase may last a few steps only."""
    timeline, _ = nominal_timeline(recipe)
    ends = [point for _, start, stop in timeline.spans() for point in (start, max(start, stop - 1e-6))]
    between = [step_progress(step, SAMPLES) for step in range(SAMPLES)]
    return [timeline.at(point) for point in sorted({0.0, 1.0, *ends, *between})]
