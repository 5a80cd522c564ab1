"""The tables of a report: steps with their gains, settings, the network, and how to make the run again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from etude.core.errors import EtudeError
from etude.core.files import write_json
from etude.journal.record import RunRecord
from etude.journal.report.curves import path_figure
from etude.journal.report.folder import RunFolder, read_history, read_shapes
from etude.journal.report.tables import (
    architecture_of,
    budget_of,
    data_facts,
    environment_facts,
    last_words,
    recipe_to_reproduce,
    rounds_table,
    settings_of,
    steps_of,
)
from etude.journal.runs import IN_NO_STAGE, stopped_at


def stage(name: str, seconds: float = 1.0, state: str = "finished", **more: Any) -> dict[str, Any]:
    plain = {"name": name, "state": state, "started": "2026-01-01", "seconds": seconds, "attempts": 1}
    return {**plain, "scores": {}, "notes": {}, **more}


def record_of(*stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    seconds = sum(one["seconds"] for one in stages)
    plain = {"state": "finished", "error": None, "seconds": seconds, "stages": list(stages), "settings": {}}
    plain["changed"] = {}
    return {**plain, "pid": 1, "host": "elsewhere", "command": ["etude"], "environment": {}, **more}


def weights(path: Path) -> Path:
    shapes = {
        **{f"backbone.blocks.{number}.conv.weight": (4, 4, 3, 3) for number in (10, 2)},
        **{"backbone.stem.weight": (4, 3, 3, 3), "backbone.norm.running_mean": (4,), "head.weight": (5, 4)},
    }
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    return path


def scored(name: str, right: float, **more: Any) -> dict[str, Any]:
    return stage(name, scores={"accuracy": right, "log_loss": 1.0 - right}, **more)


WORSE = [scored("head", 0.9), scored("fine-tune", 0.6), scored("TTA", 0.82)]


@pytest.mark.parametrize("kept", [{"kept": False}, {}], ids=["as recorded", "of a run that did not say"])
def test_gains_are_against_what_was_kept_before(kept: dict[str, Any]):
    """Stage 2 came out worse and was thrown away: views of stage 1 are no gain over it."""
    head, worse, views = WORSE
    steps = steps_of(record_of(head, {**worse, **kept}, views))
    assert [step.gained for step in steps] == [None, pytest.approx(-0.3), pytest.approx(-0.08)]
    assert [step.saved for step in steps] == [None, pytest.approx(-0.3), pytest.approx(-0.08)]
    assert [step.kept for step in steps][:2] == [True, False]


def test_each_round_is_measured_against_its_teacher():
    names, right = ("head", "round 1", "round 2", "TTA"), (0.7, 0.8, 0.75, 0.85)
    stages = [scored(name, share) for name, share in zip(names, right, strict=True)]
    verdicts = [{"name": "round 1", "kept": True}, {"name": "round 2", "kept": False}]
    for record in (
        record_of(*stages, rounds=verdicts),
        record_of(*stages[:2], {**stages[2], "kept": False}, stages[3]),
    ):
        steps = steps_of(record)
        assert [step.gained for step in steps[1:]] == [pytest.approx(gain) for gain in (0.1, -0.05, 0.05)]
        assert [step.kept for step in steps] == [True, True, False, True]


def test_each_fold_goes_on_from_what_it_kept():
    stages = [scored("head (fold 1/2)", 0.8), scored("fine-tune (fold 1/2)", 0.9, kept=True)]
    stages += [scored("head (fold 2/2)", 0.6), scored("fine-tune (fold 2/2)", 0.5, kept=False), scored("TTA", 0.8)]
    steps = steps_of(record_of(*stages))
    assert [step.gained for step in steps] == [None, pytest.approx(0.0), pytest.approx(0.8 - (0.9 + 0.6) / 2)]


def test_a_stage_that_diverged_is_not_what_others_are_measured_against():
    steps = steps_of(
        record_of(scored("head", 0.8), stage("fine-tune", state="failed", error="nan"), scored("TTA", 0.7))
    )
    assert [step.gained for step in steps] == [None, None, pytest.approx(-0.1)]
    assert [step.kept for step in steps] == [True, False, True]


def test_the_steps_take_all_of_the_seconds():
    steps = steps_of(record_of(stage("survey"), stage("head", 3.0), seconds=10.0))
    assert [step.seconds for step in steps] == [1.0, 3.0, 6.0]
    assert steps[-1].name == IN_NO_STAGE
    assert "60% of the time" in steps[-1].share


def test_a_step_without_scores_changes_no_gain():
    steps = steps_of(
        record_of(
            stage("survey"),
            stage("head", 3.0, scores={"accuracy": 0.8, "log_loss": 0.5}),
            stage("probe"),
            stage("fine-tune", 4.0, scores={"accuracy": 0.75, "log_loss": 0.4}),
            plan={"expected_seconds": {"head": 2.0}},
        )
    )
    assert [step.gained for step in steps] == [None, None, None, pytest.approx(-0.05)]
    assert [step.saved for step in steps] == [None, None, None, pytest.approx(0.1)]
    assert [step.planned for step in steps] == [None, 2.0, None, None]
    assert "44% of the time" in steps[3].share


def test_folds_are_put_together_whatever_lies_between():
    folds = [stage(f"head (fold {k}/2)", k, scores={"accuracy": k / 4}, notes={"steps": 5, "kept": k}) for k in (1, 2)]
    (step, other) = steps_of(record_of(folds[0], stage("fine-tune (fold 1/2)", state="failed", error="out"), folds[1]))
    assert (step.name, step.count, step.seconds, step.accuracy) == ("head", 2, 3.0, 0.375)
    assert step.notes == "steps 5; kept differs by fold"
    assert (other.state, other.error) == ("failed", "out")


def test_a_step_that_was_begun_again_says_so():
    (step,) = steps_of(record_of(stage("fine-tune", attempts=3, notes={"reused": False, "events": []})))
    assert step.notes == "begun 3 times"


def test_notes_of_a_step_are_words():
    notes = {"views that are enough": {"accuracy": 1, "log_loss": 2}, "share": 0.123456789, "nothing": None}
    (step,) = steps_of(record_of(stage("TTA", notes=notes)))
    assert step.notes == "views that are enough accuracy 1, log loss 2; share 0.123457"


def test_stages_of_a_killed_run_are_killed_and_those_of_a_study_gain_nothing():
    scores = [{"accuracy": right, "log_loss": 1 - right} for right in (0.5, 0.9)]
    record = record_of(stage("a", scores=scores[0]), stage("b", state="running", scores=scores[1]), kind="ablate")
    assert [step.gained for step in steps_of(record)] == [None, None]
    record |= {"state": "killed"}
    assert [step.state for step in steps_of(record)] == ["finished", "killed"]


@pytest.mark.parametrize(
    ("state", "error", "told"),
    [
        ("failed", "disk full", "It failed {}: disk full"),
        ("interrupted", None, "It was interrupted {}."),
        ("running", None, "It was running when this page was written, 1.0 s after its start: {}."),
    ],
)
def test_a_run_says_where_it_stands(state: str, error: str | None, told: str):
    record = record_of(stage("head", state="failed"), state=state, error=error)
    assert last_words(record) == told.format(stopped_at(record["stages"]))


def test_a_finished_run_need_not_say_where_it_stands():
    assert last_words(record_of(stage("head"))) == ""


def test_weights_are_counted_from_the_header(tmp_path: Path):
    record = RunRecord.open(tmp_path / "run", command=["etude"], recipe="r", settings={}, changed={}, seed=0)
    weights(tmp_path / "run" / "model.safetensors")
    write_json(tmp_path / "run" / "model.json", {"backbone": "tiny", "classes": ["a", "b"]})
    record.set("architecture", {"trainable": 20, "flops": 1.23e9, "image_size": 224})
    found = architecture_of(RunFolder.read(tmp_path / "run"))
    assert found is not None
    assert found.parameters == 2 * 144 + 108 + 20
    assert [part for part, _, _ in found.parts] == [
        "backbone.blocks.2", "backbone.blocks.10", "backbone.stem", "head",
    ]  # fmt: skip
    facts = dict(found.facts)
    assert facts["parameters"] == "416"
    assert facts["trained of them"] == "20"
    assert facts["FLOPs an image"] == "1.23 GFLOPs at 224 px"


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0[1,2]", b"\xff" * 30, b"\x02\0\0\0\0\0\0\0{}"])
def test_headers_are_read_with_care(tmp_path: Path, content: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    if content.endswith(b"{}"):
        assert read_shapes(path) == {}
        return
    with pytest.raises(EtudeError, match="safetensors"):
        read_shapes(path)


def test_settings_stand_by_section_as_asked_and_used():
    asked = {"name": "default", "train.lr": "auto", "train.clip": None, "head.folds": [1, 2.5]}
    used = {**asked, "train.lr": 0.00015, "data.new": True}
    found = settings_of(record_of(settings=asked, changed={"train.clip": None}, plan={"resolved": used}))
    assert list(found) == ["recipe", "train", "head", "data"]
    rate, clip = found["train"]
    assert (rate.name, rate.requested, rate.used, rate.changed) == ("lr", "auto", "0.00015", False)
    assert (clip.used, clip.changed) == ("none", True)
    assert found["head"][0].used == "1, 2.5"
    assert found["data"][0].used == "yes"


def test_history_cells_are_numbers_texts_or_absent(tmp_path: Path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,phase,valid_loss\n1,warmup,\n2,,0.5\n", encoding="utf-8")
    assert read_history(path) == ({"epoch": 1.0, "phase": "warmup"}, {"epoch": 2.0, "valid_loss": 0.5})


def test_reproduction_names_code_packages_and_command():
    git = {"commit": "abc", "dirty": True, "diff": "f00"}
    around = {"etude": "0.1.0", "git": git, "packages": {"torch": "2.13.0+cpu"}}
    record = record_of(environment=around, command=["etude", "fit", "my images", "--set", "a=$b"])
    checkout, install, command = recipe_to_reproduce(record).splitlines()
    assert checkout.startswith("git checkout abc  # and the changes")
    assert shlex.split(install) == ["pip", "install", "etude==0.1.0", "torch==2.13.0"]
    around |= {"etude_from": "etude @ file:///a b/etude-0.1.0.whl", "etude_commit": "abc"}
    *_, install, command = recipe_to_reproduce(record).splitlines()
    assert shlex.split(install, comments=True) == ["pip", "install", around["etude_from"], "torch==2.13.0"]
    assert install.endswith("# at commit abc")
    assert shlex.split(command) == record["command"]
    facts = dict(environment_facts({**record, "started": "2026-01-01T00:00:00+00:00", "ended": None, "resumed": []}))
    assert facts["git commit"] == "abc, with uncommitted changes"
    assert facts["uncommitted changes"] == "f00"


def test_data_of_several_folds():
    data = {"images": 30, "described": "class folders", "folds": [{"train": 20, "valid": 10}] * 3, "sample": "10%"}
    facts = dict(data_facts(record_of(data=data, augmentation={"policy": "flips", "reason": "measured"})))
    assert facts["split"] == "3 folds of 20 to train, 10 to validate"
    assert facts["sample"] == "10%"
    assert facts["augmentation"] == "flips: measured"
    assert data_facts(record_of()) == []


def test_the_path_of_a_run_has_a_point_for_each_scored_stage():
    head, worse, views = WORSE
    figure = path_figure(record_of(stage("start-up", 20.0), head, {**worse, "kept": False}, stage("rest", 5.0), views))
    assert figure is not None
    assert [
        figure.caption.count(words) for words in ("head 90.0% after 21", "60.0% after 22", "TTA 82.0% after 28")
    ] == [1] * 3
    assert [name for _, name in figure.legend] == ["highest so far", "not kept"]
    assert "not kept: 60% at 22" in figure.svg
    assert "highest so far: 90% at 28" in figure.svg  # TTA's own score is lower
    long = path_figure(record_of({**head, "seconds": 1200.0}, worse))
    assert long is not None
    assert "90% at 20<" in long.svg  # minutes


def test_a_path_needs_two_scores_of_one_model():
    folds = [scored("head (fold 1/2)", 0.9), scored("head (fold 2/2)", 0.8)]
    for record in (record_of(WORSE[0], stage("store")), record_of(*folds), record_of(*WORSE, kind="ablation")):
        assert path_figure(record) is None


def test_a_budget_says_what_was_given_up():
    assert budget_of(record_of()) == ""
    given = budget_of(record_of(budget={"seconds": 300.0, "changes": {}, "fitted": "8 of 30 epochs"}))
    assert "5 min" in given
    assert "8 of 30 epochs" in given
    assert "5 min" in budget_of(record_of(budget={"seconds": 300.0, "changes": {}}))  # of an older run


def test_rounds_are_a_table_in_words():
    first = {"name": "round 1", "kept": True, "verdict": "kept: better", "pseudo_labels": "16 of 20 images"}
    first |= {"changed": 0.0512345, "from_prior": 5.3e-7, "histogram": [20, 0], "gain": {"log_loss": 0.1}}
    online = {"name": "online", "kept": False, "told": "thrown away", "pseudo_labels": None}
    columns, rows = rounds_table(record_of(rounds=[first, online])) or ([], [])
    assert len(columns) == 5
    assert rows[0] == ["round 1", "16 of 20 images", "5.1%", "0.0%", "kept: better"]
    assert rows[1] == ["online", "made in training", "–", "–", "thrown away"]
    assert rounds_table(record_of(rounds=[])) is None
    assert rounds_table(record_of(rounds="none")) is None
