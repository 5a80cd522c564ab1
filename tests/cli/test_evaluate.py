"""``etude evaluate``, and the scores of a test set whose labels stand beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, log_loss

import etude as package
from etude.core.predictions import Predictions
from etude.data.sources import read_unlabelled, stated_labels
from etude.run import Run, load
from picture_folders import picture, write_classes, write_flat


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and labelled images of its two classes, some of them in the other class's folder."""
    folder = tmp_path_factory.mktemp("place")
    write_classes(folder / "train", count=20)
    package.fit(folder / "train", recipe="quick", out=folder / "run", cache=folder / "cache", quiet=True)
    for name, other in (("round", "striped"), ("striped", "round")):
        (folder / "held" / name).mkdir(parents=True)
        for number in range(10):
            kind = ("round", "striped").index(other if number < 2 else name)
            picture(kind, 500 + number, 24).save(folder / "held" / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return load(place / "run")


def test_scores_are_those_of_scikit_learn(etude, place, tmp_path, run):
    ended = etude("evaluate", run.folder, place / "held", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert etude("evaluate", run.folder, place / "held", "--out", "e.npz").code == 0
    saved = Predictions.load(tmp_path / "e.npz")
    assert [saved.classes[k] for k in saved.labels] == [name.partition("/")[0] for name in saved.ids]
    scores = {name: one["value"] for name, one in found["scores"].items()}
    assert found["images"] == 20
    assert scores["accuracy"] == pytest.approx((saved.predicted() == saved.labels).mean())
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(saved.labels, saved.predicted()))
    assert scores["log_loss"] == pytest.approx(log_loss(saved.labels, saved.probabilities()), abs=1e-6)
    assert all(one["low"] <= one["value"] <= one["high"] for one in found["scores"].values())
    plain = run.predict(place / "held").predictions
    np.testing.assert_array_equal(plain.logits, saved.logits)  # labels change no prediction


def test_the_terminal_shows_scores_classes_and_what_they_are_taken_for(etude, place, run):
    ended = etude("evaluate", run.folder, place / "held")
    assert ended.code == 0, ended.err
    for word in ("20 images", "accuracy", "80.0%", "95%", "round", "striped × 2", "validation accuracy of the run"):
        assert word in ended.out


def test_the_page_shows_the_surest_errors_as_pictures(etude, place, tmp_path, run):
    assert etude("evaluate", run.folder, place / "held", "--out", "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64") == 4
    assert "validation" not in page


def test_images_that_the_run_knows_are_named_on_the_page_too(etude, place, tmp_path, run):
    """Also those that validated it: the head has learned from them in the end."""
    ended = etude("evaluate", run.folder, place / "train", "--out", "page.html")
    assert ended.code == 0
    assert "40 of 40 images are among those" in ended.out
    assert "40 of 40 images are among those" in (tmp_path / "page.html").read_text()
    for name in run.validation().ids:
        (tmp_path / "seen" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "train" / name, tmp_path / "seen" / name)
    assert "8 of 8 images are among those" in etude("evaluate", run.folder, "seen").out
    assert "among those" not in etude("evaluate", run.folder, place / "held").out


def test_labels_in_a_table(etude, place, tmp_path, run):
    rows = [f"{name}/{number}.png,{name}" for name in ("round", "striped") for number in range(10)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]))
    ended = etude("evaluate", run.folder, "t.csv", "--image-root", place / "held", "--json")
    assert json.loads(ended.out)["images"] == 20
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows, "round/1.png,zebra"]))
    ended = etude("evaluate", run.folder, "t.csv", "--image-root", place / "held")
    assert (ended.code, "zebra" in ended.err) == (2, True)


