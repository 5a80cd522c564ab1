"""``etude journal``: what people see of the runs they have made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from etude.journal.record import read_run
from recorded_runs import edit_record, opened, write_killed_run, write_run

COMMANDS = ("list", "show", "compare", "note", "tag", "gc", "render", "report", "watch")


def sentence_of(ended) -> str:
    assert ended.code == 2, ended.out
    assert len(ended.err.strip().splitlines()) == 1
    assert ended.err.startswith("etude: ")
    return ended.err


def lines_of(ended) -> list[str]:
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out  # no colour where there is no terminal
    assert max(map(len, ended.out.splitlines())) <= 80, ended.out
    return ended.out.splitlines()


def names_of(ended) -> list[str]:
    assert ended.code == 0, ended.err
    return [run["path"] for run in json.loads(ended.out)]


@pytest.fixture
def runs(etude, tmp_path) -> Path:
    """Three finished runs, of which one is part of another, and one that was killed."""
    best = write_run(tmp_path / "runs" / "best", right=range(90), tags=["paper"], command=["etude", "fit", "birds"])
    write_run(tmp_path / "runs" / "best" / "round-1", right=range(60), parent=best.id)
    write_run(tmp_path / "runs" / "worst", right=range(50), recipe="own", seed=5, settings={"train.lr": 0.2})
    write_killed_run(tmp_path / "runs" / "killed")
    for day, name in enumerate(("worst", "killed", "best"), 1):
        edit_record(tmp_path / "runs" / name, started=f"2025-01-0{day}T10:00:00+00:00")
    return tmp_path / "runs"


def test_help_names_the_commands(etude):
    told = etude("journal", "--help")
    assert told.code == 0
    assert all(name in told.out for name in COMMANDS)
    assert "journal" in etude("--help").out


def test_list_shows_the_newest_first(etude, runs):
    lines = lines_of(etude("journal", "list"))
    assert lines[0] == "4 runs in runs"
    told = [line.split() for line in lines[3:6]]
    assert [words[0] for words in told] == ["best", "killed", "worst"]
    assert [words[2] for words in told] == ["finished", "killed", "finished"]
    assert ("90.00%" in told[0], "50.00%" in told[2], "paper" in told[0]) == (True, True, True)
    assert lines[6] == "1 more, part of these, left out: --all shows them"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["best", "killed", "worst"]),
        (("--all",), ["best/round-1", "best", "killed", "worst"]),
        (("--sort", "score"), ["best", "worst", "killed"]),
        (("--sort", "log_loss"), ["best", "worst", "killed"]),
        (("--sort", "name"), ["best", "killed", "worst"]),
        (("--tag", "paper"), ["best"]),
        (("--tag", "paper", "--tag", "other"), []),
        (("--data", "BIRDS"), ["best"]),
        (("--data", "abc123"), ["best", "worst"]),
        (("--min-score", "0.6"), ["best"]),
        (("--min-score", "0.6", "--all", "--limit", "1"), ["best/round-1", "best"]),
    ],
)
def test_list_sorts_and_filters(etude, runs, words, expected):
    assert names_of(etude("journal", "list", "--json", *words)) == expected


def test_list_sorts_by_seconds(etude, runs):
    for name, seconds in (("best", 30.0), ("worst", 10.0), ("killed", 20.0)):
        edit_record(runs / name, seconds=seconds)
    assert names_of(etude("journal", "list", "--json", "--sort", "seconds")) == ["worst", "killed", "best"]


def test_list_says_how_many_it_leaves_out(etude, runs):
    lines = lines_of(etude("journal", "list", "--limit", 1))
    assert lines[0] == "4 runs in runs; 1 shown, --limit 0 shows all"
    assert lines[3].startswith("best")
    assert lines_of(etude("journal", "list", "--min-score", 0.8))[0] == "4 runs in runs, 1 of them fit"
    assert lines_of(etude("journal", "list", "--tag", "none")) == ["4 runs in runs, 0 of them fit"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--sort", "scor"),
            "--sort is 'scor'; give one of started, score, log_loss, seconds, name. Did you mean 'score'?",
        ),
        (("--min-score", "90"), "--min-score is 90; give an accuracy from 0 to 1"),
        (("--limit", "-1"), "--limit is -1"),
        (("--runs", "nowhere"), "there is no folder nowhere of runs"),
    ],
)
def test_list_refuses(etude, runs, words, told):
    assert told in sentence_of(etude("journal", "list", *words))


def test_a_damaged_record_is_listed_and_told(etude, runs):
    (runs / "worst" / "run.json").write_text("{")
    ended = etude("journal", "list")
    assert ended.code == 0
    assert "warning: runs/worst/run.json is not valid JSON" in ended.out
    assert "damaged" in ended.out
    assert "is not valid JSON" in sentence_of(etude("journal", "show", "worst"))


def test_show_tells_everything_of_a_run(etude, runs):
    etude("journal", "note", "best", "more", "dropout")
    lines = lines_of(etude("journal", "show", "best"))
    told = "\n".join(lines)
    record = read_run(runs / "best")
    for part in (
        record["id"], "etude fit birds", "accuracy 90.00% (95% interval 82.6% to 94.5%)", "log loss 0.25",
        "finished", "quick, seed 3", "abc123", "data.fit", "crop", "more dropout", "best/round-1", "60.00%", "paper",
    ):  # fmt: skip
        assert part in told
    stages = [line.split() for line in lines if line.startswith(("head", "fine-tune"))]
    assert [(words[0], words[1]) for words in stages] == [("head", "finished"), ("fine-tune", "finished")]
    assert "0.5" in stages[0]
    assert json.loads(etude("journal", "show", "runs/best", "--json").out) == record


def test_show_tells_where_a_run_stopped(etude, runs):
    assert "killed in fine-tune after 0.0 s" in etude("journal", "show", "killed").out
    opened(runs / "killed", resume=True).close("failed", "the disk is full")
    told = etude("journal", "show", "killed").out
    assert "failed in fine-tune" in told
    assert "resumed once: the disk is full" in told


def test_compare_tells_what_differs_and_what_it_is_worth(etude, runs):
    lines = lines_of(etude("journal", "compare", "worst", "best", "killed"))
    told = "\n".join(lines)
    gain = next(line for line in lines if line.startswith("2 ") and "100" in line.split())
    assert "+40.00 [+" in gain
    assert gain.rstrip().endswith("yes")
    settings = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("recipe", "seed"))}
    assert settings == {"recipe": ["own", "quick", "quick"], "seed": ["5", "3", "3"]}
    assert "3 cannot be scored against 1: killed holds no valid.npz" in told
    back = "\n".join(lines_of(etude("journal", "compare", "best", "worst")))
    assert "-40.00 [-" in back
    assert "no, worse" in back
    tied = write_run(runs / "tied", right=[*range(1, 90), 95])
    assert "cannot tell" in etude("journal", "compare", "best", tied.id).out
    found = json.loads(etude("journal", "compare", "worst", "best", "--json").out)
    assert found["against_first"][0]["gains"]["accuracy"]["gain"] == pytest.approx(0.4)
    assert [run["path"] for run in found["runs"]] == ["worst", "best"]


def test_compare_of_equal_runs_and_of_too_few(etude, runs):
    write_run(runs / "again", right=range(90))
    assert "no setting differs" in etude("journal", "compare", "best", "again").out
    assert "takes two different runs" in sentence_of(etude("journal", "compare", "best"))
    assert "there is no run 'bset'" in sentence_of(etude("journal", "compare", "best", "bset"))


def test_compare_draws_the_curves(etude, runs, tmp_path):
    for name in ("best", "worst"):
        (runs / name / "history.csv").write_text("epoch,seconds,valid_accuracy\n1.0,2.5,0.5\n2.0,5.0,0.9\n")
    ended = etude("journal", "compare", "best", "worst", "--plot", "curves.png")
    assert "curves.png shows the curves" in ended.out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "give a name that ends in" in sentence_of(etude("journal", "compare", "best", "worst", "--plot", "c.txt"))


def test_notes_and_tags_are_given_and_taken(etude, runs):
    assert etude("journal", "note", "best", "more dropout").out == "noted in runs/best\n"
    assert etude("journal", "tag", "best", "baseline", "mixup").out == "tags of runs/best: paper, baseline, mixup\n"
    assert etude("journal", "tag", "best", "paper", "--remove").out == "tags of runs/best: baseline, mixup\n"
    assert names_of(etude("journal", "list", "--json", "--tag", "mixup")) == ["best"]
    assert [note["text"] for note in read_run(runs / "best")["notes"]] == ["more dropout"]
    assert "the note is empty" in sentence_of(etude("journal", "note", "best"))
    assert "no tag came for runs/best" in sentence_of(etude("journal", "tag", "best"))
    assert "cannot be a tag" in sentence_of(etude("journal", "tag", "best", "two words"))
    assert "there is no run" in sentence_of(etude("journal", "note", "nothing", "x"))


@pytest.fixture
def wasteful(runs) -> Path:
    (runs / "best" / "checkpoints").mkdir()
    (runs / "best" / "checkpoints" / "last.ckpt").write_bytes(b"x" * 2_000_000)
    return runs / "best" / "checkpoints"


def test_gc_shows_what_can_go_and_removes_it_when_told(etude, wasteful, runs):
    lines = lines_of(etude("journal", "gc"))
    assert lines[0] == "2.0 MB can go from runs"
    assert lines[3].startswith("best/checkpoints")
    assert lines[-1] == "nothing was removed: give --yes to remove it"
    (found,) = [item for item in json.loads(etude("journal", "gc", "--json").out) if "checkpoints" in item["path"]]
    assert found["path"] == "runs/best/checkpoints"
    assert wasteful.is_dir()
    assert lines_of(etude("journal", "gc", "--yes"))[-1] == "2.0 MB freed"
    assert not wasteful.exists()
    assert not (runs / "killed").exists()  # it had made nothing
    assert etude("journal", "gc").out == "nothing can go from runs\n"


@pytest.mark.parametrize(("answer", "goes"), [("y", True), ("YES", True), ("n", False), ("", False)])
def test_gc_asks_where_somebody_can_answer(etude, wasteful, monkeypatch, answer, goes):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert etude("journal", "gc").code == 0
    assert wasteful.exists() != goes


def test_gc_leaves_a_run_that_was_taken_up_while_it_asked(etude, wasteful, runs, monkeypatch):
    def answer(question: str) -> str:
        opened(runs / "killed", resume=True)
        return "y"

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", answer)
    assert etude("journal", "gc").code == 0
    assert (runs / "killed").exists()
    assert not wasteful.exists()


def test_render_writes_one_page(etude, runs, tmp_path):
    assert "shows all runs" in etude("journal", "render").out
    assert (runs / "index.html").is_file()
    assert etude("journal", "render", "--out", "site.html").code == 0
    page = (tmp_path / "site.html").read_text()
    assert all(name in page for name in ("best", "worst", "killed"))


def test_report_writes_that_of_a_killed_run_and_the_page_of_all_links_to_it(etude, runs):
    etude("journal", "render")
    assert "killed/report.html" not in (runs / "index.html").read_text()
    assert etude("journal", "report", "killed").out == "runs/killed/report.html shows the run\n"
    assert "It was killed in fine-tune after 0.0 s." in (runs / "killed" / "report.html").read_text()
    etude("journal", "render")
    assert 'href="killed/report.html"' in (runs / "index.html").read_text()
    assert "there is no run 'kiled'" in sentence_of(etude("journal", "report", "kiled"))


def test_watch_writes_the_report_anew_until_the_run_ends(etude, tmp_path, monkeypatch):
    record, page = opened(tmp_path / "runs" / "busy"), tmp_path / "runs" / "busy" / "report.html"
    seen = []

    def wait(seconds: float) -> None:
        seen.append((seconds, page.read_text()))
        if len(seen) == 2:
            record.close("finished")

    monkeypatch.setattr("time.sleep", wait)
    ended = etude("journal", "watch", "busy", "--every", "2")
    assert ended.code == 0, ended.err
    assert page.as_uri() in ended.out
    assert [seconds for seconds, _ in seen] == [2, 2]
    assert all('http-equiv="refresh" content="2"' in text for _, text in seen)
    assert "refresh" not in page.read_text()
    assert "--every" in sentence_of(etude("journal", "watch", "busy", "--every", "0"))


def test_listing_runs_loads_no_templates(runs):
    code = (
        "import sys; from etude.cli.main import app\n"
        "try: app(['journal', 'list'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'jinja2', 'matplotlib', 'torch', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=runs.parent, capture_output=True, text=True, check=True)
    assert "best" in told.stdout
    assert told.stderr.strip() == "[]"


def test_long_and_odd_names_stay_within_the_screen(etude, runs):
    odd = "x" * 70 + "[red]\x1b[31m"
    write_run(runs / odd, tags=["a" * 40, "b" * 40], recipe="r" * 50)
    lines_of(etude("journal", "list"))
    lines_of(etude("journal", "gc"))
    assert "\x1b" not in etude("journal", "show", odd).out
