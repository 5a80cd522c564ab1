"""The end of a run: what it shows of itself, and that nothing of it costs the run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions
from etude.data.dataset import Dataset
from etude.data.split import Fold
from etude.journal.record import read_run
from etude.journal.report.report import write_report
from etude.journal.runs import IN_NO_STAGE
from etude.journal.screen import Screen
from etude.models.backbones import TinyNet
from etude.models.classifier import Classifier, ModelCard, Preprocessing
from etude.recipe import load_recipe
from etude.study import diagnostics
from etude.study.run import start
from etude.study.run.blend import Kept
from etude.study.run.network import Candidate
from etude.study.run.prepare import Prepared, warn_of_known
from etude.study.run.request import Request
from etude.study.run.session import Session, report
from journal.pages import Page
from picture_folders import picture, write_classes, write_flat
from recorded_runs import opened
from study.small_data import SIDE, features_of, labelled, one_fold, unlabelled, write_faulty

FILES = {"health.json", "gallery.npz", "gallery.json"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("faulty")
    return labelled(write_faulty(root / "train"), root / "cache")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    record = opened(tmp_path / "run")
    return Session(Request(tmp_path / "train", out=tmp_path / "run"), record, Screen(file=io.StringIO()))


def prepared(data: Dataset, test: Dataset | None = None) -> Prepared:
    features = cast(Any, SimpleNamespace(values=features_of(data)))
    recipe, folds = load_recipe("default"), one_fold(data)
    return Prepared(recipe, data, test, None, folds, features, "fp32", None, None)


def candidate(data: Dataset, folder: Path, stage: str = "finetune") -> Kept:
    """A network that knows nothing, and its predictions in the run's folder."""
    rows, network = one_fold(data)[0].valid, TinyNet(3, (8, 8))
    shape = Preprocessing(SIDE, SIDE, "squash", 3, 3, (0.5,) * 3, (0.5,) * 3)
    probabilities = np.full((len(rows), 2), [0.6, 0.4])
    valid = Predictions.from_probabilities(
        [data.images.ids[row] for row in rows], data.images.classes, probabilities, data.labels[rows]
    )
    valid.save(folder / "valid.npz")
    card = ModelCard("tiny", data.images.classes, shape, "fp32", 1, "photos")
    return Kept((Candidate(stage, Classifier(network, network.num_features, 2), card, valid),))


def looked_back(session: Session, data: Dataset, **more: Any) -> dict[str, Any]:
    """Look back, and return the record."""
    kept = candidate(data, session.folder, more.pop("stage", "finetune"))
    diagnostics.write_diagnostics(session, prepared(data, **more), [kept])
    return read_run(session.folder)


def fails(error: BaseException) -> Callable[..., Any]:
    def make(*given: Any, **named: Any) -> Any:
        raise error

    return make


def test_health_pictures_and_figures_are_written_and_timed(session: Session, data: Dataset):
    record = looked_back(session, data)
    assert {path.name for path in session.folder.iterdir()} >= FILES
    (stage,) = record["stages"]
    assert (stage["name"], stage["state"]) == ("diagnostics", "finished")
    assert 0 < stage["seconds"] <= record["seconds"]
    session.show_table()
    places = [
        cast(io.StringIO, session.screen._console.file).getvalue().find(name)
        for name in ("diagnostics", IN_NO_STAGE, "in all")
    ]
    assert -1 < places[0] < places[1] < places[2]
    assert record["warnings"] == []
    assert record["architecture"]["image_size"] == SIDE
    assert record["architecture"]["trainable"] == record["architecture"]["parameters"] > 0
    shown = json.loads((session.folder / "gallery.json").read_text(encoding="utf-8"))
    assert shown["augmentation"]["1"]
    assert shown["near_duplicates"]
    page = Page.read(write_report(session.folder))
    assert page.ids() >= {"errors", "health", "samples"}


def test_copies_among_validation_and_test_images_are_warned_of(session: Session, data: Dataset, tmp_path: Path):
    """By how many, which, and the accuracy without them; identical test files have been warned of before."""
    test_root = write_flat(tmp_path / "test", count=30, side=SIDE)
    Image.fromarray((np.asarray(picture(1, 5, SIDE)) * 0.85).astype(np.uint8)).save(test_root / "near.png")
    picture(0, 9, SIDE).save(test_root / "same.png")
    test = unlabelled(test_root, tmp_path / "cache")
    names = {name: row for row, name in enumerate(data.images.ids)}
    held = np.array(
        [names[name] for name in ("round/001.png", "round/near.png", "striped/001.png", "striped/same.png")]
    )
    logits = np.array([[[1, 0], [1, 0], [1, 0], [0, 1]]], np.float32)  # wrong on striped/001.png only
    ids = tuple(data.images.ids[row] for row in held)
    kept = candidate(data, session.folder)
    Predictions(ids, data.images.classes, logits, labels=data.labels[held]).save(session.folder / "valid.npz")
    fold = Fold(np.setdiff1d(np.arange(len(data)), held), held, 0)
    diagnostics.write_diagnostics(session, replace(prepared(data, test), folds=[fold]), [kept])
    of_valid, of_test = (one["text"] for one in read_run(session.folder)["warnings"])
    for word in ("2 of 4 validation", "round/near.png", "striped/same.png", "75.0%", "50.0% on the 2 others"):
        assert word in of_valid
    assert "2 of 32 test" in of_test
    warn_of_known(session, data, test)
    early = read_run(session.folder)["warnings"][-1]["text"]
    assert "1 of 32 test" in early
    assert "same.png" in early
    assert "near.png" not in early


