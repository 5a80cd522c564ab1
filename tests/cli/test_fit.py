"""``etude fit`` and ``etude predict`` as a user calls them."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from etude.core.predictions import Predictions
from etude.journal.runs import validated
from picture_folders import write_classes, write_flat

QUICK = ("--recipe", "quick")
SHORT = ("--set", "train.epochs=6")


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_default_recipe_trains_both_stages_and_predicts_and_can_be_repeated(etude, tmp_path):
    train, test = write_classes(tmp_path / "train"), write_flat(tmp_path / "test")
    ended = etude("fit", train, "--test", test, "--out", "run", *SHORT)
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    record = record_of(run)
    assert record["state"] == "finished"
    stages = [stage["name"] for stage in record["stages"]]
    assert stages[:6] == ["start-up", "scan", "plan", "store", "features", "head"]
    assert "fine-tune" in stages
    assert {"model.safetensors", "valid.npz", "test.npz", "submission.csv", "history.csv"} <= {
        artefact["name"] for artefact in record["artefacts"]
    }
    assert list((run / "tb").glob("events.*"))
    assert [row["id"] for row in rows_of(run / "submission.csv")] == [f"t{k:03d}.png" for k in range(6)]
    assert rows_of(run / "history.csv")[-1]["phase"] == "finish"
    for word in ("Plan", "device", "stage 1", "stage 2", "validation accuracy", "fine-tune"):
        assert word in ended.out

    # Predicting again gives the numbers of the run, and the same command, without its cache, the same run.
    assert etude("predict", "run", test, "--out", "again.npz").code == 0
    assert etude("fit", train, "--out", "two", "--cache", "b", *SHORT).code == 0
    for first, again in ((run / "test.npz", tmp_path / "again.npz"), (run / "valid.npz", tmp_path / "two/valid.npz")):
        one, two = Predictions.load(first), Predictions.load(again)
        assert one.ids == two.ids
        np.testing.assert_array_equal(one.logits, two.logits)


def test_quick_recipe_finds_easy_classes(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=30)
    ended = etude(
        "fit",
        train,
        *QUICK,
        "--out",
        "run",
        "--epochs",
        "3",
        "--set",
        "train.precision=fp32",
        "--set",
        "augment.mixup=0.2",
    )
    assert ended.code == 0
    assert "train.epochs" in ended.out  # which a recipe without fine-tuning does not use
    assert "augment.mixup" in ended.out
    assert "train.precision" not in ended.out
    valid = Predictions.load(tmp_path / "run" / "valid.npz")
    assert len(valid) == 12
    assert (valid.predicted() == valid.labels).mean() >= 0.9


def test_predictions_average_over_as_many_views_as_asked_for(etude, tmp_path):
    train, test = write_classes(tmp_path / "train", count=12), write_flat(tmp_path / "test")
    views = ("--set", "augment.policy=photos", "--set", "predict.tta=2", "--set", "predict.tta_if=always")
    words = ("--recipe", "quick", *views, "--out", "run")
    assert etude("fit", train, *words).code == 0
    assert etude("predict", "run", test, "--out", "many.npz", "--tta", "10").code == 0
    assert etude("predict", "run", test, "--out", "few.npz").code == 0
    many, few = Predictions.load(tmp_path / "many.npz"), Predictions.load(tmp_path / "few.npz")
    assert (len(many.logits), len(few.logits)) == (10, 2)
    np.testing.assert_array_equal(many.logits[:2], few.logits)  # symmetries come first
    ended = etude("predict", "run", test, "--out", "never.npz", "--tta", "129")
    assert (ended.code, ended.err) == (2, "etude: an image is seen through 1 to 128 views, not 129\n")


def test_quick_recipe_on_larger_images_stores_what_the_features_need(etude, tmp_path):
    train = write_classes(tmp_path / "train", side=64)
    assert etude("fit", train, *QUICK, "--set", "model.feature_size=64", "--out", "run").code == 0
    assert record_of(tmp_path / "run")["data"]["stored_size"] == 64


def test_other_seed_other_split_and_the_same_store_and_features(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=30)
    for seed in (0, 1):
        etude("fit", train, *QUICK, "--seed", seed, "--out", f"s{seed}")
    assert Predictions.load(tmp_path / "s0" / "valid.npz").ids != Predictions.load(tmp_path / "s1" / "valid.npz").ids
    notes = {stage["name"]: stage["notes"] for stage in record_of(tmp_path / "s1")["stages"]}
    assert notes["store"]["reused"]
    assert notes["features"]["reused"]


def test_folds_average_their_models_and_predict_every_image_once(etude, tmp_path):
    train, test = write_classes(tmp_path / "train"), write_flat(tmp_path / "test")
    assert etude("fit", train, "--test", test, *QUICK, "--folds", 3, "--out", "run").code == 0
    run = tmp_path / "run"
    assert sorted(path.parent.name for path in run.glob("*/model.json")) == ["fold-1", "fold-2", "fold-3"]
    out_of_fold = Predictions.load(run / "valid.npz")
    assert sorted(out_of_fold.ids) == sorted(f"{name}/{k:03d}.png" for name in ("round", "striped") for k in range(12))
    assert etude("predict", "run", test, "--out", "again.npz").code == 0
    np.testing.assert_allclose(
        Predictions.load(tmp_path / "again.npz").probabilities(),
        Predictions.load(run / "test.npz").probabilities(),
        atol=1e-6,
    )


def test_given_validation_images_are_used_and_copies_are_told(etude, tmp_path):
    train = write_classes(tmp_path / "train")
    valid = write_classes(tmp_path / "valid", count=4)  # the same pictures as the first four of each class
    ended = etude("fit", train, "--valid", valid, *QUICK, "--out", "run")
    assert ended.code == 0
    assert "8 of 8 validation images are copies of training images" in ended.out
    assert len(Predictions.load(tmp_path / "run" / "valid.npz")) == 8


def test_sample_run_says_so(etude, tmp_path):
    train = write_classes(tmp_path / "train", count=20)
    ended = etude("fit", train, *QUICK, "--sample", "50%", "--out", "run")
    assert ended.code == 0
    assert "a sample of 50%" in ended.out
    data = record_of(tmp_path / "run")["data"]
    assert data["sample"] == "50%"
    assert data["images"] == 20


def test_table_with_weights(etude, tmp_path):
    train = write_classes(tmp_path / "pictures")
    lines = ["image,label,weight"]
    lines += [f"pictures/{name}/{k:03d}.png,{name},{1 + k % 2}" for name in ("round", "striped") for k in range(12)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    ended = etude("fit", "train.csv", "--label-column", "label", "--weight-column", "weight", *QUICK, "--out", "run")
    assert ended.code == 0, ended.err
    assert train.is_dir()


def test_probabilities_and_sample_submission(etude, tmp_path):
    train, test = write_classes(tmp_path / "train"), write_flat(tmp_path / "test")
    etude("fit", train, *QUICK, "--out", "run")
    assert etude("predict", "run", test, "--out", "p.csv", "--probabilities").code == 0
    rows = rows_of(tmp_path / "p.csv")
    assert list(rows[0]) == ["id", "round", "striped"]
    assert float(rows[0]["round"]) + float(rows[0]["striped"]) == pytest.approx(1)

    sample = tmp_path / "sample.csv"
    sample.write_text("name,answer\n" + "".join(f"t{k:03d},round\n" for k in reversed(range(6))))
    assert etude("predict", "run", test, "--out", "s.csv", "--sample-submission", sample).code == 0
    assert [row["name"] for row in rows_of(tmp_path / "s.csv")] == [f"t{k:03d}" for k in reversed(range(6))]

    sample.write_text("name,answer\nt000,round\nother,round\n")
    ended = etude("predict", "run", test, "--out", "never.csv", "--sample-submission", sample)
    assert ended.code == 2
    assert "other" in ended.err
    assert not (tmp_path / "never.csv").exists()


def test_unreadable_images_are_listed_and_skipped(etude, tmp_path):
    train = write_classes(tmp_path / "train")
    (train / "round" / "empty.png").touch()
    (train / "striped" / "text.jpg").write_text("not an image")
    whole = (train / "round" / "000.png").read_bytes()
    (train / "round" / "half.png").write_bytes(whole[: len(whole) // 2])
    ended = etude("fit", train, *QUICK, "--out", "run")
    assert ended.code == 0
    assert "3 of 27 files cannot be read" in ended.out
    bad = {row["id"]: row["reason"] for row in rows_of(tmp_path / "run" / "bad_files.csv")}
    assert set(bad) == {"round/empty.png", "striped/text.jpg", "round/half.png"}
    assert all(bad.values())


def test_head_start_is_used_when_the_backbone_is_the_same(etude, tmp_path):
    """Stage 2 of a pretrained network starts from the stage 1 head, so its first loss is far below chance."""
    train = write_classes(tmp_path / "train", count=16, side=64)
    settings = ("timeline.start_size=64", "timeline.final_size=64", "model.feature_size=64", "train.epochs=1")
    ended = etude("fit", train, "--out", "run", *(word for each in settings for word in ("--set", each)))
    assert ended.code == 0, ended.err
    first = rows_of(tmp_path / "run" / "history.csv")[0]
    assert float(first["train_loss"]) < 0.5 * np.log(2)
    assert record_of(tmp_path / "run")["plan"]["resolved"]["model.backbone"] == "tf_efficientnet_lite0"


def test_network_of_one_fixed_size_is_given_that_size(etude, tmp_path):
    """LeViT takes 224 px only, whatever sizes the recipe starts from."""
    train = write_classes(tmp_path / "train", count=2, side=64)
    words = (
        'stages=["finetune"]',
        "model.backbone=levit_128s",
        "model.weights=none",
        "train.epochs=1",
        "train.batch_size=4",
    )
    ended = etude("fit", train, "--out", "run", *(word for each in words for word in ("--set", each)))
    assert ended.code == 0, ended.err
    resolved = record_of(tmp_path / "run")["plan"]["resolved"]
    assert [resolved[f"timeline.{which}_size"] for which in ("start", "final")] == [224, 224]


def test_best_blends_heads_on_several_backbones_and_predicts_it_again(etude, tmp_path):
    train, test = write_classes(tmp_path / "train", count=20, side=48), write_flat(tmp_path / "test", side=48)
    words = ("--recipe", "best", "--set", "train.epochs=2", "--set", "timeline.final_size=64")
    ended = etude("fit", train, "--test", test, "--out", "run", *words)
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    record = record_of(run)
    names = [stage["name"] for stage in record["stages"]]
    for backbone in ("tf_efficientnet_lite2", "vit_small_patch14_dinov2"):
        assert {f"features of {backbone}", f"head of {backbone}"} <= set(names)
    assert set(record["plan"]["expected_seconds"]) - {"TTA"} <= set(names)  # views may all look the same
    assert all((run / name / "model.safetensors").is_file() for name in record["result"]["models"])
    assert sum(map(len, record["result"]["weights"])) == len(record["result"]["models"])
    assert etude("predict", "run", test, "--out", "again.npz").code == 0
    one, two = Predictions.load(run / "test.npz"), Predictions.load(tmp_path / "again.npz")
    np.testing.assert_allclose(one.probabilities(), two.probabilities(), atol=1e-5)


SEVERAL = (
    *("--recipe", "best", "--set", "stages=finetune"),
    *("--set", "train.epochs=2", "--set", "train.batch_size=8"),
)


def test_best_averages_several_small_networks_on_small_images(etude, tmp_path):
    train, test = write_classes(tmp_path / "train", count=20), write_flat(tmp_path / "test")
    ended = etude("fit", train, "--test", test, "--out", "run", *SEVERAL)
    assert ended.code == 0, ended.err
    run, record = tmp_path / "run", record_of(tmp_path / "run")
    networks = [stage for stage in record["stages"] if "fine-tune" in stage["name"]]
    assert [stage["name"] for stage in networks] == ["fine-tune", "fine-tune 2", "fine-tune 3"]
    assert not any("features of" in stage["name"] for stage in record["stages"])
    # The further ones have learned from the validation images, so nothing is judged by these any more.
    assert [bool(stage["scores"]) for stage in networks] == [True, False, False]
    assert networks[1]["notes"]["steps"] > networks[0]["notes"]["steps"]
    assert validated(record)["result"]["models"] == ["."]
    result, names = record["result"], [".", "fine-tune-2", "fine-tune-3"]
    assert result["models"] == names
    assert result["weights"][0][1:] == [pytest.approx(result["weights"][0][1])] * 2
    heads = [load_file(run / name / "model.safetensors")["head.weight"] for name in names]
    assert not any(np.array_equal(one, two) for one, two in itertools.combinations(heads, 2))
    assert etude("predict", "run", test, "--out", "again.npz").code == 0
    one, two = Predictions.load(run / "test.npz"), Predictions.load(tmp_path / "again.npz")
    np.testing.assert_allclose(one.probabilities(), two.probabilities(), atol=1e-5)


def test_further_networks_leave_validation_images_of_the_users_alone(etude, tmp_path):
    train, valid = write_classes(tmp_path / "train", count=12), write_classes(tmp_path / "valid", count=6)
    ended = etude("fit", train, "--valid", valid, "--out", "run", *SEVERAL, "--set", "train.networks=2")
    assert ended.code == 0, ended.err
    networks = [stage for stage in record_of(tmp_path / "run")["stages"] if "fine-tune" in stage["name"]]
    assert networks[1]["notes"]["steps"] == networks[0]["notes"]["steps"]


def test_best_without_further_backbones_says_so_and_goes_on(etude, tmp_path, monkeypatch):
    monkeypatch.setattr("etude.study.run.frozen.packaged_weights", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    train = write_classes(tmp_path / "train")
    ended = etude("fit", train, "--recipe", "best", "--out", "run", "--set", 'stages=["head"]')
    assert ended.code == 0, ended.err
    assert "etude[best]" in " ".join(record_of(tmp_path / "run")["warnings"][0]["text"].split())
    refused = etude("fit", train, "--out", "two", "--set", "model.others=vit_tiny_patch16_224")
    assert refused.code == 2
    assert "could not be fetched from timm's hub" in refused.err
