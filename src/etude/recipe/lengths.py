"""Lengths as settings: what each setting accepts of shares, epochs, steps and time."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from etude.timeline import parse_length

FIXED = "epochs '3ep', steps '500st' or time '10m' or '90s'"


def refused(sentence: str) -> PydanticCustomError:
    """Return the error that makes pydantic refuse a value; ``sentence`` begins with ``Input``, as pydantic's do."""
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence})  # braces in it stay as they are


def _part(value: Any) -> float | str:
    """A part of a whole: a share above 0 and below 1, or a fixed length."""
    accepted = f"a share between 0 and 1, such as 0.25 or '25%', or {FIXED}"
    amount, unit = _parsed(value, accepted)
    if unit != "share":
        return value.strip()
    if amount >= 1:
        raise refused(f"Input must be {accepted}")
    return amount


def _run_length(value: Any) -> str | None:
    """The length of a whole run: a fixed length, or None for ``none``, since TOML has no word for it."""
    if value is None or value == "none":
        return None
    accepted = f"{FIXED}, or 'none'"
    if _parsed(value, accepted)[1] == "share":
        raise refused(f"Input must be {accepted}")
    return value.strip()


def _interval(value: Any) -> float | str:
    """``auto``, or a part of a run."""
    return "auto" if value == "auto" else _part(value)


def _time(value: Any) -> str:
    """A duration."""
    accepted = "a time, such as '60s' or '10m'"
    if _parsed(value, accepted)[1] != "s":
        raise refused(f"Input must be {accepted}")
    return value.strip()


def _disk_space(value: Any) -> int | None:
    """Bytes, or None for ``auto``."""
    if value is None or value == "auto":
        return None
    told = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", str(value), re.IGNORECASE)
    if isinstance(value, bool) or told is None:
        raise refused("Input must be a size on disk, such as 500MB or 20GB, or 'auto'")
    return int(float(told[1]) * 1000 ** " KMGT".index(told[2].upper() or " "))


def _value_range(value: Any) -> str:
    """``auto``, or ``"LOW..HIGH"``."""
    text = f"0..{value}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value).strip()
    if text != "auto":
        try:
            text = text if ".." in text else f"0..{text}"
            low, high = value_range(text) or (0.0, 0.0)
            if not -math.inf < low < high < math.inf:
                raise ValueError
        except ValueError:
            raise refused(
                "Input must be two numbers such as 0..4095, the highest alone such as 4095, or 'auto'"
            ) from None
    return text


def value_range(text: str) -> tuple[float, float] | None:
    """Return the two ends of a :data:`ValueRange`, or None for ``auto``.

    >>> value_range("-1000..3000"), value_range("auto")
    ((-1000.0, 3000.0), None)
    """
    if text == "auto":
        return None
    low, high = text.split("..")
    return float(low), float(high)


def _parsed(value: Any, accepted: str) -> tuple[float, str]:
    try:
        return parse_length(value)
    except ValueError:
        raise refused(f"Input must be {accepted}") from None


Part = Annotated[float | str, BeforeValidator(_part)]
"""A share in (0, 1), or ``"3ep"``, ``"500st"``, ``"90s"``, ``"10m"``."""

Interval = Annotated[float | str, BeforeValidator(_interval)]
"""A :data:`Part` of the run, or ``"auto"``."""

RunLength = Annotated[str | None, BeforeValidator(_run_length)]
"""``"3ep"``, ``"500st"``, ``"90s"`` or ``"10m"``, or None."""

Time = Annotated[str, BeforeValidator(_time)]
"""``"90s"`` or ``"10m"``."""

DiskSpace = Annotated[int | None, BeforeValidator(_disk_space)]
"""Bytes: a number, ``"500MB"``, ``"20GB"`` (of 1000 each); None for ``"auto"``."""

ValueRange = Annotated[str, BeforeValidator(_value_range)]
"""``"0..4095"``, from which ``4095`` alone is made too, or ``"auto"``; :func:`value_range` reads it."""
