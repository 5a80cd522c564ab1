"""How tables, figures and pages write what a run measured: names, units, and values as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

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

_SPOKEN = {"macro_f1": "macro F1", "auc": "ROC AUC", "lr": "learning rate", "finetune": "fine-tune"}

UNITS: dict[str, str] = {"image_size": "px", "batch_size": "images"}


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


def count_of(value: float) -> str:
    """Return a count with separators of thousands.

    >>> count_of(5000)
    '5,000'
    """
    return f"{value:,}"


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


def duration(seconds: float | None) -> str:
    """Return seconds as one reads them, in at most two units.

    >>> [duration(value) for value in (0.02, 4.25, 62.6, 3725, 190000, None)]
    ['0.02 s', '4.2 s', '1 min 3 s', '1 h 2 min', '2 d 4 h', '–']
    """
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part, of in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {of}"
    return f"{whole} s"


def file_size(count: float | None) -> str:
    """Return bytes as one reads them, in powers of 1000.

    >>> file_size(912), file_size(1159936), file_size(None)
    ('912 B', '1.2 MB', '–')
    """
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def moment(text: str | None) -> str:
    """Return an ISO time as ``2026-11-22 14:17 UTC``; what is no time comes back as it is.

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


def spoken(name: str) -> str:
    """Return a name of the code as one says it.

    >>> spoken("log_loss"), spoken("macro_f1"), spoken("labeled_share")
    ('log loss', 'macro F1', 'labeled share')
    """
    return _SPOKEN.get(name, name.replace("_", " "))


def in_words(value: Any) -> str:
    """Return a JSON value as one reads it: no brackets, no quotes, floats to six significant digits.

    >>> in_words({"accuracy": 1, "log_loss": [0.12345678, True]}), in_words(None), in_words([])
    ('accuracy 1, log loss 0.123457, yes', 'none', 'none')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{spoken(str(key))} {in_words(one)}" for key, one in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(in_words, value)) or "none"
    return "none" if value is None or value == "" else str(value)
