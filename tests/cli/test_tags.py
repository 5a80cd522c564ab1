"""``etude fit --tag``: words that a run is found by, from its start."""

from __future__ import annotations

import json

from picture_folders import write_classes

QUICK = ("--recipe", "quick", "--set", "model.feature_size=32")


def test_tags_are_in_the_record_and_the_list_finds_them(etude, tmp_path):
    write_classes(tmp_path / "my images", count=6)
    ended = etude("fit", "my images", *QUICK, "--tag", "baseline", "--tag", "lr:3e-4", "--out", "runs/one")
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())
    assert record["tags"] == ["baseline", "lr:3e-4"]
    assert record["data"]["train"] == "my images"  # as the user gave it
    assert "#lr:3e-4" in (tmp_path / "runs" / "one" / "report.html").read_text()
    for words, found in ((("--tag", "baseline"), ["one"]), (("--tag", "other"), [])):
        assert [run["path"] for run in json.loads(etude("journal", "list", "--json", *words).out)] == found


def test_a_tag_of_two_words_is_refused(etude, tmp_path):
    write_classes(tmp_path / "train", count=4)
    ended = etude("fit", "train", *QUICK, "--tag", "two words")
    assert ended.code == 2
    assert "'two words' cannot be a tag" in ended.err
    assert not (tmp_path / "runs").exists()
