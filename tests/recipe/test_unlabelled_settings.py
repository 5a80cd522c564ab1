"""Settings of unlabelled images and teachers, and the weight that they schedule."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.recipe import NAMED, Recipe, flat, load_recipe, resolved_run, timeline_of
from etude.recipe.timeline import with_ramp
from etude.timeline import Phase, Timeline, timeline_from_tree, timeline_to_tree

OWN = {"pseudo-label": "rounds", "consistency": "online"}


@pytest.mark.each("name", NAMED)
def test_unlabelled_images_are_used_by_two_recipes_only(name: str):
    assert load_recipe(name).unlabeled.method == OWN.get(name, "auto")
    assert load_recipe(name).unlabeled.is_on == (name in OWN)
    assert bool(load_recipe(name).distill.model_fields_set) == (name == "distill")


@pytest.mark.parametrize("name", ["pseudo-label", "consistency", "distill"])
def test_the_recipes_are_the_default_in_all_else(name: str):
    ours, default = flat(load_recipe(name)), flat(load_recipe())
    differ = {key.split(".")[0] for key, value in ours.items() if value != default[key]}
    assert differ == {"name", "distill" if name == "distill" else "unlabeled"}
    load_recipe(name, ["train.epochs=3"])  # how long to train is the user's to say, in either way
    load_recipe(name, ["timeline.length=40st"])


@pytest.mark.each(
    ("change", "value"),
    [
        ("unlabeled.labeled_share=auto", "auto"),
        ("unlabeled.labeled_share=0.125", 0.125),
        ("unlabeled.threshold=0.9", 0.9),
        ("unlabeled.threshold=[0.9, 0]", (0.9, 0.0)),
        ("unlabeled.quota=none", None),
        ("unlabeled.quota=5", 5),
        ("unlabeled.batch_size=none", None),
        ("unlabeled.length=none", None),
        ("unlabeled.length=300st", "300st"),
        ("unlabeled.ramp=[0.1, 0.6]", (0.1, 0.6)),
        ("unlabeled.ema=0", 0.0),
        ("unlabeled.prior=labeled", "labeled"),
    ],
)
def test_accepted_values(change: str, value: object):
    key = change.partition("=")[0]
    held = flat(load_recipe("default", [change]))
    assert held[key] == value
    json.dumps(held)  # as run.json keeps them


@pytest.mark.each(
    ("change", "told"),
    [
        (
            "labeled_share=1",
            "unlabeled.labeled_share received 1, but it must be a share above 0 and below 1, or 'auto'.",
        ),
        ("labeled_share=half", "received 'half', but it must be a share above 0 and below 1, or 'auto'."),
        ("labeled_share=true", "received True, but it must be a share"),
        ("threshold=1", "unlabeled.threshold received 1, but it must be a confidence from 0 to below 1, or a list"),
        ("threshold=[]", "must be a confidence from 0 to below 1"),
        ("threshold=[0.5, 2]", "must be a confidence from 0 to below 1"),
        ("ramp=[0.5, 0.1]", "it should keep 0 <= ramp start <= ramp end <= 1"),
        (
            "method=offline",
            "unlabeled.method received 'offline', but it should be 'auto', 'off', 'head', 'rounds' or 'online'.",
        ),
        ("keep_at=1", "unlabeled.keep_at received 1, but it should be less than 1."),
        ("length=0.5", "unlabeled.length received 0.5, but it must be"),
        ("round=2", "there is no setting 'unlabeled.round'. Did you mean 'unlabeled.rounds'?"),
    ],
)
def test_refused_values(change: str, told: str):
    with pytest.raises(EtudeError) as refused:
        load_recipe("default", [f"unlabeled.{change}"])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_online_weight_rises_over_the_run_and_survives_its_file():
    recipe = load_recipe("consistency", ["unlabeled.weight=3", "unlabeled.ramp=[0.05, 0.45]"])
    timeline, _ = resolved_run(recipe, 4_000)
    found = [timeline.at(progress).unlabeled_weight for progress in (0.0, 0.05, 0.25, 0.45, 0.7, 1.0)]
    assert found == pytest.approx([0, 0, 1.5, 3, 3, 3])
    assert timeline_from_tree(timeline_to_tree(timeline)) == timeline
    assert resolved_run(load_recipe("pseudo-label"), 4_000)[0].at(0.5).unlabeled_weight is None


def test_phases_that_schedule_the_weight_keep_their_own():
    phases = [
        {"name": "a", "length": 0.5, "unlabeled_weight": 0.25},
        {"name": "b", "length": 0.5},
    ]
    recipe = Recipe.model_validate({"unlabeled": {"method": "online", "weight": 2.0}, "timeline": {"phases": phases}})
    timeline, _ = resolved_run(recipe, 400)
    assert [timeline.at(progress).unlabeled_weight for progress in (0.1, 0.9)] == [0.25, 2.0]
    assert timeline_of(recipe).phases[1].curve("unlabeled_weight") is not None


@given(
    st.floats(0, 1), st.floats(0, 1), st.floats(0, 5), st.floats(0.05, 0.95),
    st.lists(st.floats(0, 1), min_size=2, max_size=8),
)  # fmt: skip
def test_the_ramp_never_falls_and_is_whole_at_its_end(one, other, weight, cut, points):
    start, end = sorted((one, other))
    timeline = with_ramp(Timeline((Phase("a", cut), Phase("b", 1 - cut))), weight, start, end)
    found = [timeline.at(point).unlabeled_weight or 0.0 for point in sorted(points)]
    assert all(after >= before - 1e-9 for before, after in pairwise(found))
    assert timeline.at(1.0).unlabeled_weight == pytest.approx(weight)
    for point, value in zip(sorted(points), found, strict=True):
        if end - start > 1e-6:
            expected = weight * min(1.0, max(0.0, (point - start) / (end - start)))
            assert value == pytest.approx(expected, abs=1e-3 * max(weight, 1) + weight * 1e-6 / (end - start))


GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "unlabelled.md").read_text(encoding="utf-8")


def test_the_guide_tells_every_default():
    rows = dict(re.findall(r"^\| `((?:unlabeled|distill)\.\w+)` \| ([^|]+?) \|", GUIDE, re.MULTILINE))
    known = {key: value for key, value in flat(Recipe()).items() if key.startswith(("unlabeled.", "distill."))}
    assert list(rows) == list(known)
    for key, cell in rows.items():
        value, _, bracket = cell.rstrip(")").partition(" (")
        assert value == written(known[key]), key
        told = dict(part.split(": ") for part in bracket.split("; ") if part)
        others = {name: written(flat(load_recipe(name))[key]) for name in ("pseudo-label", "consistency", "distill")}
        assert told == {name: other for name, other in others.items() if other != value}, key


def written(value: object) -> str:
    return "none" if value is None else json.dumps(value).strip('"')
