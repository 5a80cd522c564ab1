"""``etude recipe``: the named recipes, what each is for, and how two differ."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from etude.cli.common import AsJson, print_json, screen_for
from etude.core.text import in_words
from etude.study.run.request import Words

app = App(
    name="recipe",
    help_format="markdown",
    help="List the named recipes, show one, or what differs between two.",
)


@app.command(name="list")
def list_(*, as_json: AsJson = False) -> None:
    """List the named recipes with what each is for."""
    from etude.recipe.load import NAMED, purpose_of

    purposes = {name: purpose_of(name) for name in NAMED}
    if as_json:
        print_json(purposes)
        return
    screen = screen_for()
    screen.plan("Recipes", list(purposes.items()))
    screen.say("etude recipe show NAME prints one as a file to start from; etude fit TRAIN --recipe NAME uses it")


@app.command
def show(name: str) -> None:
    """Print a named recipe as TOML, to start a file of your own from.

    Parameters
    ----------
    name
        A named recipe.
    """
    from etude.recipe.load import text_of

    print(text_of(name), end="")


@app.command
def diff(
    first: str, second: str, *, settings: Annotated[Words, Parameter(name="--set")] = (), as_json: AsJson = False
) -> None:
    """Show the settings that differ between two recipes.

    Parameters
    ----------
    first
        A named recipe or a TOML file.
    second
        Another one.
    settings
        Change a setting of the second, such as --set train.lr=0.001; may be repeated.
    """
    from etude.recipe import flat, load_recipe

    one, two = flat(load_recipe(first)), flat(load_recipe(second, settings))
    differ = {key: [value, two[key]] for key, value in one.items() if two[key] != value and key != "name"}
    if as_json:
        print_json(differ)
        return
    screen = screen_for()
    if not differ:
        screen.say(f"{first} and {second} have the same settings")
        return
    screen.table(
        "Settings that differ", ["setting", first, second], [[k, *map(in_words, v)] for k, v in differ.items()]
    )
