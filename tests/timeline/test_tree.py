from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.timeline.curves import (
    Constant,
    Cosine,
    Curve,
    Exponential,
    ExpRange,
    Joined,
    Linear,
    OneCycle,
    Scaled,
    Steps,
    Triangular,
    Triangular2,
    Warmup,
)
from etude.timeline.lengths import RunSize
from etude.timeline.phase import QUANTITIES, Phase
from etude.timeline.plan import Timeline
from etude.timeline.plateau import Event, Plateau
from etude.timeline.tree import (
    curve_from_tree,
    phase_from_tree,
    timeline_from_tree,
    timeline_to_tree,
    tree_of_curve,
)

NUMBERS = st.floats(0, 1)
POSITIVE = st.floats(1e-6, 1.0)
SHARES = st.floats(0.01, 0.99)
LENGTHS = SHARES | st.integers(1, 5).map(lambda steps: f"{steps}st") | st.integers(1, 99).map(lambda part: f"{part}%")
MILESTONES = st.lists(NUMBERS, max_size=3, unique=True).map(lambda numbers: tuple(sorted(numbers)))


def curves(lengths: st.SearchStrategy[float | str], part: float | str) -> st.SearchStrategy[Curve]:
    """Every kind of curve, in one another too; ``part`` is the middle one of the lengths that are joined."""
    simple = st.one_of(
        st.builds(Constant, NUMBERS),
        st.builds(Linear, NUMBERS, NUMBERS),
        st.builds(Cosine, NUMBERS, NUMBERS),
        st.builds(Exponential, POSITIVE, POSITIVE),
        st.builds(Steps, NUMBERS, POSITIVE, MILESTONES),
        st.builds(OneCycle, NUMBERS, NUMBERS, NUMBERS, st.floats(0.1, 0.9)),
        st.builds(Triangular, NUMBERS, NUMBERS, lengths),
        st.builds(Triangular2, NUMBERS, NUMBERS, lengths),
        st.builds(ExpRange, NUMBERS, NUMBERS, lengths, POSITIVE),
    )
    rest = 0.75 if isinstance(part, str) else 0.75 - part
    return st.recursive(
        simple,
        lambda inner: st.one_of(
            st.builds(Warmup, inner, lengths, NUMBERS),
            st.builds(Scaled, inner, NUMBERS),
            st.builds(lambda one, two: Joined(((0.25, one), (part, two), (rest, one))), inner, inner),
        ),
        max_leaves=3,
    )


CURVES, CURVES_OF_SHARES = curves(LENGTHS, "3st"), curves(SHARES, 0.5)
PLATEAUS = st.builds(
    Plateau,
    metric=st.sampled_from(["valid_loss", "valid_accuracy"]),
    mode=st.sampled_from(["min", "max"]),
    factor=st.floats(0.01, 0.99),
    patience=st.integers(0, 5),
    threshold_mode=st.sampled_from(["rel", "abs"]),
    reductions=st.none() | st.integers(0, 3),
)


@st.composite
def timelines(draw: st.DrawFn, curves: st.SearchStrategy[Curve] = CURVES) -> Timeline:
    """Two phases with any quantities; image and batch sizes in their own range."""
    first, second = draw(st.sampled_from([("100st", 1.0), (0.4, 0.6)]))
    quantities = [name for name in QUANTITIES if not name.endswith("_size")]
    scheduled = sorted(draw(st.sets(st.sampled_from(quantities), max_size=2)))
    phases = (
        Phase(
            name,
            length,
            image_size=draw(st.none() | st.just(Linear(64, 224))),
            batch_size=Steps(16, 2, (0.5,)),
            plateau=draw(st.none() | PLATEAUS),
            jump=draw(st.booleans()),
            **{quantity: draw(curves) for quantity in scheduled},
        )
        for name, length in (("warmup", first), ("finish", second))
    )
    scaling = draw(st.sampled_from(["none", "linear", "sqrt"]))
    return Timeline(tuple(phases), draw(st.sampled_from([1, 32])), scaling, draw(st.none() | st.just(32)))