def test_of_a_head_its_own_weights_are_trained_and_test_images_are_compared(
    session: Session, data: Dataset, tmp_path: Path
):
    test = unlabelled(write_classes(tmp_path / "test", ("flat",), count=12, side=SIDE), tmp_path / "cache")
    features = features_of(test)
    plain = Predictions.from_probabilities(test.images.ids, data.images.classes, np.full((len(test), 2), 0.5))
    Predictions(plain.ids, plain.classes, plain.logits, features).save(session.folder / "test.npz")
    record = looked_back(session, data, test=test, stage="head")
    assert record["architecture"]["trainable"] == 2 * 8 + 2
    health = json.loads((session.folder / "health.json").read_text(encoding="utf-8"))
    assert health["shift"]["images"] == [len(data), 12]
    assert record["warnings"] == []


@pytest.mark.parametrize(
    ("broken", "what", "missing"),
    [
        ("examine_health", "the health of the images", {"health.json"}),
        ("write_gallery", "pictures", {"gallery.npz", "gallery.json"}),
        ("architecture", "the network's figures", set()),
    ],
)
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (EtudeError("the disk is full"), "the disk is full"),
        (ValueError("bad shape"), "ValueError: bad shape"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_fails_is_a_warning_and_the_rest_is_there(
    session: Session, data: Dataset, monkeypatch: pytest.MonkeyPatch,
    broken: str, what: str, missing: set[str], error: Exception, told: str,
):  # fmt: skip
    monkeypatch.setattr(diagnostics, broken, fails(error))
    record = looked_back(session, data)
    assert [one["text"] for one in record["warnings"]] == [f"the report does without {what}: {told}"]
    assert {path.name for path in session.folder.iterdir()} & FILES == FILES - missing
    assert (record["stages"][0]["state"], "architecture" in record) == ("finished", broken != "architecture")
    assert "does without" in Page.read(write_report(session.folder)).said()


def test_a_stop_by_hand_passes_through(session: Session, data: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diagnostics, "examine_health", fails(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        looked_back(session, data)
    assert read_run(session.folder)["stages"][0]["state"] == "interrupted"


@pytest.mark.parametrize("error", [EtudeError("the disk is full"), OSError("no space"), KeyError("data")])
def test_a_report_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    opened(tmp_path).close("finished")
    monkeypatch.setattr("etude.journal.report.report.write_report", fails(error))
    said = io.StringIO()
    report(tmp_path, Screen(file=said))
    assert said.getvalue().startswith("warning: no report: ")
    assert str(error) in said.getvalue()


@pytest.fixture
def request_of(tmp_path: Path) -> Request:
    train = write_classes(tmp_path / "train", count=4)
    return Request(train, out=tmp_path / "run", cache=tmp_path / "cache", tags=("baseline", "mixup"))


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (EtudeError("no image can be read"), "failed", "It failed in scan after"),
        (ValueError("bad <shape>"), "failed", "ValueError: bad <shape>"),
        (KeyboardInterrupt(), "interrupted", "It was interrupted in scan after"),
    ],
)
def test_a_run_that_does_not_finish_has_a_report(
    request_of: Request, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str, told: str
):
    monkeypatch.setattr("etude.study.run.prepare.scan_sources", fails(error))
    with pytest.raises(type(error)) as raised:
        start.fit(request_of, Screen(quiet=True))
    assert raised.value is error
    assert request_of.out is not None
    record, page = read_run(request_of.out), Page.read(request_of.out / "report.html")
    assert (record["state"], record["tags"]) == (state, ["baseline", "mixup"])
    assert told in page.said()
    assert {"#baseline", "#mixup"} <= set(page.words)
    assert page.ids() >= {"steps", "settings", "reproduce"}


def test_a_report_that_fails_does_not_hide_what_ended_the_run(request_of: Request, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("etude.study.run.prepare.scan_sources", fails(EtudeError("no image can be read")))
    monkeypatch.setattr("etude.journal.report.report.write_report", fails(KeyError("data")))
    with pytest.raises(EtudeError, match="no image can be read"):
        start.fit(request_of, Screen(quiet=True))


def test_tags_that_come_with_a_resume_are_added(request_of: Request, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("etude.study.run.prepare.scan_sources", fails(EtudeError("no image can be read")))
    for tags, resume in ((("baseline",), False), (("better", "baseline"), True), ((), True)):
        with pytest.raises(EtudeError, match="no image"):
            start.fit(Request(request_of.train, out=request_of.out, tags=tags, resume=resume), Screen(quiet=True))
    assert request_of.out is not None
    assert read_run(request_of.out)["tags"] == ["baseline", "better"]


def test_a_tag_that_is_none_is_refused_before_anything_is_made(tmp_path: Path):
    with pytest.raises(EtudeError, match="'two words' cannot be a tag"):
        start.fit(Request(tmp_path / "train", out=tmp_path / "run", tags=("two words",)), Screen(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_run_knows_the_run_that_it_is_part_of(request_of: Request, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("etude.study.run.prepare.scan_sources", fails(EtudeError("no image can be read")))
    with pytest.raises(EtudeError, match="no image"):
        start.fit(Request(request_of.train, out=request_of.out, parent="c0ffee"), Screen(quiet=True))
    assert request_of.out is not None
    assert read_run(request_of.out)["parent"] == "c0ffee"
