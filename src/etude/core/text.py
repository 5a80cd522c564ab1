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
    r"""Return ``text`` with every character that acts on a terminal as an escape; a name may hold any of them.

    >>> print(visible("a\x1b[31m\u202eb\nc [bold] é"))
    a\x1b[31m\u202eb\nc [bold] é
    """
    return _COMMANDS.sub(lambda match: repr(match.group())[1:-1], text)


def shortened(text: str, most: int) -> str:
    """Return ``text``, cut to ``most`` characters.

    >>> shortened("defective", 16), shortened("a very long class name", 9)
    ('defective', 'a very l…')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plain_name(key: str) -> str:
    """Return what a metric, stage or setting of the code is called.

    >>> plain_name("log_loss"), plain_name("macro_f1"), plain_name("labeled_share")
    ('log loss', 'macro F1', 'labeled share')
    """
    return _NAMES.get(key, key.replace("_", " "))


def short_number(value: float) -> str:
    """Return a number as a practitioner writes it, to three significant digits.

    >>> [short_number(value) for value in (0, 0.5, 0.000123456, 0.001, 0.01, 224, 65536)]
    ['0', '0.5', '1.23e-4', '1e-3', '0.01', '224', '65,536']
    """
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
    """Return a difference as :func:`short_number` writes it, with its sign; empty where it is not known.

    >>> signed(0.0968), signed(-0.00519), signed(0.0), signed(None)
    ('+0.0968', '−5.19e-3', '0', '')
    """
    if value is None:
        return ""
    sign = "−" if value < 0 else "+" if value > 0 else ""
    return f"{sign}{short_number(abs(value))}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage; a dash where it is not known.

    >>> percent(0.98549), percent(None)
    ('98.5%', '–')
    """
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}%"


def points(difference: float | None) -> str:
    """Return a difference of shares in percentage points, with its sign.

    >>> points(0.0225), points(-0.00125), points(None)
    ('+2.25', '−0.12', '')
    """
    return "" if difference is None else f"{100 * difference:+.2f}".replace("-", "−")


def counted(count: int, thing: str, plural: str | None = None) -> str:
    """Return ``count`` with the right form of ``thing``.

    >>> counted(1, "image"), counted(2624, "image"), counted(2, "class", "classes")
    ('1 image', '2,624 images', '2 classes')
    """
    return f"{count:,} {thing if count == 1 else plural or thing + 's'}"


def duration(seconds: float | None) -> str:
    """Return seconds in at most two units; a dash where they are not known.

    >>> [duration(value) for value in (0.02, 4.25, 62.6, 600, 3725, 190000, None)]
    ['0.02 s', '4.2 s', '1 min 3 s', '10 min', '1 h 2 min', '2 d 4 h', '–']
    """
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
    """Return an estimated time in one unit.

    >>> rough_duration(0.4), rough_duration(59), rough_duration(600), rough_duration(9000)
    ('<1 s', '59 s', '10 min', '2.5 h')
    """
    if seconds < 1:
        return "<1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def file_size(count: float | None) -> str:
    """Return bytes in powers of 1000, as ``data.cache_limit`` reads them; a dash where they are not known.

    >>> [file_size(count) for count in (912, 1159936, 48e6, None)]
    ['912 B', '1.2 MB', '48 MB', '–']
    """
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
    """Return an ISO time as ``2026-11-22 14:17 UTC``; any other text as it is.

    >>> moment("2026-11-22T14:17:22+00:00"), moment(None)
    ('2026-11-22 14:17 UTC', '–')
    """
    if not text:
        return "–"
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{read.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def in_words(value: Any) -> str:
    """Return a JSON value as text: no brackets, no quotes, floats to six significant digits.

    >>> in_words({"accuracy": 1, "log_loss": [0.12345678, True]}), in_words(None), in_words([])
    ('accuracy 1, log loss 0.123457, yes', 'none', 'none')
    """
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
    """Return a value of settings as TOML writes it; None becomes the word ``none``, which such settings accept.

    >>> toml({"lr": 0.1, "stages": ("head", None)})
    '{"lr" = 0.1, "stages" = ["head", "none"]}'
    """
    if isinstance(value, Mapping):
        table = cast(Mapping[object, object], value)
        return "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in table.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, cast(Sequence[object], value))) + "]"
    if value is None or not isinstance(value, bool | int | float):
        return json.dumps("none" if value is None else str(value))
    return json.dumps(value)  # JSON writes numbers and booleans as TOML reads them
