"""Amounts of disk space in sentences."""

from __future__ import annotations


def told_bytes(count: float) -> str:
    """Return a number of bytes in units of 1000, as ``data.cache_limit`` reads them.

    >>> told_bytes(812), told_bytes(48_000_000), told_bytes(1_250_000_000)
    ('812 bytes', '48 MB', '1.2 GB')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:,.0f} {unit}"