@given(CURVES)
def test_curves_come_back_from_json_as_they_were(curve: Curve):
    assert curve_from_tree(json.loads(json.dumps(tree_of_curve(curve), allow_nan=False))) == curve


@given(timelines())
def test_timelines_come_back_from_json_as_they_were(timeline: Timeline):
    tree = json.loads(json.dumps(timeline_to_tree(timeline), allow_nan=False))
    assert timeline_from_tree(tree) == timeline
    assert [phase_from_tree(phase) for phase in tree["phases"]] == list(timeline.phases)


@given(timelines(CURVES_OF_SHARES), st.floats(0.45, 0.95), PLATEAUS, NUMBERS)
def test_a_run_under_way_comes_back_with_its_events(timeline: Timeline, progress: float, plateau: Plateau, at: float):
    running = timeline.resolved(RunSize(1000, epoch_steps=10))
    last = running.phases[-1].name
    running = running.with_event(Event(progress, "scale", last, plateau.factor, 1e-6))
    running = running.with_event(Event(progress, "end", last))
    again = timeline_from_tree(json.loads(json.dumps(timeline_to_tree(running))))
    assert again == running
    assert again.events == running.events
    assert again.at(at) == running.at(at)


RECIPE = """
size_multiple = 16
batch_scaling = "sqrt"
base_batch_size = 64

[[phases]]
name = "warmup"
length = "3ep"
lr = {curve = "warmup", after = 0.01, length = "50st"}
batch_size = 64
jump = true

[[phases]]
name = "grow"
length = 0.75
momentum = 0.9
lr = {curve = "scaled", factor = 0.5, of = {curve = "exp_range", base = 0.0, peak = 0.02, cycle = "2ep"}}
batch_size = {curve = "steps", start = 64, factor = 2, milestones = [0.5]}
plateau = {metric = "valid_accuracy", mode = "max", reductions = 1}

[phases.image_size]
curve = "joined"
parts = [{length = 0.5, of = 128}, {length = "50%", of = {curve = "linear", start = 128, end = 224}}]

[[phases]]
name = "finish"
length = 0.25
batch_size = 128
"""


def test_a_recipe_says_what_the_classes_say():
    sizes = Joined(((0.5, Constant(128)), ("50%", Linear(128, 224))))
    expected = Timeline(
        (
            Phase("warmup", "3ep", lr=Warmup(Constant(0.01), "50st"), batch_size=64, jump=True),
            Phase(
                "grow",
                0.75,
                lr=Scaled(ExpRange(0.0, 0.02, "2ep"), 0.5),
                momentum=0.9,
                image_size=sizes,
                batch_size=Steps(64, 2, (0.5,)),
                plateau=Plateau("valid_accuracy", "max", reductions=1),
            ),
            Phase("finish", 0.25, batch_size=128),
        ),
        size_multiple=16,
        batch_scaling="sqrt",
        base_batch_size=64,
    )
    assert timeline_from_tree(tomllib.loads(RECIPE)) == expected


def test_what_is_left_out_keeps_its_default():
    assert curve_from_tree({"curve": "one_cycle", "start": 0, "peak": 1, "end": 0}) == OneCycle(0, 1, 0, rise=0.3)
    assert phase_from_tree({"name": "all", "length": 1, "plateau": {}}).plateau == Plateau()
    assert phase_from_tree({"name": "all", "length": 1}) == Phase("all", 1.0)
    assert timeline_from_tree({"phases": [{"name": "all", "length": 1}]}) == Timeline((Phase("all", 1.0),))


def test_a_tree_holds_nothing_that_toml_cannot_say():
    tree = timeline_to_tree(Timeline((Phase("all", 1.0, lr=0.1, plateau=Plateau()),)))
    assert tree["phases"][0]["lr"] == 0.1
    assert "momentum" not in tree["phases"][0]
    assert "reductions" not in tree["phases"][0]["plateau"]
    assert "base_batch_size" not in tree


