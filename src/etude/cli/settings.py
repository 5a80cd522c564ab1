"""``etude settings``."""

from __future__ import annotations

from itertools import groupby

from etude.cli.common import AsJson, print_json, screen_for
from etude.core.errors import EtudeError


def settings(*words: str, recipe: str = "default", as_json: AsJson = False) -> None:
    """List the settings of a recipe: name, value, what is accepted, and what it is for.

    ``etude fit TRAIN --set train.lr=0.001`` changes one.

    Parameters
    ----------
    words
        A section, such as train, or words in a name or description, such as lr or learning rate; by default all.
    recipe
        A named recipe or a TOML file, whose values are listed; where those of the recipe default differ, they are too.
    """
    from etude.recipe import Recipe, flat, load_recipe
    from etude.recipe.catalogue import FIELDS, SECTIONS, accepted, as_given, found, hint

    word = " ".join(words)
    if not (names := found(word)):
        raise EtudeError(f"no setting has {word!r} in its name or description.{hint(word)}")
    values, defaults = flat(load_recipe(recipe)), flat(load_recipe())
    if as_json:
        keys = ("value", "default", "accepts", "description")
        rows = ((values[name], defaults[name], accepted(FIELDS[name]), FIELDS[name].description) for name in names)
        print_json({name: dict(zip(keys, row, strict=True)) for name, row in zip(names, rows, strict=True)})
        return

    def in_words(name: str) -> str:
        about, limits, value = FIELDS[name].description or "", accepted(FIELDS[name]), as_given(name, values[name])
        default = "" if values[name] == defaults[name] else f" (default: {as_given(name, defaults[name])})"
        known = isinstance(values[name], bool) or all(one in about for one in limits.split(", "))
        return " | ".join([value + default, about, *([] if known else [limits])])

    screen = screen_for()
    for section, within in groupby(names, lambda name: name.rpartition(".")[0]):
        title = (SECTIONS.get(section, Recipe).__doc__ or "").replace("``", "")
        screen.plan(title, [(name, in_words(name)) for name in within])
