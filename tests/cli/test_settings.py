"""``etude settings``."""

from __future__ import annotations

import json

from etude.recipe.catalogue import FIELDS


def test_every_setting_is_listed_with_its_value(etude):
    ended = etude("settings")
    assert ended.code == 0
    assert all(name in ended.out for name in FIELDS)
    assert all(len(line) <= 80 for line in ended.out.splitlines())
    listed = json.loads(etude("settings", "--json").out)
    assert [*listed] == [*FIELDS]
    assert listed["train.lr"] == {
        "value": 1.5e-4,
        "default": 1.5e-4,
        "accepts": "above 0",
        "description": FIELDS["train.lr"].description,
    }


def test_words_choose_settings(etude):
    assert all(name.startswith("train.") for name in json.loads(etude("settings", "train", "--json").out))
    assert etude("settings", "learning", "rate").out == etude("settings", "learning rate").out
    assert "train.lr" in etude("settings", "learning rate").out
    ended = etude("settings", "weightdcay")
    assert ended.code == 2
    assert "'train.weight_decay'" in ended.err
    assert etude("settings", "zzz").err.count("\n") == 1


def test_what_a_recipe_changes_is_shown(etude, tmp_path):
    listed = json.loads(etude("settings", "tta", "--recipe", "quick", "--json").out)
    assert (listed["predict.tta"]["value"], listed["predict.tta"]["default"]) == (1, 4)
    assert "1 (default: 4)" in etude("settings", "tta", "--recipe", "quick").out
    (tmp_path / "own.toml").write_text("[train]\nlr = 0.25\n")
    assert "0.25 (default: 0.00015)" in etude("settings", "lr", "--recipe", "own.toml").out
    assert etude("settings", "--recipe", "quik").code == 2