class Mine:
    def at(self, t: float) -> float:
        return t


def test_a_curve_of_a_class_of_ones_own_cannot_be_written():
    assert Phase("all", 1.0, lr=Mine()).curve("lr") is not None
    with pytest.raises(ValueError, match=r"Mine object.* cannot be written to a file; write one of constant, linear"):
        timeline_to_tree(Timeline((Phase("all", 1.0, lr=Scaled(Mine(), 2.0)),)))


LINE = {"curve": "linear", "start": 0.0, "end": 1.0}


def phase(**quantities: object) -> dict[str, object]:
    return {"name": "grow", "length": 1.0, **quantities}


@pytest.mark.each(
    ("written", "told"),
    [
        (3, "a timeline must be a table with the key 'phases', got 3"),
        ({}, "timeline: the key 'phases' is missing"),
        ({"phases": []}, "timeline: a timeline needs at least one phase"),
        ({"phases": {"name": "grow"}}, "timeline, phases must be a list of tables"),
        ({"phases": [3]}, "phase 1 must be a table such as .*, got 3"),
        ({"phase": [phase()]}, "timeline: unknown key 'phase'; .*; did you mean 'phases'"),
        ({"phases": [phase()], "size_multiple": 1.5}, "timeline, size_multiple must be a whole number, got 1.5"),
        (
            {"phases": [phase()], "batch_scaling": "linaer"},
            "batch_scaling is 'linaer'; accepted are 'none', 'linear', 'sqrt'; did you mean 'linear'",
        ),
        ({"phases": [phase(length=0.5)]}, "timeline: the shares 0.5 sum to 0.5"),
        ({"phases": [phase()], "events": [{"progress": 0.5}]}, "event 1: the key 'kind' is missing"),
        ({"phases": [phase()], "events": [{"progress": 2, "kind": "end", "phase": "grow"}]}, "event 1: progress"),
        ({"phases": [phase()], "events": [{"progress": 0, "kind": "stop", "phase": "grow"}]}, "accepted are 'scale'"),
        ({"phases": [phase(), {"length": 0.5}]}, "phase 2: the key 'name' is missing; required are 'name', 'length'"),
        ({"phases": [{"name": "grow"}]}, "phase 'grow': the key 'length' is missing"),
        ({"phases": [phase(length="3 parsecs")]}, "phase 'grow', length: the length '3 parsecs' cannot be read"),
        ({"phases": [phase(length=3.0)]}, "^phase 'grow'[^']*length"),
        ({"phases": [phase(lr="0.1")]}, "phase 'grow', lr must be a number or a table such as .*, got '0.1'"),
        ({"phases": [phase(lr=True)]}, "phase 'grow', lr must be a number or a table"),
        ({"phases": [phase(lr=float("nan"))]}, "phase 'grow', lr: value of the curve 'constant' must be a finite"),
        ({"phases": [phase(l_r=0.1)]}, "phase 'grow': unknown key 'l_r'; .*did you mean 'lr'"),
        ({"phases": [phase(imagesize=224)]}, "phase 'grow': unknown key 'imagesize'; .*did you mean 'image_size'"),
        ({"phases": [phase(jump="yes")]}, "phase 'grow', jump must be true or false, got 'yes'"),
        ({"phases": [phase(plateau=2)]}, "phase 'grow', plateau must be a table such as"),
        ({"phases": [phase(plateau={"patence": 2})]}, "phase 'grow', plateau: unknown key 'patence'; .*'patience'"),
        ({"phases": [phase(plateau={"patience": 2.5})]}, "phase 'grow', plateau, patience must be a whole number"),
        ({"phases": [phase(plateau={"factor": 2})]}, "phase 'grow', plateau: factor of a plateau is 2"),
        ({"phases": [phase(plateau={"metric": 2})]}, "phase 'grow', plateau, metric must be text, got 2"),
        ({"phases": [phase(lr={"start": 0.0})]}, "phase 'grow', lr: the key 'curve' is missing; accepted are 'const"),
        ({"phases": [phase(lr={"curve": "cosin"})]}, "lr: there is no curve 'cosin'; .*did you mean 'cosine'"),
        ({"phases": [phase(lr={"curve": ["cosine"]})]}, r"there is no curve \['cosine'\]"),
        ({"phases": [phase(lr=LINE | {"strat": 1})]}, "lr [(]linear[)]: unknown key 'strat'; .*did you mean 'start'"),
        ({"phases": [phase(lr={"curve": "linear", "start": 1})]}, "lr [(]linear[)]: the key 'end' is missing"),
        ({"phases": [phase(lr=LINE | {"end": "1"})]}, "lr [(]linear[)], end must be a number, got '1'"),
        ({"phases": [phase(lr={"curve": "scaled", "curve_": LINE, "factor": 2})]}, "accepted are 'of', 'factor'"),
        (
            {"phases": [phase(lr={"curve": "warmup", "after": {"curve": "linear"}})]},
            "phase 'grow', lr [(]warmup[)], after [(]linear[)]: the key 'start' is missing",
        ),
        ({"phases": [phase(lr={"curve": "warmup", "after": 1, "length": 2})]}, "lr [(]warmup[)]: the length 2 of a"),
        ({"phases": [phase(lr={"curve": "triangular", "base": 0, "peak": 1, "cycle": "x"})]}, "cycle: the length 'x'"),
        ({"phases": [phase(lr={"curve": "steps", "start": 1, "factor": 0.1, "milestones": 0.5})]}, "must be a list of"),
        ({"phases": [phase(lr={"curve": "joined", "parts": LINE})]}, "parts must be a list of tables"),
        ({"phases": [phase(lr={"curve": "joined", "parts": [LINE]})]}, "parts 1 must have the keys 'length' and 'of'"),
        (
            {"phases": [phase(lr={"curve": "joined", "parts": [{"length": "x", "of": 1}]})]},
            "parts 1, length: the length 'x' cannot be read",
        ),
        (
            {"phases": [phase(lr={"curve": "joined", "parts": [{"length": 1, "of": {"curve": "arc"}}]})]},
            "parts 1, of: there is no curve 'arc'",
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence_with_their_place(written: object, told: str):
    with pytest.raises(ValueError, match=told) as error:
        timeline_from_tree(written)
    assert "\n" not in str(error.value)
    assert str(error.value).count("phase 'grow'") <= 1


@pytest.mark.parametrize(
    "tree",
    [
        {"phases": [phase(name=f"p{k}", length=1 / 201) for k in range(201)]},
        {"phases": [phase(lr={"curve": "joined", "parts": [{"length": 1 / 201, "of": 1.0}] * 201})]},
        {"phases": [phase(lr={"curve": "steps", "start": 1.0, "factor": 0.5, "milestones": [0.5] * 10_001})]},
    ],
)
def test_lists_without_bound_are_refused_before_their_entries_are_read(tree: dict[str, Any]):
    with pytest.raises(ValueError, match="at most") as refused:
        timeline_from_tree(tree)
    assert len(str(refused.value)) < 200


def test_phases_without_bound_are_refused_from_python_too():
    with pytest.raises(ValueError, match="201"):
        Timeline(tuple(Phase(f"p{k}", 1 / 201) for k in range(201)))


def test_a_steps_curve_counts_milestones_as_they_are_passed():
    milestones = tuple(k / 1_000 for k in range(1, 1_000))
    curve = Steps(1.0, 0.5, milestones)
    for progress in (0.0, 0.0015, 0.5, 0.5 - 1e-12, 1.0):
        passed = sum(milestone <= progress + 1e-9 for milestone in milestones)
        assert curve.at(progress) == 0.5**passed
