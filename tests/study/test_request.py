"""The options of a run: one declaration for the command line, Python, and the job."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields, replace
from pathlib import Path

import etude
from etude.study.run.request import FitOptions, Request


def test_the_python_call_takes_what_the_command_takes():
    taken = {name: one.default for name, one in inspect.signature(etude.fit).parameters.items() if name != "train"}
    assert taken == {one.name: one.default for one in fields(FitOptions)}


def test_every_option_is_documented_in_the_python_call():
    assert all(f"        {one.name}: " in (etude.fit.__doc__ or "") for one in fields(FitOptions))


def test_shortcuts_become_settings_once():
    request = Request(Path("in"), settings={"train.epochs": 2}, lr="auto", cache_limit="20GB", labels="strict")
    expected = {"train.epochs": 2, "train.find_lr": True, "data.cache_limit": "20GB", "data.labels": "strict"}
    assert request.settings == replace(request, seed=1).settings == expected


def test_the_record_gives_the_same_request_again(tmp_path: Path):
    asked = Request(
        Path("in"), test=Path("test"), teachers=[Path("one")], settings=["train.lr=0.1", 'stages=["head"]'], lr="auto",
        image_root=tmp_path, sample="10%", folds=3, seed=7,
    )  # fmt: skip
    kept = json.loads(json.dumps(asked.as_record()))
    assert kept.pop("cwd") == str(Path.cwd())
    assert Request(**kept) == asked


def test_paths_of_the_users_home_are_expanded():
    request = Request("~/in", out="~/run", teachers=["~/one"])
    assert (request.train, request.out, request.teachers) == (
        Path.home() / "in",
        Path.home() / "run",
        (Path.home() / "one",),
    )


def test_no_settings_may_be_none_and_a_size_on_disk_a_number():
    assert Request(train=Path("x"), settings=None).settings == ()
    assert Request(train=Path("x"), cache_limit="2e9").settings == {"data.cache_limit": 2e9}
