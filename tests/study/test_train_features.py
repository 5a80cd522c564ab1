"""``train.npz``: when a run saves the features of its training images, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from etude.core.predictions import Predictions
from picture_folders import write_classes, write_flat

QUICK = ("--recipe", "quick", "--set", "model.feature_size=64")
FINETUNED = ("--set", 'stages=["finetune"]', "--set", "predict.tta=1")
ALWAYS = ("--set", "predict.train_features=always")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "train", count=20)


def saved(run: Path) -> Predictions:
    assert "train.npz" in {each["name"] for each in json.loads((run / "run.json").read_text())["artefacts"]}
    return Predictions.load(run / "train.npz")


def test_a_head_saves_the_features_that_it_was_fitted_on(etude, tmp_path, images):
    ended = etude("fit", images, "--test", write_flat(tmp_path / "test"), *QUICK, "--out", "run")
    assert ended.code == 0, ended.err
    train, valid = saved(tmp_path / "run"), Predictions.load(tmp_path / "run" / "valid.npz")
    assert not set(train.ids) & set(valid.ids)
    assert len(train) + len(valid) == 40
    assert train.labels is not None
    assert [train.classes[label] for label in train.labels] == [name.split("/")[0] for name in train.ids]
    head, validated = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("model", "validated-head"))
    assert train.features is not None
    assert valid.features is not None
    expected = train.features.astype(np.float32) @ head["head.weight"].T + head["head.bias"]
    np.testing.assert_allclose(train.logits[0], expected, rtol=1e-4, atol=1e-4)
    before = valid.features.astype(np.float32) @ validated["weight"].T + validated["bias"]
    np.testing.assert_allclose(valid.logits[0], before, rtol=1e-4, atol=1e-4)
    refined = etude("refine", "run", "--steps", "knn,last_layer", "--out", "refined.csv")
    assert refined.code == 0, refined.err


def test_the_head_learns_from_validation_images_once_they_have_judged_it(etude, tmp_path, images):
    test = write_flat(tmp_path / "test")
    assert etude("fit", images, "--test", test, *QUICK, "--out", "run").code == 0
    run = tmp_path / "run"
    known, tested = (
        [Predictions.load(run / f"{name}.npz") for name in ("train", "valid")],
        Predictions.load(run / "test.npz"),
    )
    features = np.concatenate([each.features for each in known]).astype(np.float64)
    labels = np.concatenate([each.labels for each in known])
    (c,) = [note["C"] for note in json.loads((run / "run.json").read_text())["result"]["notes"]]
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-6, max_iter=1000)).fit(features, labels)
    expected = reference.predict_proba(tested.features.astype(np.float64))
    np.testing.assert_allclose(tested.probabilities(), expected, atol=0.01)


@pytest.mark.parametrize("words", ["--set head.refit=never", "--folds 2", "--valid more"])
def test_validation_images_that_were_given_or_are_needed_teach_no_head(etude, tmp_path, images, words):
    write_classes(tmp_path / "more", count=4)
    assert etude("fit", images, *QUICK, *words.split(), "--out", "run").code == 0
    assert not [*(tmp_path / "run").rglob("validated-head.safetensors")]


def test_never_saves_none(etude, tmp_path, images):
    assert etude("fit", images, *QUICK, "--set", "predict.train_features=never", "--out", "run").code == 0
    assert not (tmp_path / "run" / "train.npz").exists()


@pytest.mark.parametrize(("epochs", "asked", "is_saved"), [(1, (), False), (7, (), True), (1, ALWAYS, True)])
def test_a_network_saves_them_when_training_took_much_longer(etude, tmp_path, images, epochs, asked, is_saved):
    ended = etude("fit", images, *FINETUNED, "--set", f"train.epochs={epochs}", *asked, "--out", "run")
    assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "train.npz").exists() == is_saved
    if is_saved:
        train = saved(tmp_path / "run")
        again = etude("predict", "run", images, "--out", "all.npz")
        assert again.code == 0, again.err
        everything = Predictions.load(tmp_path / "all.npz")
        rows = [everything.ids.index(name) for name in train.ids]
        assert everything.features is not None
        np.testing.assert_allclose(train.features, everything.features[rows], rtol=1e-2, atol=1e-2)


def test_folds_have_no_features_in_common(etude, tmp_path, images):
    folds = (*QUICK, "--folds", 2, "--out")
    assert etude("fit", images, *folds, "auto").code == 0
    ended = etude("fit", images, *folds, "always", *ALWAYS)
    assert ended.code == 0, ended.err
    assert "predict.train_features=always saves nothing with several folds" in ended.out.replace("\n", " ")
    assert not list(tmp_path.glob("*/train.npz"))
    assert "several folds" not in (tmp_path / "auto" / "run.json").read_text()
