"""Chromium without a window, spoken to over a pair of pipes by its DevTools protocol; the standard library is enough.

Source: chromedevtools.github.io/devtools-protocol; with ``--remote-debugging-pipe`` Chromium reads commands from file
descriptor 3 and writes answers and events to 4, JSON texts that end in a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 60.0  # seconds for an answer, on a busy machine
_FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-dev-shm-usage", "--force-color-profile=srgb", "--no-sandbox"),  # a root user has no sandbox
)


def program() -> str | None:
    """Return the browser's program, or None where there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Browser:
    """A running browser."""

    into: int
    out_of: int
    _rest: bytes = b""
    _number: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come in between are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.into, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _PATIENCE
        while True:
            told = self._next(until)
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self.events.append(told)

    def wait_for(self, method: str, session: str) -> dict[str, Any]:
        """Return the first event of that name."""
        until = time.monotonic() + _PATIENCE
        while True:
            for event in self.events:
                if event.get("method") == method and event.get("sessionId") == session:
                    return event["params"]
            self.events.append(self._next(until))

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self.out_of], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            if not (found := os.read(self.out_of, 1 << 20)):
                raise EOFError("Chromium has ended")
            self._rest += found
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@dataclass
class Tab:
    """A page in the browser, of a given width and colour scheme."""

    browser: Browser
    session: str

    def run(self, script: str) -> Any:
        """Return the value of an expression of JavaScript, a JSON value."""
        found = self.browser.ask("Runtime.evaluate", self.session, expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def said(self) -> list[str]:
        """Return what the console was told, and exceptions."""
        wanted = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self._events() if event.get("method") in wanted]

    def requests(self) -> list[str]:
        """Return every address that the page has asked for, also in vain."""
        return list(self._asked().values())

    def refused(self) -> list[str]:
        """Return the addresses that the page's own policy kept from being asked for."""
        failed = (event["params"] for event in self._events() if event.get("method") == "Network.loadingFailed")
        asked = self._asked()
        return [asked[one["requestId"]] for one in failed if one.get("blockedReason") == "csp"]

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self.browser.ask("Page.getLayoutMetrics", self.session)["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16_000), "scale": 1}
        asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        found = self.browser.ask("Page.captureScreenshot", self.session, **asked)
        path.write_bytes(base64.b64decode(found["data"]))

    def printed(self) -> bytes:
        """Return the page as a PDF, A4."""
        found = self.browser.ask("Page.printToPDF", self.session, preferCSSPageSize=True, printBackground=False)
        return base64.b64decode(found["data"])

    def _asked(self) -> dict[str, str]:
        sent = (event["params"] for event in self._events() if event.get("method") == "Network.requestWillBeSent")
        return {one["requestId"]: one["request"]["url"] for one in sent}

    def _events(self) -> list[dict[str, Any]]:
        return [event for event in self.browser.events if event.get("sessionId") == self.session]


@contextmanager
def browser() -> Generator[Browser]:
    """Start Chromium and end it with the block."""
    found = program()
    if found is None:
        raise RuntimeError("there is no Chromium: apt-get install chromium")
    commands, into = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in os.pipe())
    out_of, answers = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in os.pipe())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        actions = [
            (os.POSIX_SPAWN_DUP2, commands, 3),
            (os.POSIX_SPAWN_DUP2, answers, 4),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        words = [found, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = os.posix_spawn(found, words, os.environ, file_actions=actions)
        os.close(commands)
        os.close(answers)
        one = Browser(into, out_of)
        try:
            yield one
        finally:
            with suppress(OSError, EOFError, TimeoutError, RuntimeError):
                one.ask("Browser.close")
            os.waitpid(process, 0)
            os.close(into)
            os.close(out_of)


@contextmanager
def opened(browser: Browser, page: Path, *, width: int = 1280, dark: bool = False) -> Generator[Tab]:
    """Open a file and yield its tab once it is loaded.

    Args:
        browser: a running one.
        page: the file.
        width: of the window in CSS pixels; up to 600 the page is on a phone.
        dark: whether the reader prefers dark colours.
    """
    target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
    session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser.ask(f"{domain}.enable", session)
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width <= 600}
    browser.ask("Emulation.setDeviceMetricsOverride", session, **metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.ask("Emulation.setEmulatedMedia", session, features=[scheme])
    browser.ask("Page.navigate", session, url=page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired", session)
    try:
        yield Tab(browser, session)
    finally:
        browser.ask("Target.closeTarget", targetId=target)
        browser.events = [event for event in browser.events if event.get("sessionId") != session]
