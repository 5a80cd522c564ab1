from __future__ import annotations

import io
import re
import threading

import pytest

from etude.core.context import Progress
from etude.journal.screen import Screen


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def plain(quiet: bool = False) -> tuple[Screen, io.StringIO, Clock]:
    file, clock = io.StringIO(), Clock()
    return Screen(quiet, file, clock), file, clock


def test_a_long_bar_in_a_log_is_lines_now_and_then():
    screen, file, clock = plain()
    progress: Progress = screen
    with progress.bar("decode", 2624) as advance:
        for _ in range(26):
            clock.now += 1
            advance(100)
        clock.now += 0.24
        advance(24)
    assert file.getvalue().splitlines() == [
        "decode 1,000 of 2,624 images (100 images/s, 16.2 s left)",
        "decode 2,000 of 2,624 images (100 images/s, 6.2 s left)",
        "decode 2,624 images in 26.2 s (100 images/s)",
    ]


def test_a_short_bar_in_a_log_is_silent_and_a_longer_one_ends_in_a_line():
    screen, file, clock = plain()
    with screen.bar("split", 10) as advance:
        clock.now += 2
        advance(10)
    assert file.getvalue() == ""
    with screen.bar("decode", 2624) as advance:
        clock.now += 4.1
        advance(2624)
    assert file.getvalue() == "decode 2,624 images in 4.1 s (640 images/s)\n"


def test_a_bar_that_is_broken_off_says_how_far_it_came():
    screen, file, clock = plain()

    def broken_off() -> None:
        with screen.bar("train", 100, "steps") as advance:
            clock.now += 80
            advance(4)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken_off()
    assert file.getvalue().splitlines() == [
        "train 4 of 100 steps (0.05 steps/s, 32 min left)",
        "train 4 of 100 steps in 1 min 20 s (0.05 steps/s)",
    ]


def test_a_bar_of_hours_and_one_among_other_lines_write_no_more_than_they_must():
    screen, file, clock = plain()
    with screen.bar("train", 10_000) as advance:
        for step in range(10_000):
            clock.now += 1
            advance()
            if step in (5_000, 5_400):
                screen.say("validated")
    lines = file.getvalue().splitlines()
    assert 15 <= len(lines) <= 23
    first = lines.index("validated")
    assert lines[first + 1] == "validated"


def test_bars_of_nothing_and_nested_bars_in_a_log():
    screen, file, clock = plain()
    with screen.bar("epochs", 2, "epochs") as epoch:
        for _ in range(2):
            with screen.bar("steps", 0, "steps"):
                clock.now += 3
            epoch()
    assert file.getvalue().splitlines() == [
        "steps 0 steps in 3.0 s (0 steps/s)",
        "steps 0 steps in 3.0 s (0 steps/s)",
        "epochs 2 epochs in 6.0 s (0.33 epochs/s)",
    ]


def test_advances_from_several_threads_add_up():
    screen, file, clock = plain()
    with screen.bar("decode", 4000) as advance:
        threads = [threading.Thread(target=lambda: [advance() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        clock.now += 4
    assert file.getvalue() == "decode 4,000 images in 4.0 s (1,000 images/s)\n"


def test_a_terminal_shows_count_rate_and_time_and_nested_bars():
    file = Terminal()
    screen = Screen(file=file)
    with screen.bar("epochs", 2, "epochs") as epoch:
        for number in range(2):
            with screen.bar("[red]steps", 1200, "steps") as advance:
                advance(1200)
                screen.say(f"epoch {number} done")
            epoch()
    with screen.bar("decode", 1200) as advance:
        advance(1200)
    shown = file.getvalue()
    assert "\x1b[" in shown
    assert "[red]steps" in shown
    assert re.search(r"decode .*1,200/1,200.* images/s.*0:00:00", shown)
    assert "2/2" in shown
    assert "epoch 1 done" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2  # the cursor is hidden and given back, twice


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    file, clock = Terminal(), Clock()
    with Screen(file=file, clock=clock).bar("decode", 5) as advance:
        clock.now += 5
        advance(5)
    assert file.getvalue() == "decode 5 images in 5.0 s (1 images/s)\n"


def test_texts_are_shown_as_they_are():
    screen, file, _ = plain()
    screen.say("[bold]class[/bold] [/] :smile: 🐕 'x' 12")
    screen.warn("[red]3 files are bad")
    assert file.getvalue().splitlines() == [
        "[bold]class[/bold] [/] :smile: 🐕 'x' 12",
        "warning: [red]3 files are bad",
    ]


def test_long_lines_are_not_broken():
    screen, file, _ = plain()
    path = "/data/" + "folder/" * 30 + "image.jpg"
    screen.say(path)
    screen.warn(path)
    assert file.getvalue().splitlines() == [path, f"warning: {path}"]


def test_nothing_in_a_text_commands_the_terminal():
    screen, file, _ = plain()
    evil = "a\x1b[2Jb\rc\x07\u202e\u2066\nd\udcff"
    screen.say(evil)
    screen.plan(evil, [(evil, evil)])
    screen.table(evil, [evil], [[evil]])
    shown = file.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "\u202e" not in shown
    assert shown.count(r"a\x1b[2Jb\rc\x07\u202e\u2066\nd\udcff") == 7


def test_an_output_that_is_not_unicode_gets_escapes():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    screen = Screen(file=file)
    screen.say("größe 🐕")
    screen.table("t", ["größe"], [["🐕"]])
    shown = raw.getvalue().decode("ascii")
    assert r"gr\xf6\xdfe \U0001f415" in shown


def test_quiet_keeps_warnings_only():
    screen, file, clock = plain(quiet=True)
    screen.say("hello")
    screen.plan("plan", [("a", "b")])
    screen.table("table", ["a"], [["b"]])
    with screen.bar("decode", 10) as advance:
        clock.now += 60
        advance(10)
    screen.warn("3 files are bad")
    assert file.getvalue() == "warning: 3 files are bad\n"


def test_a_plan_is_aligned():
    screen, file, _ = plain()
    screen.plan("Plan", [("images", "4,000"), ("device", "[cpu] " + "long " * 30)])
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[:3] == ["Plan", "  images  4,000", "  device  [cpu] " + " ".join(["long"] * 13)]
    assert lines[3].startswith(" " * 10 + "long")
    assert max(map(len, lines)) <= 80


def test_a_table_fits_and_aligns_numbers():
    screen, file, _ = plain()
    screen.table(
        "Result",
        ["stage", "seconds", "valid", "why"],
        [["features", 12.345, "93.4%", "x" * 100], ["fine-tune", 12345, "94.0 ± 0.3%", None], ["2-fold", None, "", ""]],
    )
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[0] == "Result"
    assert max(map(len, lines)) <= 80
    numbers = [line for line in lines if "12.35" in line or "12,345" in line]
    ends = [line.index(text) + len(text) for line, text in zip(numbers, ("12.35", "12,345"), strict=True)]
    assert ends[0] == ends[1]
    ends = [line.index("%") for line in numbers]
    assert ends[0] == ends[1]
    assert "".join(lines).count("x") == 100
    assert any(line.startswith("2-fold") for line in lines)


def test_a_table_without_rows_shows_its_header():
    screen, file, _ = plain()
    screen.table("", ["stage", "seconds"], [])
    assert file.getvalue().split()[:2] == ["stage", "seconds"]
