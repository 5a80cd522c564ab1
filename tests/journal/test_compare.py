from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError
from etude.core.metrics import metric_named
from etude.core.paired import paired_bootstrap
from etude.core.predictions import Predictions
from etude.journal.compare import Comparison, compare_runs
from etude.journal.figures import save_figure
from etude.journal.figures.curves import curves_figure
from recorded_runs import edit_record, opened, predictions, write_run


def compared(folder: Path, after: Predictions | None, **changed: Any) -> Comparison:
    """Compare a run that is right in 75 of 100 images with one that has made the predictions ``after``."""
    write_run(folder / "a", right=range(75))
    write_run(folder / "b", **changed)
    (folder / "b" / "valid.npz").unlink()
    if after is not None:
        after.save(folder / "b" / "valid.npz")
    return compare_runs([folder / "a", folder / "b"])


def test_gains_are_a_paired_bootstrap_over_the_same_images(tmp_path: Path):
    after = predictions(range(90))
    found = compared(tmp_path, after)
    (contrast,) = found.contrasts
    assert contrast.gains is not None
    assert (contrast.images, contrast.reason, contrast.cautions) == (100, None, ())
    before = predictions(range(75))
    for name in ("accuracy", "log_loss"):
        sides = before.log_probabilities(), after.log_probabilities()
        expected = paired_bootstrap(metric_named(name), *sides, after.labels, level=0.95)
        assert contrast.gains[name] == expected
    assert contrast.gains["accuracy"].gain == pytest.approx(0.15)
    assert contrast.gains["accuracy"].beyond_noise
    assert json.loads(json.dumps(found.to_json()))["against_first"][0]["gains"]["accuracy"]["gain"] == pytest.approx(
        0.15
    )


def test_the_order_of_images_and_classes_makes_no_difference(tmp_path: Path):
    after = predictions(range(90))
    order = np.random.default_rng(0).permutation(100)
    assert after.labels is not None
    turned = Predictions(
        tuple(after.ids[k] for k in order),
        ("dog", "cat"),
        after.logits[:, order][:, :, ::-1],
        labels=1 - after.labels[order],
    )
    plain, other = compared(tmp_path / "1", after).contrasts[0], compared(tmp_path / "2", turned).contrasts[0]
    assert plain.gains is not None
    assert other.gains is not None
    for name in plain.gains:
        assert other.gains[name].gain == pytest.approx(plain.gains[name].gain)
        assert other.gains[name].low == pytest.approx(plain.gains[name].low)


def test_only_common_labelled_images_count(tmp_path: Path):
    every = predictions(range(90))
    assert every.labels is not None
    labels = np.where(np.arange(100) < 80, every.labels, -1)
    after = Predictions(every.ids, every.classes, every.logits, labels=labels).take(np.arange(20, 100))
    (contrast,) = compared(tmp_path, after).contrasts
    assert contrast.gains is not None
    assert (contrast.images, contrast.cautions) == (60, ())  # all that the second run has labels for
    assert contrast.gains["accuracy"].gain == pytest.approx(5 / 60)


def test_few_common_images_are_pointed_out(tmp_path: Path):
    after = predictions(range(90))
    ids = tuple(f"other-{name}" if row < 40 else name for row, name in enumerate(after.ids))
    (contrast,) = compared(tmp_path, Predictions(ids, after.classes, after.logits, labels=after.labels)).contrasts
    assert contrast.images == 60
    assert contrast.cautions == ("only 60 of their 100 and 100 validation images are the same",)