@pytest.mark.parametrize("kind", ["folders", "table"])
def test_a_test_set_with_labels_is_scored_and_decides_nothing(etude, place, tmp_path, kind):
    train, test = place / "train", place / "held"
    if kind == "table":
        rows = [f"{name}/{number}.png,{name}" for name in ("round", "striped") for number in range(10)]
        (test := place / "held.csv").write_text("\n".join(["image,label", *(f"held/{row}" for row in rows)]))
    ended = etude("fit", train, "--test", test, "--recipe", "quick", "--out", "scored")
    assert ended.code == 0, ended.err
    assert "test accuracy 80.0%" in ended.out
    assert ("class folders" if kind == "folders" else "column 'label' of held.csv") in ended.out
    record = json.loads((tmp_path / "scored/run.json").read_text())
    assert record["result"]["test"]["accuracy"] == pytest.approx(0.8)
    assert "on test images" in (tmp_path / "scored/report.html").read_text()
    predictions = Predictions.load(tmp_path / "scored/test.npz")
    assert predictions.labels is None
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (place / "held").rglob("*.png"):
        shutil.copy(file, flat / f"{file.parent.name}-{file.name}")
    ended = etude("fit", train, "--test", flat, "--recipe", "quick", "--out", "plain")
    assert "test accuracy" not in ended.out
    np.testing.assert_array_equal(Predictions.load(tmp_path / "plain/test.npz").logits, predictions.logits)


def test_known_test_images_and_placeholders_are_no_score(etude, place, tmp_path):
    ended = etude("fit", place / "train", "--test", place / "train", "--recipe", "quick", "--out", "known")
    assert "40 of them are among the labelled images" in ended.out
    rows = [f"{place}/held/round/{number}.png,{'round' if number % 2 else 'striped'}" for number in range(10)]
    (tmp_path / "sample.csv").write_text("\n".join(["image,label", *rows]))
    words = ("--test", "sample.csv", "--sample-submission", "sample.csv", "--recipe", "quick", "--out", "sample")
    ended = etude("fit", place / "train", *words)
    assert ended.code == 0, ended.err
    assert "test accuracy" not in ended.out


def test_labels_that_differ_by_outer_spaces_are_the_class(place, tmp_path):
    ids = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(ids):
        picture(number % 2, number, 24).save(tmp_path / name)
    rows = [f"{name},{'round ' if number % 2 else 'striped'}" for number, name in enumerate(ids)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]))
    images = read_unlabelled(tmp_path / "t.csv")
    labels, named_by = stated_labels(tmp_path / "t.csv", images, ("round", "striped"))
    assert labels is not None
    assert (labels.tolist(), named_by) == ([1, 0, 1, 0], "column 'label' of t.csv")
    assert stated_labels(tmp_path / "t.csv", images, ("round", "striped"), rule="strict")[0] is None


def test_predict_prints_the_most_probable_classes(etude, place, tmp_path, run):
    ended = etude("predict", run.folder, place / "held/round/5.png", place / "held/striped/5.png", "--top", "1")
    assert ended.code == 0, ended.err
    lines = [line for line in ended.out.splitlines() if "held" in line]
    assert [line.split(": ")[1].split()[0] for line in lines] == ["round", "striped"]
    assert all(line.endswith("%") for line in lines)
    ended = etude("predict", run.folder, place / "held", "--json")
    rows = json.loads(ended.out)
    assert len(rows) == 20
    assert all(sum(one["probability"] for one in row["top"]) == pytest.approx(1) for row in rows)


def test_many_images_are_not_printed_one_by_one(etude, place, tmp_path, run):
    ended = etude("predict", run.folder, write_flat(tmp_path / "many", count=25))
    assert "5 more images" in ended.out
    assert "t019.png" in ended.out
    assert "t020.png" not in ended.out


def test_the_sheet_is_a_picture(etude, place, tmp_path, run):
    assert etude("predict", run.folder, place / "held", "--sheet", "sheet.png").code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000
        assert len(np.unique(np.asarray(sheet))) > 50


def test_pictures_in_memory_are_predicted_as_their_files_are_in_the_order_given(place, run):
    files = [place / "held/striped/7.png", place / "held/round/3.png", place / "held/round/9.png"]
    whole = run.predict(place / "held").predictions
    rows = [whole.ids.index(file.relative_to(place / "held").as_posix()) for file in files]
    pictures = [Image.open(file) for file in files]
    for given in (files, [str(file) for file in files], pictures, [np.asarray(one) for one in pictures]):
        found = run.predict(given).predictions
        np.testing.assert_allclose(found.logits, whole.logits[:, rows], atol=1e-4)
    for given in (pictures[0], np.asarray(pictures[0]), files[0], np.asarray(pictures[0])[None]):
        assert len(run.predict(given).predictions) == 1
    with pytest.warns(UserWarning, match="1 of the 3 given"):
        again = run.predict([files[0], files[1], files[0]])
    assert again.predictions.ids == (str(files[0]), str(files[1]))


