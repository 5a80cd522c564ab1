"""``etude doctor``."""

from __future__ import annotations

import json

import pytest

from etude.study.doctor import doctor as study
from picture_folders import write_classes

SMALL = ("--set", "model.backbone=tiny", "--set", 'stages=["finetune"]', "--set", "train.threads=1")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Leave out the default network."""
    rates = study.network_rates

    def only_small(name, *rest):
        return rates(name, *rest) if name == "tiny" else []

    monkeypatch.setattr(study, "network_rates", only_small)
    monkeypatch.setattr(study, "made_up_pictures", lambda: [b"no image"] * 4)


def test_the_machine_alone_is_described(etude, tmp_path):
    ended = etude("doctor", *SMALL, "--set", "timeline.final_size=32")
    assert ended.code == 0, ended.err
    measures, told = ended.out.split("This machine")
    assert "64 MB written" in measures
    for word in ("cores", "memory", "torch", "disk", "decoding", "tiny", "chosen", "etude doctor TRAIN"):
        assert word in told
    assert "\x1b" not in ended.out
    assert [path.name for path in (tmp_path / "cache").iterdir()] == []


def test_images_are_told_their_time(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=6)
    ended = etude("doctor", train, *SMALL)
    assert ended.code == 0, ended.err
    assert "12 images in 2 classes" in ended.out
    assert "fine-tune" in ended.out
    assert "by published ratios" in ended.out


def test_a_head_alone_is_measured_without_training(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=6)
    words = ("--recipe", "quick", "--set", "model.feature_size=32", "--set", "train.threads=1")
    ended = etude("doctor", train, *words)
    assert ended.code == 0, ended.err
    assert "Running tf_efficientnet_lite0 at 32 px" in ended.out


def test_json_is_the_only_thing_on_standard_output(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=6)
    (train / "round" / "bad.png").write_bytes(b"no image")
    ended = etude("doctor", train, "--json", *SMALL)
    assert ended.code == 0, ended.err
    tree = json.loads(ended.out)
    assert tree["data"]["images"] == 13
    assert any("cannot be read" in text for text in tree["warnings"])
    assert all(line.startswith("warning: ") for line in ended.err.splitlines())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("doctor", "nowhere"), "nowhere does not exist"),
        (("doctor", "single"), "only one class"),
        (("doctor", "train", "--recipe", "nothing"), "nothing"),
        (("doctor", "train", "--set", "train.threads=0"), "train.threads"),
        (("doctor", "--set", "model.backbone=resnet1888"), "resnet1888"),
        (("doctor", "--sample", "10%"), "etude doctor TRAIN --sample 10%"),
        (("doctor", "--seed", "3"), "etude doctor TRAIN --data --seed 3"),
    ],
)
def test_mistakes_are_told_in_one_sentence(etude, tmp_path, words, told):
    write_classes(tmp_path / "train", count=3)
    write_classes(tmp_path / "single", names=("one",), count=3)
    ended = etude(*words)
    assert ended.code == 2
    assert told in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_help_explains_the_options(etude):
    ended = etude("doctor", "--help")
    assert ended.code == 0
    for option in ("--recipe", "--set", "--json", "--cache"):
        assert option in ended.out
    assert "doctor" in etude("--help").out
