"""What the site's pages get from the code when they are built: `make site`."""

from __future__ import annotations

import re
from typing import Any

import griffe

from etude.recipe import Recipe, flat
from etude.recipe.catalogue import FIELDS, SECTIONS, accepted, as_given
from etude.refine import _HOMES
from etude.study.run.request import documented


class Docstrings(griffe.Extension):
    """Reads the docstrings as they are written here: as text, which a terminal shows as it stands."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value
            if "{options}" in text:  # etude.fit fills them in when it is imported
                text = text.replace("{options}", documented(indent=4).strip())
            text = re.sub(r"^ {4}(\w+(?:, \w+)+):(.*(?:\n {8}.*)*)", _each_alone, text, flags=re.MULTILINE)
            text = re.sub(r"^>>> .*(?:\n.+)*", r"```python\n\g<0>\n```", text, flags=re.MULTILINE)
            text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _each_alone(found: re.Match[str]) -> str:
    """Give each of the parameters that share a description its own."""
    return "\n".join(f"    {name}:{found[2]}" for name in found[1].split(", "))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places of a page that the code writes, and say in words after which line a tutorial's block goes."""
    for place, written in {"settings": settings, "refine": refine}.items():
        if (mark := f"<!-- {place}, from the code -->") in markdown:
            markdown = markdown.replace(mark, written())
    return re.sub(r"^(```\w+ title='[^']+)' after='([^']+)'$", r"\1, after: \2'", markdown, flags=re.MULTILINE)


def settings() -> str:
    """Return a table of settings for each section."""
    values, parts = flat(Recipe()), list[str]()
    for section, kind in {"": Recipe, **SECTIONS}.items():
        names = [name for name in FIELDS if name.rpartition(".")[0] == section]
        title = f"`{section}`" if section else "The run"
        rows = [["setting", "default", "what it is for", "accepts"], ["---"] * 4]
        for name in names:
            field, default = FIELDS[name], as_given(name, values[name])
            rows.append([f"`{name}`", f"`{default}`", _cell(field.description), _cell(accepted(field))])
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## {title}\n\n{_cell(kind.__doc__)}\n\n{table}")
    return "\n\n".join(parts)


def _cell(text: str | None) -> str:
    return (text or "").replace("``", "`").replace("|", "\\|")


def refine() -> str:
    """Return a heading and the docstring of each public name of ``etude.refine``, which are imported when used."""
    return "\n\n".join(f"::: etude.refine.{home}.{name}" for name, home in sorted(_HOMES.items()))
