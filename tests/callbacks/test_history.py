from __future__ import annotations

import csv
from pathlib import Path

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest

from etude.callbacks import Clock, History
from etude.timeline import Shape, preset, step_progress

PLAN = preset("default", Shape(peak_lr=1e-3, start_size=64, final_size=128))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_row_a_validation_with_the_clocks_moment(fit, plain_module, tmp_path: Path):
    plan, module = PLAN, plain_module()
    history = History(tmp_path / "runs" / "history.csv")
    fit(module, [Clock(plan), history], steps=12, per_epoch=4, valid=True)
    assert [(row["epoch"], row["step"]) for row in history.rows] == [(0, 4), (1, 8), (2, 12)]
    for row in history.rows:
        moment = plan.at(step_progress(row["step"] - 1, 12))
        assert [row[name] for name in ("phase", "lr", "image_size", "augment")] == [
            moment.phase, moment.lr, moment.image_size, moment.augment,
        ]  # fmt: skip
        assert (row["valid_loss"], row["valid_accuracy"]) == (0.25, 0.75)
    seconds = [row["seconds"] for row in history.rows]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_the_training_loss_is_the_mean_since_the_row_before(fit, plain_module):
    module, history = plain_module(), History()
    fit(module, [history], steps=8, per_epoch=4, valid=True)
    means = [sum(module.losses[start : start + 4]) / 4 for start in (0, 4)]
    assert [row["train_loss"] for row in history.rows] == pytest.approx(means)
    assert means[0] != pytest.approx(means[1])


def test_the_file_holds_the_rows(fit, plain_module, tmp_path: Path):
    history = History(tmp_path / "history.csv")
    fit(plain_module(), [Clock(PLAN), history], steps=8, valid=True)
    written = rows_of(tmp_path / "history.csv")
    assert list(written[0])[:4] == ["epoch", "step", "seconds", "phase"]
    as_text = [{name: "" if value is None else str(value) for name, value in row.items()} for row in history.rows]
    assert written == as_text


def test_a_run_that_dies_keeps_its_curves(fit, plain_module, tmp_path: Path):
    with pytest.raises(RuntimeError, match="the cable fell out"):
        fit(plain_module(fail_at=10), [History(tmp_path / "history.csv")], steps=12, per_epoch=4, valid=True)
    assert [row["step"] for row in rows_of(tmp_path / "history.csv")] == ["4", "8"]
    assert [path.name for path in tmp_path.glob("*history*")] == ["history.csv"]


def test_without_a_clock_its_columns_are_left_out(fit, plain_module):
    history = History()
    fit(plain_module(), [history], steps=4, valid=True)
    assert [*history.rows[0]] == ["epoch", "step", "seconds", "train_loss", "valid_accuracy", "valid_loss"]


def test_epochs_of_a_stream_of_steps_are_fractions(fit, plain_module):
    history = History(epoch_steps=2.5)
    fit(plain_module(), [history], steps=8, per_epoch=4, valid=True)
    assert [row["epoch"] for row in history.rows] == [1.6, 3.2]


def test_the_table_comes_back_from_its_state(fit, plain_module):
    history, again = History(), History()
    fit(plain_module(), [history], steps=6, per_epoch=4, valid=True)  # two losses wait for the next row
    again.load_state_dict(history.state_dict())
    assert again.rows == history.rows
    assert len(again.state_dict()["losses"]) == 2
    assert again.state_dict()["losses"] == history.state_dict()["losses"]
    assert again.state_dict()["seconds"] >= history.rows[-1]["seconds"]


def test_the_sanity_check_writes_no_row(fit, plain_module):
    class Watching(pl.Callback):
        checked = False

        def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.checked = True

    watching, history = Watching(), History()
    fit(plain_module(), [watching, history], steps=4, valid=True)
    assert watching.checked
    assert len(history.rows) == 1


def test_without_validation_there_are_no_rows(fit, plain_module, tmp_path: Path):
    history = History(tmp_path / "history.csv")
    fit(plain_module(), [history], steps=4)
    assert history.rows == []
    assert not (tmp_path / "history.csv").exists()
