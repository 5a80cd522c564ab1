"""``etude recipe``."""

from __future__ import annotations

import json
import tomllib

import pytest

from etude.recipe import NAMED, flat, load_recipe
from etude.recipe.load import FOLDER, purpose_of
from etude.recipe.resolve import ONLINE


def test_every_file_is_a_recipe_that_says_what_it_is_for(etude):
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(NAMED)
    ended = etude("recipe", "list", "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == {name: purpose_of(name) for name in NAMED}
    assert all(30 < len(purpose_of(name)) < 120 and purpose_of(name).endswith(".") for name in NAMED)
    assert all(name in etude("recipe", "list").out for name in NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_what_is_shown_is_the_recipe_itself(etude, tmp_path, name):
    ended = etude("recipe", "show", name)
    assert ended.code == 0
    assert tomllib.loads(ended.out) == NAMED[name]
    (tmp_path / "own.toml").write_text(ended.out)
    own, named = flat(load_recipe(str(tmp_path / "own.toml"))), flat(load_recipe(name))
    assert own | {"name": name} == named | {"predict.tta": own["predict.tta"]}  # its base is default


def test_the_settings_that_differ_are_shown(etude):
    ended = etude("recipe", "diff", "quick", "default", "--json")
    assert json.loads(ended.out) == {"stages": [["head"], ["head", "finetune"]], "predict.tta": [1, 4]}
    assert "predict.tta" in etude("recipe", "diff", "quick", "default").out
    assert "same" in etude("recipe", "diff", "default", "default").out
    changed = etude("recipe", "diff", "default", "default", "--set", "train.lr=0.5", "--json")
    assert json.loads(changed.out) == {"train.lr": [1.5e-4, 0.5]}


def test_a_name_that_is_none_is_refused_with_the_nearest(etude):
    ended = etude("recipe", "show", "quikc")
    assert ended.code == 2
    assert "quick" in ended.err


def test_consistency_is_what_auto_makes_of_any_recipe():
    assert {key: flat(load_recipe("consistency"))[key] for key in ONLINE} == ONLINE
