"""Recipes by name, from a TOML file, and changed by ``--set``."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from etude.core.errors import EtudeError, did_you_mean, nearest, shown
from etude.core.files import reading
from etude.recipe.catalogue import SECTIONS, hint
from etude.recipe.settings import Recipe, Settings
from etude.recipe.timeline import timeline_of

FOLDER = Path(__file__).with_name("named")
"""Of the named recipes: TOML files whose first comment says what each is for."""

_NAMES = (
    *("quick", "default", "best", "few-labels", "fine-grained", "tiny-images", "vgg19-baseline", "pseudo-label"),
    *("consistency", "distill", "one-cycle", "cyclic", "cyclic-decay", "cyclic-exp", "plateau", "progressive"),
    *("large-batch", "five-minutes"),
)

NAMED: dict[str, dict[str, Any]] = {
    name: tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")) for name in _NAMES
}
"""The recipes by name: what each changes of the settings' own defaults."""


def text_of(name: str) -> str:
    """Return a named recipe as the TOML file that it is; EtudeError for another name."""
    if name not in NAMED:
        raise EtudeError(f"there is no recipe {name!r}; the named ones are {', '.join(NAMED)}.{_recipe_hint(name)}")
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def purpose_of(name: str) -> str:
    """Return what a named recipe is for: the first line of its file."""
    return text_of(name).partition("\n")[0].removeprefix("# ")


_OTHER_WORDS = {"fast": "quick", "accurate": "best"}


def _recipe_hint(name: str) -> str:
    """Return the question whether a recipe was meant: of the nearest name, or whose purpose holds the word."""
    word = name.casefold()
    named = [_OTHER_WORDS[word]] if word in _OTHER_WORDS else []
    named += [one for one in NAMED if len(word) > 3 and word in purpose_of(one).casefold()]
    return nearest(name, NAMED) or (did_you_mean(named) if len(named) <= 3 else "")


_LARGEST_FILE = 200_000  # bytes of a recipe; reading takes about a second a megabyte

PRESET_ONLY = ("preset", "start_size", "warmup", "finish", "cycle", "fade", "batch_growth")
"""Settings of the timeline that shape a preset, and so have no say in phases of one's own."""


def load_recipe(name_or_file: str = "default", changes: Mapping[str, Any] | Iterable[str] = ()) -> Recipe:
    """Return the recipe ``name_or_file`` with ``changes`` applied, as :func:`changes_of` reads them.

    A TOML file holds the same tree; its key ``base`` names the recipe that it starts from (default: ``default``).
    Its ``[[timeline.phases]]`` replace the base's preset.

    Raises:
        EtudeError: unknown recipe or setting (the nearest name is suggested), a value that is not accepted, settings
            that contradict each other or make no timeline.

    >>> load_recipe("quick", {"data.valid": 0.3}).data.valid
    0.3
    """
    tree, origin = _tree_of(name_or_file), f"recipe {name_or_file!r}"
    validate(tree, origin)  # a mistake in the file is reported before one in the changes
    known = flat(Recipe())
    for key, value in changes_of(changes).items():
        if key not in known:
            raise EtudeError(f"--set {key}={shown(value)}: there is no setting {key!r}.{hint(key)}")
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[leaf] = value
    return validate(tree, origin)


def changes_of(settings: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Return settings by dotted name from a mapping, or from texts whose values are TOML or else plain text."""
    if isinstance(settings, Mapping):
        return {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    changes: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = (part.strip() for part in setting.partition("="))
        if not separator or not key:
            raise EtudeError(f"--set received {setting!r}; write it as section.setting=value, such as train.lr=0.001")
        try:
            changes[key] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):  # what Python cannot hold as a number or a list is text too
            changes[key] = text
    return changes


def validate(tree: Mapping[str, Any], origin: str) -> Recipe:
    """Return the recipe of a tree of settings; the first mistake is one sentence that names the setting."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise EtudeError(_sentence(error, origin)) from None
    except (OverflowError, RecursionError, ValueError) as error:  # of numbers and nesting that are no settings
        raise EtudeError(f"{origin}: a value is too large or nested too deeply ({type(error).__name__})") from None
    _refuse_contradictions(recipe, origin)
    return recipe


def changed_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that differ from those of the recipe ``default``, by dotted name."""
    defaults = flat(load_recipe("default"))
    return {key: value for key, value in flat(recipe).items() if defaults.get(key) != value}


def flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Return every setting by its dotted name."""
    rows: dict[str, Any] = {}
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, Settings):
            rows.update(flat(value, f"{prefix}{key}."))
        else:
            rows[f"{prefix}{key}"] = value
    return rows


def _tree_of(name_or_file: str) -> dict[str, Any]:
    if name_or_file in NAMED:
        return {"name": name_or_file, **copy.deepcopy(NAMED[name_or_file])}
    path = Path(name_or_file)
    if path.suffix != ".toml":
        raise EtudeError(
            f"there is no recipe {name_or_file!r}; the named ones are {', '.join(NAMED)}, or give a .toml file."
            f"{_recipe_hint(name_or_file)}"
        )
    with reading(path, "valid TOML", "correct it, or give the name of a recipe"):
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"a recipe has at most {_LARGEST_FILE:,} bytes")
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    base = tree.pop("base", "default")
    if not isinstance(base, str) or base not in NAMED:
        raise EtudeError(
            f"{path} starts from base {base!r}; the named recipes are {', '.join(NAMED)}.{_recipe_hint(str(base))}"
        )
    merged = _merged({"name": path.stem, **NAMED[base]}, tree)
    own = tree.get("timeline")
    if isinstance(own, dict) and "phases" in own and "preset" not in own:
        merged["timeline"].pop("preset", None)
    return merged


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new tree: ``base`` with the settings of ``over``; a section keeps what ``over`` does not name."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _refuse_contradictions(recipe: Recipe, origin: str) -> None:
    """Refuse settings that contradict each other; only those given by hand can."""
    given = [name for name in PRESET_ONLY if name in recipe.timeline.model_fields_set]
    if recipe.timeline.phases and given:
        option = " (which --size sets)" if given[0] == "start_size" else ""
        raise EtudeError(
            f"{origin}: timeline.phases and timeline.{given[0]}{option} were both given, but phases of your own "
            "replace the preset and all that shapes it; leave one of them out"
        )
    length, shares = recipe.timeline.length, any(phase.is_share for phase in timeline_of(recipe).phases)
    if "epochs" in recipe.train.model_fields_set and (length is not None or not shares):
        other, way = (
            (f"timeline.length={length}", "set timeline.length=none")
            if length is not None
            else ("timeline.phases of fixed lengths", "give a phase a share for its length")
        )
        raise EtudeError(
            f"{origin}: train.epochs={recipe.train.epochs:g} and {other} both say how long the run is; "
            f"leave out train.epochs, or {way}"
        )


def _sentence(error: ValidationError, origin: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        section = nearest(where, SECTIONS) if isinstance(first["input"], dict) else ""
        return f"{origin}: there is no setting {where!r}.{section or hint(where)}"
    received = shown(first["input"])
    if first["type"] == "model_type":
        return f"{origin}: {where} received {received}, but it is a section that holds settings of its own."
    message = first["msg"].partition(" ")[2]  # pydantic's sentences begin with "Input" or with the type's name
    end = "" if message.endswith("?") else "."
    return f"{origin}: {where} received {received}, but it {message}{end}"
