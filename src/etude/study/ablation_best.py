"""``best.toml``: the recipe with what an ablation found to help, and without what hurts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.core.files import replacing
from etude.core.paired import Verdict
from etude.recipe import NAMED, Recipe, load_recipe
from etude.recipe.settings import Settings
from etude.recipe.tricks import TRICKS, Changes, changed
from etude.study.ablation_arms import as_settings
from etude.study.ablation_outcome import Found

_BASE = "default"  # what a recipe file starts from when it names nothing else


def best_changes(recipe: Recipe, found: Sequence[Found]) -> tuple[Changes, list[str]]:
    """Return the settings to change in a resolved recipe, and in a sentence each what could not be had besides.

    A trick that helps is switched on and one that hurts off. One of which nothing can be told, or that helps beside the
    others and hurts alone, stays as the recipe has it.
    """
    said: dict[str, set[Verdict]] = {}
    for one in found:
        said.setdefault(one.contrast.trick, set()).add(one.verdict)
    clear = {name: verdicts - {"cannot tell"} for name, verdicts in said.items()}
    hurt = [name for name, verdicts in clear.items() if verdicts == {"hurts"}]
    changes: Changes = {}
    for name in hurt:
        changes |= TRICKS[name].changes(recipe, on=False)
    kept: list[str] = []
    told: list[str] = []
    by_gain = sorted(found, key=lambda one: -one.comparison.gain)
    for name in dict.fromkeys(one.contrast.trick for one in by_gain):
        if clear[name] != {"helps"}:
            continue
        more = {**changes, **TRICKS[name].changes(recipe, on=True)}
        made = changed(recipe, more)
        if rivals := [other for other in (*kept, *hurt) if TRICKS[other].is_on(made) != (other in kept)]:
            told.append(f"{name} helps too, but shares a setting with {', '.join(rivals)}, which weighs more")
            continue
        changes, kept = more, [*kept, name]
    return changes, told


def write_recipe(path: Path, recipe: Recipe, comments: Sequence[str] = ()) -> None:
    """Write the recipe as a file that :func:`etude.recipe.load_recipe` reads back to the same settings.

    What the recipe leaves open stays open: only what was given by name or by hand is written.

    Args:
        path: of the file, .toml.
        recipe: not resolved.
        comments: lines above it.
    """
    tree = recipe.model_dump(exclude_unset=True, exclude={"name"})
    for section, values in NAMED[_BASE].items():  # what the base brings must not win over the recipe's own
        own = getattr(recipe, section)
        if isinstance(own, Settings):
            tree[section] = {**tree.get(section, {}), **{key: getattr(own, key) for key in values}}
        else:
            tree[section] = own
    lines = [*(f"# {_one_line(comment)}" for comment in comments), f"base = {_toml(_BASE)}"]
    tables = {name: values for name, values in tree.items() if isinstance(values, dict)}
    lines += [f"{name} = {_toml(value)}" for name, value in tree.items() if name not in tables]
    for name, values in tables.items():
        written = [
            f"{key} = {_toml(value)}" for key, value in values.items() if not _is_default_none(recipe, name, key)
        ]
        lines += ["", f"[{name}]", *written] if written else []
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_best(
    path: Path, name_or_file: str, settings: Sequence[str], changes: Changes, found: Sequence[Found]
) -> Recipe:
    """Write the recipe with ``changes`` over its own ``settings``, the verdicts above it; return it."""
    recipe = load_recipe(name_or_file, [*settings, *as_settings(changes)])
    comments = [f"What etude ablate found to help, over the recipe {name_or_file}.", *(one.in_words() for one in found)]
    write_recipe(path, recipe, comments)
    return recipe


def _is_default_none(recipe: Recipe, section: str, key: str) -> bool:
    """Whether a setting is None as it is by default, for which TOML has no word and needs none."""
    settings: Settings = getattr(recipe, section)
    return getattr(settings, key) is None and type(settings).model_fields[key].default is None


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'  # the settings that are not None by default take this word for it
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)  # strings, numbers and booleans are written alike in TOML


def _one_line(text: str) -> str:
    return " ".join(text.split())
