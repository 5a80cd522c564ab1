from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from etude.recipe import NAMED
from etude.timeline import PRESETS, timeline_from_tree

TRAINED = [name for name in NAMED if name != "quick"]


def rows_of(text: str) -> dict[str, list[str]]:
    """The table's rows by their first word or words; two blanks and more part the cells."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 1}


@pytest.mark.parametrize("name", TRAINED)
def test_every_named_recipe_is_shown(etude, name: str):
    ended = etude("timeline", name)
    assert (ended.code, ended.err) == (0, "")
    assert f"Timeline of {name}" in ended.out
    assert "finish" in ended.out
    assert all(len(line) <= 120 for line in ended.out.splitlines())


def test_the_table_says_what_moves_in_which_phase(etude):
    rows = rows_of(etude("timeline", "--set", "train.lr=0.01", "--set", "timeline.start_size=128").out)
    assert rows["share"] == ["10%", "70%", "20%"]
    assert rows["steps"] == ["100", "700", "200"]
    assert rows["epochs"] == ["0.8", "5.6", "1.6"]
    assert rows["learning rate"] == ["0 → 0.01", "0.01 → 2e-3", "2e-3 → 0"]
    assert rows["image size (px)"] == ["128", "128 → 224", "224"]
    assert rows["augmentation"] == ["0 → 0.5", "0.5 → 1", "0"]


def test_cycles_are_counted_and_plateaus_told(etude):
    assert rows_of(etude("timeline", "cyclic").out)["learning rate"][0].endswith("4 peaks")
    told = etude("timeline", "plateau", "--set", "plateau.patience=7").out
    assert "patience 7" in told


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["--steps", 200], "200"),
        (["--epoch-steps", 10], "80"),
        (["--epoch-steps", 10, "--set", "timeline.length=3ep"], "30"),
        (["--set", "timeline.length=70st"], "70"),
        (["--set", "timeline.length=1m", "--step-seconds", 0.5], "120"),
        (["five-minutes", "--steps", 300], "300"),
    ],
)
def test_the_run_may_be_of_any_size(etude, words: list[object], steps: str):
    ended = etude("timeline", *words)
    assert ended.code == 0, ended.err
    assert f"for a run of {steps} steps" in ended.out


def test_an_assumed_pace_is_told(etude):
    words = ("timeline", "--set", "timeline.warmup=10s")
    assert "as if a step took 0.1 s" in etude(*words).out
    assert "as if" not in etude(*words, "--step-seconds", 0.2).out
    assert rows_of(etude(*words, "--step-seconds", 0.2).out)["steps"][0] == "50"


def test_list_names_every_preset(etude):
    ended = etude("timeline", "--list")
    assert ended.code == 0
    told = " ".join(ended.out.split())
    for name, preset in PRESETS.items():
        assert f"{name} {preset.line}" in told
    assert json.loads(etude("timeline", "--list", "--json").out) == {name: made.line for name, made in PRESETS.items()}


def test_json_holds_the_resolved_timeline(etude):
    ended = etude("timeline", "progressive", "--json", "--steps", 400)
    tree = json.loads(ended.out)
    assert (tree["recipe"], tree["steps"], tree["epoch_steps"]) == ("progressive", 400, 50)
    timeline = timeline_from_tree(tree["timeline"])
    assert timeline.is_resolved
    assert [phase["name"] for phase in tree["phases"]] == [phase.name for phase in timeline.phases]
    assert sum(phase["steps"] for phase in tree["phases"]) == pytest.approx(400)
    assert tree["phases"][-1]["quantities"]["lr"]["to"] == 0


@pytest.mark.parametrize("name", ["plan.png", "deep/plan.svg"])
def test_plot_draws_the_figure(etude, tmp_path: Path, name: str):
    ended = etude("timeline", "one-cycle", "--plot", name)
    assert ended.code == 0
    assert f"{name} shows it" in ended.out
    assert (tmp_path / name).stat().st_size > 10_000


def test_a_recipe_file_with_phases_of_its_own(etude, tmp_path: Path):
    phases = [f'[[timeline.phases]]\nname = "p{number}"\nlength = "1ep"\nlr = 1.0\n' for number in range(7)]
    (tmp_path / "mine.toml").write_text("\n".join(phases), encoding="utf-8")
    ended = etude("timeline", "mine.toml", "--epoch-steps", 20)
    assert ended.code == 0, ended.err
    assert "for a run of 140 steps, 7 epochs" in ended.out
    assert rows_of(ended.out)["p3"][:3] == ["14.3%", "20", "1"]  # many phases stand below each other


def test_warnings_of_the_timeline_are_told(etude, tmp_path: Path):
    (tmp_path / "jump.toml").write_text(
        '[[timeline.phases]]\nname = "up"\nlength = 0.5\nlr = 1.0\n'
        '[[timeline.phases]]\nname = "down"\nlength = 0.5\nlr = 0.01\naugment = 0.0\n',
        encoding="utf-8",
    )
    ended = etude("timeline", "jump.toml")
    assert ended.code == 0
    assert "warning:" in ended.out
    assert "'down'" in ended.out
    assert json.loads(etude("timeline", "jump.toml", "--json").out)["warnings"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quick"], "stages"),
        (["cylcic"], "Did you mean 'cyclic'?"),
        (["--set", "timeline.warmpu=0.1"], "Did you mean 'timeline.warmup'?"),
        (["--set", "timeline.warmup=3ep", "--steps", 100, "--epoch-steps", 40], "--epoch-steps"),
        (["--set", "timeline.warmup=500st", "--epoch-steps", 10], "500"),
        (["--plot", "plan.pdf"], ".png or .svg"),
        (["--steps", 0], "--steps is 0"),
        (["--epoch-steps", "nan"], "--epoch-steps is nan"),
        (["--step-seconds", -1], "--step-seconds is -1"),
        (["--list", "--plot", "plan.png"], "--list"),
    ],
)
def test_mistakes_end_in_one_sentence(etude, tmp_path: Path, words: list[object], said: str):
    ended = etude("timeline", *words)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.startswith("etude: ")
    assert ended.err.count("\n") == 1
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []


def test_torch_is_not_loaded_nor_matplotlib_without_a_plot():
    code = (
        "import sys; from etude.cli.main import app\n"
        "try: app(['timeline'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'lightning', 'timm'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "Timeline of default" in told.stdout
    assert told.stderr.strip() == "[]"
