"""Pages that stand alone in one file: every value escaped, nothing requested, no script but the page's own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
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
    """Return a page that forbids itself every request and any script but ``script``; only ``Markup`` is not escaped."""
    style, code = asset("charts.css") + asset("page.css"), asset(script) if script else ""
    allowed = [f"style-src '{_hash_of(style)}'", *([f"script-src '{_hash_of(code)}'"] if script else [])]
    policy = "; ".join(["default-src 'none'", "img-src data:", *allowed, "base-uri 'none'", "form-action 'none'"])
    own = {"policy": policy, "style": Markup(style), "script": Markup(code)}
    return render(template, {**values, **own})


def render(template: str, values: Mapping[str, Any]) -> str:
    return _environment().get_template(template).render(values)


def write_page(path: Path, page: str) -> Path:
    """Write the page as UTF-8, whole or not at all, and return its path."""
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))
    return path


def macro(template: str, name: str, *values: Any) -> Markup:
    return Markup(getattr(_environment().get_template(template).module, name)(*values).strip())


def data_uri(picture: bytes) -> str:
    return f"data:{kind_of(picture)};base64,{base64.b64encode(picture).decode('ascii')}"


def kind_of(picture: bytes) -> str:
    kind = next((kind for start, kind in _PICTURES.items() if picture.startswith(start)), None)
    if kind is None:
        raise EtudeError(f"a page carries PNG, JPEG and WebP pictures, not what begins with {picture[:4]!r}")
    return kind


@cache
def asset(name: str) -> str:
    return files("etude.journal").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True}
    environment = Environment(loader=PackageLoader("etude.journal"), lstrip_blocks=True, **options)
    named: list[Callable[..., str]] = [percent, points, signed, duration, file_size, moment, short_number, in_words]
    own = {"count_of": "{:,}".format, "unit": lambda value: f"{value:.2f}".rstrip("0").rstrip(".")}
    environment.filters.update({one.__name__: one for one in named}, **own)
    return environment


def _hash_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
