"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, thing: str, plural: str | None = None) -> str:
    """Return ``count`` with the right form of ``thing``.

    >>> counted(1, "image"), counted(2624, "image"), counted(2, "class", "classes")
    ('1 image', '2,624 images', '2 classes')
    """
    return f"{count:,} {thing if count == 1 else plural or thing + 's'}"
