"""Text as a terminal may show it."""

from __future__ import annotations

import re

# Control characters, marks and overrides of the direction of writing, separators of lines and paragraphs.
_COMMANDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Return ``text`` with every character that acts on a terminal as an escape; a name may hold any of them.

    >>> print(visible("a\x1b[31m\u202eb\nc [bold] é"))
    a\x1b[31m\u202eb\nc [bold] é
    """
    return _COMMANDS.sub(lambda match: repr(match.group())[1:-1], text)