def relabelled(**changed: Any) -> Predictions:
    made = predictions(range(90))
    kept = {"ids": made.ids, "classes": made.classes, "logits": made.logits, "labels": made.labels}
    return Predictions(**(kept | changed))


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (lambda: None, "b holds no valid.npz"),
        (lambda: relabelled(labels=None), "holds no labels"),
        (
            lambda: relabelled(labels=np.zeros(100, np.int64)),
            "50 of their 100 common validation images have another label",
        ),
        (lambda: relabelled(ids=tuple(f"x{k}" for k in range(100))), "no validation image in common"),
        (lambda: relabelled(classes=("cat", "<b>")), "their classes differ: only one of them has '<b>', 'dog'"),
    ],
)
def test_runs_that_cannot_be_scored_against_each_other(tmp_path: Path, after: Any, reason: str):
    found = compared(tmp_path, after(), settings={"train.lr": 0.2})
    assert found.contrasts[0].gains is None
    assert reason in str(found.contrasts[0].reason)
    assert found.settings["train.lr"] == [0.1, 0.2]


def test_damaged_predictions_are_named(tmp_path: Path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    (tmp_path / "a" / "valid.npz").write_bytes(b"PK")
    assert "valid.npz" in str(compare_runs([tmp_path / "a", tmp_path / "b"]).contrasts[0].reason)


def test_settings_that_differ(tmp_path: Path):
    write_run(tmp_path / "a", settings={"name": "one", "train.lr": 0.1, "train.epochs": 3})
    write_run(tmp_path / "b", settings={"name": "two", "train.lr": 0.1, "augment.policy": "none"}, recipe="own", seed=4)
    write_run(tmp_path / "c", settings={"name": "two", "train.lr": 0.1, "train.epochs": 3})
    found = compare_runs([tmp_path / name for name in "abc"])
    assert found.settings == {
        "recipe": ["quick", "own", "quick"],
        "seed": [3, 4, 3],
        "train.epochs": [3, None, 3],
        "augment.policy": [None, "none", None],
    }


def test_a_run_that_was_stopped_early_is_compared_as_it_was_asked(tmp_path: Path):
    write_run(tmp_path / "a")
    opened(tmp_path / "b", settings={"data": {"fit": "squash"}}).close("failed", "no images")
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert found.settings["data"] == [{"fit": "crop"}, {"fit": "squash"}]
    assert list(found.stages) == ["head", "fine-tune"]
    assert [row[1] for row in found.stages.values()] == [None, None]
    assert all(isinstance(row[0], float) for row in found.stages.values())
    assert found.contrasts[0].reason == "b holds no valid.npz"


def test_other_data_are_pointed_out(tmp_path: Path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    edit_record(tmp_path / "b", data={"fingerprint": "other"})
    (contrast,) = compare_runs([tmp_path / "a", tmp_path / "b"]).contrasts
    assert contrast.cautions == ("their data differ: images were paired by their names",)
    assert contrast.gains is not None


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    for name in ("x/first", "y/first"):
        write_run(tmp_path / name)
    found = compare_runs([tmp_path / "x/first", tmp_path / "y/first"])
    assert [run.path for run in found.runs] == [str(tmp_path / "x/first"), str(tmp_path / "y/first")]


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "../{}/a"]])
def test_comparing_takes_two_runs(tmp_path: Path, names: list[str]):
    write_run(tmp_path / "a")
    with pytest.raises(EtudeError, match="takes two different runs or more"):
        compare_runs([tmp_path / name.format(tmp_path.name) for name in names])


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_curves_over_each_other(tmp_path: Path, ending: str):
    rows = [{"seconds": float(k), "valid_accuracy": 0.5 + k / 100, "valid_loss": 1.0 / (k + 1)} for k in range(9)]
    histories = {"first": rows, "_$\\frac{<b>$ \udcff" + "x" * 80: rows, "without": [{"seconds": 1.0}]}
    save_figure(curves_figure(histories), tmp_path / f"c{ending}")
    assert (tmp_path / f"c{ending}").stat().st_size > 5000
    with pytest.raises(EtudeError, match="none of these runs has training curves"):
        curves_figure({"without": histories["without"]})
    with pytest.raises(EtudeError, match=r"ends in .png or .svg"):
        save_figure(curves_figure(histories), tmp_path / "d.txt")
    assert not list(tmp_path.glob("d.*"))
