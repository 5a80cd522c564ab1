"""How labelled and unlabelled images share a training: in which share, for how long, by which recipe."""

from __future__ import annotations

from etude.recipe.settings import Recipe
from etude.recipe.unlabeled_settings import SAFE_SHARE

LEAST_SHARE, MOST_SHARE = 0.125, 0.7  # of labelled images in a batch, where the share is decided by their number


def labelled_share(recipe: Recipe, labelled: int, unlabelled: int) -> float:
    """Return the share of each batch that is labelled; ``auto`` is the images' own, within limits.

    >>> from etude.recipe import load_recipe
    >>> [labelled_share(load_recipe("consistency"), labelled, 900) for labelled in (10, 300, 9_000)]
    [0.125, 0.25, 0.7]
    """
    asked = recipe.unlabeled.labeled_share
    if isinstance(asked, float):
        return asked
    return min(MOST_SHARE, max(LEAST_SHARE, labelled / (labelled + unlabelled)))


def share_caution(recipe: Recipe) -> str | None:
    """Return a word of caution where rounds train at another share of labelled images than competitors use."""
    asked, (low, high) = recipe.unlabeled.labeled_share, SAFE_SHARE
    if recipe.unlabeled.method != "rounds" or not isinstance(asked, float) or low <= asked <= high:
        return None
    return (
        f"unlabeled.labeled_share={asked:g}: {low:.0%} to {high:.0%} labelled images a batch keep pseudo-labels from "
        "taking over; fewer follow the teacher's mistakes sooner, and more use little of the unlabelled images"
    )


def mixed_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a training with unlabelled images: their own length and batch size in place of the usual."""
    settings = recipe.unlabeled
    train, timeline = recipe.train, recipe.timeline
    if settings.batch_size is not None:
        train = train.model_copy(update={"batch_size": settings.batch_size})
    if settings.length is not None:
        timeline = timeline.model_copy(update={"length": settings.length})
    return recipe.model_copy(update={"train": train, "timeline": timeline})


def supervised_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a training on the labelled images alone."""
    return recipe.model_copy(update={"unlabeled": recipe.unlabeled.model_copy(update={"method": "off"})})
