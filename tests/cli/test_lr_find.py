"""``etude lr-find`` and ``etude fit --lr``."""

from __future__ import annotations

import json

import pytest

from picture_folders import write_classes

SMALL = ("--set", "model.backbone=tiny", "--set", 'stages=["finetune"]', "--set", "timeline.final_size=32")
SMALL += ("--set", "train.batch_size=8")


@pytest.mark.slow
def test_the_search_draws_and_suggests(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=30)
    ended = etude("lr-find", train, "--plot", "found.png", *SMALL)
    assert ended.code == 0, ended.err
    assert "suggested: --lr " in ended.out
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "found.png", "train"]


@pytest.mark.slow
def test_fit_searches_before_it_trains(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=30)
    ended = etude("fit", train, "--lr", "auto", "--out", "run", "--set", "train.epochs=2", *SMALL)
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["lr_find"]["lr"] > 0
    assert [stage["name"] for stage in record["stages"]].count("lr-find") == 1
    assert (tmp_path / "run" / "lr_find.png").is_file()
    assert f"learning rate: {record['lr_find']['lr']:.2g}" in ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("fit", "train", "--lr", "fast"), "--lr is 'fast'; give a number such as 1e-3, or auto"),
        (("fit", "train", "--lr", "-1"), "train.lr received -1"),
        (("lr-find", "train", "--plot", "found.gif"), "ends in .png or .svg"),
        (("lr-find", "train", "--recipe", "quick"), "fine-tunes no network"),
        (("lr-find", "nowhere"), "nowhere"),
        (("fit", "train", "--recipe", "quick", "--lr", "auto"), "fine-tunes no network"),
    ],
)
def test_mistakes_are_told_in_one_sentence(etude, tmp_path, words, told):
    write_classes(tmp_path / "train", count=3)
    ended = etude(*words)
    assert ended.code == 2
    assert told in ended.err
    assert len(ended.err.strip().splitlines()) == 1
