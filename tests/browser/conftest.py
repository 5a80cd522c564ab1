"""These tests are collected where Chromium is; ``make test-browser`` fails where it is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser.chromium import Browser, browser, program

collect_ignore_glob = [] if program() else ["test_*.py"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one