def test_pictures_in_memory_leave_nothing_in_the_cache(run, place, monkeypatch, tmp_path):
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "own"))
    found = run.predict([picture(0, number, 24) for number in range(12)])
    assert list(found.labels()) == [f"{number:02}.png" for number in range(12)]
    assert not list((tmp_path / "own").rglob("*.*"))
    with pytest.raises(package.EtudeError, match="memory"):
        found.pictures(["00.png"])


def test_deep_pictures_are_read_as_their_files(tmp_path):
    """Big-endian ones too, which TIFF files have."""
    train = tmp_path / "train"
    for kind, name in enumerate(("round", "striped")):
        (train / name).mkdir(parents=True)
        for number in range(12):
            deep = np.asarray(picture(kind, number, 24).convert("L")).astype(np.uint16) * 257
            Image.fromarray(deep).save(train / name / f"{number}.png")
    run = package.fit(train, recipe="quick", out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    file = train / "round" / "3.png"
    with Image.open(file) as opened:
        deep = np.asarray(opened).astype(np.uint16)
    swapped = Image.frombytes("I;16B", (24, 24), deep.astype(">u2").tobytes())
    shown = [Image.fromarray(deep), swapped, Image.fromarray(deep.astype(np.int32))]
    assert [one.mode for one in shown] == ["I;16", "I;16B", "I"]
    own = run.predict(file).predictions.logits
    for one in (*shown, deep):
        np.testing.assert_array_equal(run.predict(one).predictions.logits, own)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_any_mode_are_read_as_their_files(run, tmp_path, mode):
    shown = picture(0, 3, 24).convert(mode)
    shown.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    ours, files = run.predict(shown).predictions, run.predict([*tmp_path.glob("a.*")]).predictions
    np.testing.assert_allclose(ours.logits, files.logits, atol=1e-3)


def test_a_turned_photograph_is_turned_back(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, 3, 24).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        ours = run.predict(turned).predictions
    files = run.predict([tmp_path / "turned.png"]).predictions
    np.testing.assert_array_equal(ours.logits, files.logits)


def test_pictures_that_cannot_be_read_are_named_by_their_place(run, tmp_path):
    picture(0, 3, 24).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with pytest.raises(package.EtudeError, match="picture 1 of 2"):
        run.predict([picture(0, 3, 24), closed])


def test_a_sheet_that_cannot_be_drawn_costs_no_predictions(etude, place, tmp_path, run):
    ended = etude("predict", run.folder, place / "held", "--out", "p.csv", "--sheet", "/proc/x/s.png")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert (tmp_path / "p.csv").is_file()


def test_json_is_pure_where_there_are_warnings_and_quiet_shows_what_was_asked_for(etude, place, tmp_path, run):
    folder = write_flat(tmp_path / "some", count=3)
    (folder / "broken.png").write_bytes(b"no picture")
    ended = etude("predict", run.folder, folder, "--json")
    assert len(json.loads(ended.out)) == 3
    assert "broken.png" in ended.err
    assert "t000.png" in etude("predict", run.folder, folder, "--quiet").out
    assert "accuracy" in etude("evaluate", run.folder, place / "held", "--quiet").out


@pytest.mark.parametrize(
    "given",
    [
        [],
        np.zeros((24, 24, 3), np.float32),
        np.zeros((3, 24, 24), np.uint8),
        np.zeros((0, 24, 3), np.uint8),
        [np.zeros(24, np.uint8)],
        [Path("a.png"), np.zeros((24, 24), np.uint8)],
        [Path("train"), Path("train")],
        Image.new("F", (8, 8)),
        Image.fromarray(np.full((8, 8), -3, np.int32)),
        3,
    ],
)
def test_what_is_no_picture_is_refused(run, place, monkeypatch, given):
    monkeypatch.chdir(place)
    (place / "a.png").write_bytes((place / "held/round/3.png").read_bytes())
    with pytest.raises(package.EtudeError):
        run.predict(given)


def test_a_prediction_has_scores_only_with_labels(run, place):
    assert repr(run.predict(place / "held")) == "Prediction(20 images, 2 classes)"
    assert repr(run).startswith("Run(")
    with pytest.raises(package.EtudeError, match="evaluate"):
        run.predict(place / "held").scores()
    assert run.evaluate(place / "held").scores()[0].value == pytest.approx(0.8)
    with pytest.raises(package.EtudeError, match="class folders"):
        run.evaluate([place / "held"])
