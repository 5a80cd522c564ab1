"""Pages that stand alone in one file: every value escaped, nothing requested, no script but the page's own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from etude.core.errors import EtudeError
from etude.core.files import replacing
from etude.core.text import duration, file_size, in_words, moment, percent, points, short_number, signed

# First bytes of the kinds of picture that a page may carry.
_PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


def render_page(template: str, values: Mapping[str, Any], script: str = "") -> str:
    """Return the page that ``template`` makes of ``values``; texts are escaped, only ``Markup`` passes as it is.

    The page forbids itself every request, and runs no script but the one named, by the hash of its text: a class name
    that slipped through the escaping still could do nothing.
    """
    style, code = asset("charts.css") + asset("page.css"), asset(script) if script else ""
    allowed = [f"style-src '{_hash_of(style)}'", *([f"script-src '{_hash_of(code)}'"] if script else [])]
    policy = "; ".join(["default-src 'none'", "img-src data:", *allowed, "base-uri 'none'", "form-action 'none'"])
    own = {"policy": policy, "style": Markup(style), "script": Markup(code)}
    return _environment().get_template(template).render({**values, **own})


def write_page(path: Path, page: str) -> Path:
    """Write the page as UTF-8, whole or not at all, and return its path.

    Half of a surrogate pair, which stands for a byte of a file name that is not UTF-8, is written as its code.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))
    return path


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element of HTML or SVG; texts are escaped, attributes that are None left out.

    An underscore in an attribute's name is written as a hyphen, one at its end left out; numbers are rounded to
    hundredths.

    >>> element("text", "a < b", class_="name", font_size=11.004, x=None)
    Markup('<text class="name" font-size="11">a &lt; b</text>')
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _plain(value))
        for name, value in attributes.items()
        if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(tag, written, Markup("").join(children), tag)


def data_uri(picture: bytes) -> str:
    """Return a picture (PNG, JPEG or WebP) as an address that holds it.

    >>> data_uri(b"\\x89PNG")
    'data:image/png;base64,iVBORw=='
    """
    return f"data:{kind_of(picture)};base64,{base64.b64encode(picture).decode('ascii')}"


def kind_of(picture: bytes) -> str:
    """Return the media type of a picture by its first bytes."""
    kind = next((kind for start, kind in _PICTURES.items() if picture.startswith(start)), None)
    if kind is None:
        raise EtudeError(f"a page carries PNG, JPEG and WebP pictures, not what begins with {picture[:4]!r}")
    return kind


@cache
def asset(name: str) -> str:
    """Return the text of a file below ``journal/templates``."""
    return files("etude.journal").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("etude.journal"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    named = (percent, points, signed, duration, file_size, moment, short_number, in_words)
    environment.filters.update({filter_.__name__: filter_ for filter_ in named}, count_of="{:,}".format)
    return environment


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _hash_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
