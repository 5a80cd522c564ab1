"""What a run shows: its plan, progress bars with rate and time left, warnings, and a final table."""

from __future__ import annotations

import errno
import math
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from etude.core.context import Advance, BarContext, Silent
from etude.core.text import duration, visible

_LOG_WIDTH = 80
_SECONDS_BETWEEN_LINES = 10.0
_LINES = 20  # of a bar at most
_SECONDS_WORTH_A_LINE = 2.0
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?± ?\d[\d.]*)?( ?(%|[a-zA-Zµ/]{1,8}))?")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would exit with code 1 and no word; the command line knows what a pipe whose reader has gone means.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Screen:
    """Shows colours and live bars on a terminal, plain lines elsewhere; ``clock`` gives their seconds."""

    def __init__(
        self, quiet: bool = False, file: IO[str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        plain: dict[str, Any] = {"file": file, "markup": False, "highlight": False, "emoji": False}
        console = _Console(**plain)
        self._live = console.is_terminal and not console.is_dumb_terminal
        self._console = console if self._live else _Console(**plain, width=_LOG_WIDTH, no_color=True)
        self._quiet, self._clock, self._last = quiet, clock, -math.inf
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._open_bars = 0
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Show one line, never wrapped, so that a path can be copied."""
        if not self._quiet:
            self._print(Text(self._safe(text)))

    def warn(self, text: str) -> None:
        """Show ``warning: text``, in its place among the other lines; also when quiet."""
        self.warnings.append(text)
        self._print(Text.assemble(("warning:", "yellow"), " ", self._safe(text)))

    def plan(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        if self._quiet:
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for key, value in rows:
            grid.add_row(Text("  " + self._safe(key), style="cyan"), Text(self._safe(value)))
        self._print(Text(self._safe(title), style="bold"))
        self._console.print(grid)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> None:
        """Show a table; a column whose cells are all numbers (with a unit perhaps) is aligned to the right."""
        if self._quiet:
            return
        cells = [[self._safe(_cell_text(cell)) for cell in row] for row in rows]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for position, name in enumerate(columns):
            filled = [row[position] for row in cells if row[position]]
            numeric = bool(filled) and all(_NUMBER.fullmatch(text) for text in filled)
            table.add_column(Text(self._safe(name)), justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        if title:
            self._print(Text(self._safe(title), style="bold"))
        self._console.print(table)

    def bar(self, name: str, total: int, unit: str = "images") -> BarContext:
        """Open a bar, safe to advance from threads.

        Without a terminal there is a line at the end, and before it wherever none came for 10 s and a 20th of the time.
        """
        if self._quiet:
            return Silent().bar(name, total, unit)
        return self._live_bar(name, total, unit) if self._live else self._plain_bar(name, total, unit)

    @contextmanager
    def _live_bar(self, name: str, total: int, unit: str) -> Generator[Advance]:
        bars = self._bars_started()
        task = bars.add_task(self._safe(name), total=total, unit=self._safe(unit))

        def advance(count: int = 1) -> None:
            bars.advance(task, count)

        try:
            yield advance
        finally:
            with self._lock:
                self._open_bars -= 1
                if self._open_bars:
                    bars.remove_task(task)
                else:
                    self._bars = None
                    bars.stop()

    def _bars_started(self) -> Progress:
        """Return the one live display that all open bars share: a terminal has room for one only."""
        with self._lock:
            if self._bars is None:
                done = TextColumn("{task.completed:,.0f}/{task.total:,.0f}", "progress.download")
                columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), done, _Rate()
                self._bars = Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=self._console)
                self._bars.start()
            self._open_bars += 1
            return self._bars

    @contextmanager
    def _plain_bar(self, name: str, total: int, unit: str) -> Generator[Advance]:
        start = last = self._clock()
        done, wait = 0, _SECONDS_BETWEEN_LINES

        def advance(count: int = 1) -> None:
            nonlocal done, last, wait
            with self._lock:
                done += count
                now = self._clock()
                due = now - max(last, self._last) >= wait and done < total
                last = now if due else last
                so_far = done
            if due:
                wait = max(wait, (now - start) / so_far * total / _LINES if so_far else wait)
                rate = so_far / (now - start)
                left = f", {duration((total - so_far) / rate)} left" if rate > 0 else ""
                self.say(f"{name} {so_far:,} of {total:,} {unit} ({_rate(rate, unit)}{left})")

        try:
            yield advance
        finally:
            seconds = self._clock() - start
            if seconds > _SECONDS_WORTH_A_LINE:
                amount = f"{done:,}" if done >= total else f"{done:,} of {total:,}"
                self.say(f"{name} {amount} {unit} in {duration(seconds)} ({_rate(done / seconds, unit)})")

    def _print(self, text: Text) -> None:
        self._last = self._clock()
        self._console.print(text, soft_wrap=True)

    def _safe(self, text: str) -> str:
        """Return ``text`` with what acts on a terminal, and what the output's encoding lacks, as visible escapes."""
        return visible(text).encode(self._console.encoding, "backslashreplace").decode(self._console.encoding)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.completed / task.elapsed if task.finished and task.elapsed else task.speed
        return Text(_rate(speed, task.fields["unit"]) if speed else "", style="progress.data.speed")


def _rate(per_second: float, unit: str) -> str:
    return f"{per_second:,.0f} {unit}/s" if per_second >= 10 else f"{per_second:.2g} {unit}/s"


def _cell_text(cell: str | float | None) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"
