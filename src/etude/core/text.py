"""Numbers, times, sizes and names as text, for the terminal, reports and files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

# Control characters, marks and overrides of the direction of writing, separators of lines and paragraphs.
_COMMANDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

LABELS: dict[str, str] = {
    "lr": "learning rate",
    "momentum": "momentum",
    "image_size": "image size",
    "augment": "augmentation",
    "mixup": "MixUp α",
    "cutmix": "CutMix α",
    "dropout": "dropout",
    "drop_path": "stochastic depth",
    "batch_size": "batch size",
    "label_smoothing": "label smoothing",
    "unlabeled_weight": "unlabelled weight",
}
"""What a scheduled quantity is called."""

UNITS: dict[str, str] = {"image_size": "px", "batch_size": "images"}

_NAMES = {"macro_f1": "macro F1", "auc": "ROC AUC", "lr": "learning rate", "finetune": "fine-tune"}


def visible(text: str) -> str:
    r"""Return ``text`` with every character that acts on a terminal as an escape; a name may hold any of them."""
    return _COMMANDS.sub(lambda match: repr(match.group())[1:-1], text)


def shortened(text: str, most: int) -> str:
    """Return ``text``, cut to ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plain_name(key: str) -> str:
    """Return what a metric, stage or setting of the code is called."""
    return _NAMES.get(key, key.replace("_", " "))


def short_number(value: float) -> str:
    """Return a number as a practitioner writes it, to three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    # Rounded first: 0.0099996 is 0.01, not 10e-3.
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 0.01:
        return f"{rounded:g}"
    mantissa, exponent = f"{rounded:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def signed(value: float | None) -> str:
    """Return a difference as :func:`short_number` writes it, with its sign; empty where it is not known."""
    if value is None:
        return ""
    sign = "−" if value < 0 else "+" if value > 0 else ""
    return f"{sign}{short_number(abs(value))}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage; a dash where it is not known."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}%"


def points(difference: float | None) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return "" if difference is None else f"{100 * difference:+.2f}".replace("-", "−")


def counted(count: int, thing: str, plural: str | None = None) -> str:
    """Return ``count`` with the right form of ``thing``."""
    return f"{count:,} {thing if count == 1 else plural or thing + 's'}"


def duration(seconds: float | None) -> str:
    """Return seconds in at most two units; a dash where they are not known."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    size, unit, part, of = next(
        units for units in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")) if whole >= units[0]
    )
    rest = whole % size // part
    return f"{whole // size} {unit}" + (f" {rest} {of}" if rest else "")


def rough_duration(seconds: float) -> str:
    """Return an estimated time in one unit."""
    if seconds < 1:
        return "<1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def file_size(count: float | None) -> str:
    """Return bytes in powers of 1000, as ``data.cache_limit`` reads them; a dash where they are not known."""
    if count is None:
        return "–"
    if count < 999.5:
        return f"{count:.0f} B"
    count, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if count >= 999.5:
            count, unit = count / 1000, larger
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:,.0f} {unit}"


def moment(text: str | None) -> str:
    """Return an ISO time as ``2026-11-22 14:17 UTC``; any other text as it is."""
    if not text:
        return "–"
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{read.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def in_words(value: Any) -> str:
    """Return a JSON value as text: no brackets, no quotes, floats to six significant digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        table = cast(Mapping[object, object], value)
        return ", ".join(f"{plain_name(str(key))} {in_words(one)}" for key, one in table.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(in_words, cast(Sequence[object], value))) or "none"
    return "none" if value is None or value == "" else str(value)


def toml(value: Any) -> str:
    """Return a value of settings as TOML writes it; None becomes the word ``none``, which such settings accept."""
    if isinstance(value, Mapping):
        table = cast(Mapping[object, object], value)
        return "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in table.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, cast(Sequence[object], value))) + "]"
    if value is None or not isinstance(value, bool | int | float):
        return json.dumps("none" if value is None else str(value))
    return json.dumps(value)  # JSON writes numbers and booleans as TOML reads them
