"""Every command and every Python block of the README, and of the page of timelines, runs as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from doc_blocks import blocks, commands, stop
from etude.core.predictions import Predictions
from picture_folders import write_classes, write_flat

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")
TIMELINES = (REPO / "docs/timelines.md").read_text(encoding="utf-8")
TOML, PYTHON = blocks(TIMELINES, "toml"), blocks(README, "python")

# Added to every command that trains and does not set it: features of 32 px in place of 224, and few steps.
SMALL = {"model.feature_size": "32", "train.epochs": "4"}
SMALL_STEPS = {"train.batch_size": "4"}  # of a search of the learning rate, which takes a hundred


def smaller(words: list[str]) -> list[str]:
    """Return the command with the settings of small images."""
    shorter = {"--epochs": "2", "--budget": "20s"}
    words = [shorter.get(before, word) for before, word in pairwise(["", *words])]
    given = " ".join(words)
    if words[1] not in ("fit", "lr-find", "ablate"):
        return words
    small = SMALL | SMALL_STEPS if {"lr-find", "--lr"} & {*words} else SMALL
    return [*words, *(part for key, value in small.items() if key not in given for part in ("--set", f"{key}={value}"))]


@pytest.mark.slow
def test_etude_commands_run_in_order(etude, tmp_path):
    """As they stand, on small images; the recipe of one's own is read as it stands, and trained at smaller sizes."""
    write_classes(tmp_path / "train", count=20)
    write_classes(tmp_path / "labelled", count=3, side=25)  # other files than those trained on
    write_flat(tmp_path / "test")
    words_of = [shlex.split(line) for line in commands(README + "\n" + TIMELINES)]
    assert len(words_of) >= 5
    (tmp_path / "mine.toml").write_text(TOML[0])
    assert etude("timeline", "mine.toml").code == 0
    (tmp_path / "mine.toml").write_text(TOML[0].replace("128", "24").replace("224", "32"))
    for words in words_of:
        if words[1] == "resume":
            stop(tmp_path / words[2])
        ended = etude(*smaller(words)[1:])
        assert ended.code == 0, (words, ended.err)
        assert not ended.err, words
        for option in ("--out", "--plot"):
            if option in words:
                made = tmp_path / words[words.index(option) + 1]
                assert made.is_file() or (made / "run.json").is_file()


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "train", count=20)
    write_classes(tmp_path / "labelled", count=3, side=25)  # other files than those trained on
    write_flat(tmp_path / "test")
    assert PYTHON
    for text in PYTHON:
        exec(compile(text, "README.md", "exec"), {})  # the README is our own text
    assert len(Predictions.load(tmp_path / "runs" / "python" / "test.npz")) == 6
    assert (tmp_path / "submission.csv").is_file()


@pytest.mark.parametrize("line", commands(README, "make"))
def test_make_targets_exist(line):
    told = subprocess.run([*shlex.split(line), "--dry-run"], cwd=REPO, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


@pytest.mark.each("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (REPO / target).exists()
