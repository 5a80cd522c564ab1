"""What tests ask of a page: its elements and texts, as a browser's parser would find them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

# Elements without an end; SVG shapes come with one.
_EMPTY = {"meta", "link", "img", "br", "input"}


@dataclass
class Page(HTMLParser):
    """A parsed page.

    Args:
        text: the page's source.
        elements: tags with their attributes, in order.
        words: all texts outside of style and script, in order.
        unclosed: tags that were closed in the wrong order.
    """

    text: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self.feed(self.text)
        self.close()
        self.unclosed += self._open

    @classmethod
    def read(cls, path: Path) -> Page:
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _EMPTY and (not self._open or self._open.pop() != tag):
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script") and data.strip():
            self.words.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every ``tag``."""
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> set[str]:
        """Return every id."""
        return {attributes["id"] for _, attributes in self.elements if "id" in attributes}

    def said(self) -> str:
        """Return all texts, spaces between them."""
        return " ".join(" ".join(self.words).split())
