"""``etude doctor TRAIN --data``."""

from __future__ import annotations

import json

import pytest

from picture_folders import write_classes, write_flat

QUICK = ("--recipe", "quick", "--set", "model.feature_size=32")


def test_faults_are_shown(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=20, side=32)
    (train / "round" / "bad.png").write_bytes(b"no image")
    (train / "striped" / "same.png").write_bytes((train / "round" / "003.png").read_bytes())
    ended = etude("doctor", train, "--data", *QUICK)
    assert ended.code == 0, ended.err
    assert "41 images in 2 classes" in ended.out
    assert "round/bad.png" in ended.out
    assert "same file" in ended.out
    assert "images like them agree with" in " ".join(ended.out.split())  # how far suspicions are to be believed
    assert "This machine" not in ended.out
    assert "\x1b" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_json_is_the_only_thing_on_standard_output(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=20, side=32)
    test = write_flat(tmp_path / "test", count=12, side=32)
    (test / "copy.png").write_bytes((train / "round" / "004.png").read_bytes())
    ended = etude("doctor", train, "--data", "--test", test, "--json", *QUICK)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    tree = json.loads(ended.out)
    assert tree["images"] == 40
    assert tree["shift"]["images"] == [40, 13]
    assert [one["b"] for one in tree["near_duplicates"] if "test" in one["splits"]] == ["copy.png"]
    assert isinstance(tree["warnings"], list)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("doctor", "--data"), "no TRAIN was given"),
        (("doctor", "nowhere", "--data"), "nowhere does not exist"),
        (("doctor", "train", "--test", "train"), "add --data"),
        (("doctor", "train", "--seed", "3"), "add --data"),
        (("doctor", "train", "--data", "--recipe", "nothing"), "nothing"),
        (("doctor", "train", "--data", "--seed", "-3"), "--seed is -3"),
    ],
)
def test_mistakes_are_told_in_one_sentence(etude, tmp_path, words, told):
    write_classes(tmp_path / "train", count=3)
    ended = etude(*words)
    assert ended.code == 2
    assert told in ended.err
    assert len(ended.err.strip().splitlines()) == 1
