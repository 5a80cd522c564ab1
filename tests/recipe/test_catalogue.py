from __future__ import annotations

import pytest

from etude.recipe import NAMED, Recipe, flat, load_recipe
from etude.recipe.catalogue import FIELDS, accepted, as_given, found, meant


def test_the_catalogue_holds_every_setting_and_says_what_it_is_for():
    assert {*FIELDS} == {*flat(Recipe())} - {"name"}
    assert all(field.description for field in FIELDS.values())


@pytest.mark.parametrize("name", ["default", "large-batch"])
def test_each_value_can_be_given_as_it_is_listed(name: str):
    for key, value in flat(load_recipe(name)).items():
        if key != "name":
            assert flat(load_recipe(name, [f"{key}={as_given(key, value)}"]))[key] == value, key


@pytest.mark.each(
    ("name", "limits"),
    [
        ("train.lr", "above 0"),
        ("train.epochs", "above 0, at most 10,000"),
        ("train.batch_size", "1 to 65,536"),
        ("train.ema", "at least 0, below 1"),
        ("unlabeled.keep_at", "at least 0.5, below 1"),
        ("train.swa", "true, false"),
        ("data.fit", "auto, squash, crop, letterbox"),
        ("model.backbone", ""),
    ],
)
def test_limits_are_those_of_the_setting(name: str, limits: str):
    assert accepted(FIELDS[name]) == limits


def test_settings_are_found_by_section_name_and_description():
    assert found("") == [*FIELDS]
    assert found("augment") == [name for name in FIELDS if name.startswith("augment.")]
    assert {"train.lr", "train.find_lr", "plateau.min_lr"} <= {*found("lr")}
    assert found("batch size") == found("batch_size") == found("Batch-Size")
    assert "train.lr" in found("learning rate")
    assert "train.drop_path" in found("stochastic depth")
    assert found("zzz") == []


# What people type who know other tools, or the setting but not its section, or mistype it.
MEANT = """
    lr: train.lr                        learning_rate: train.lr                 base_lr: train.lr
    train.lrr: train.lr                 training.lr: train.lr                   train.lr.x: train.lr
    epochs: train.epochs                epoch: train.epochs                     num_epochs: train.epochs
    train.batchsize: train.batch_size   bs: train.batch_size                    data.batch_size: train.batch_size
    weightdecay: train.weight_decay     wd: train.weight_decay                  train.weight-decay: train.weight_decay
    mixup: augment.mixup                augmentation.mixup: augment.mixup       mixup_alpha: augment.mixup
    mixup.alpha: augment.mixup          cutmix: augment.cutmix                  train.mixup: augment.mixup
    tta: predict.tta                    predict.TTA: predict.tta                augmentation: augment.policy
    backbone: model.backbone            model: model.backbone                   arch: model.backbone
    pretrained: model.weights           dropout: train.dropout                  stochastic_depth: train.drop_path
    optim: train.optimizer              scheduler: timeline.preset              warmup: timeline.warmup
    clip_grad_norm: train.clip          smoothing: train.label_smoothing        labelsmoothing: train.label_smoothing
    patience: plateau.patience          nesterov: train.nesterov                swa: train.swa
    freeze: train.freeze                amp: train.precision                    num_threads: train.threads
    lables: data.labels                 valid_split: data.valid                 unlabelled.rounds: unlabeled.rounds
    unlabeled.ema: unlabeled.ema        max_steps: timeline.length              min_lr: plateau.min_lr
    seed: --seed                        output: --out                           aug: augment.policy
"""
SEVERAL = {
    "ema": ["train.ema", "unlabeled.ema"],
    "batch_size": ["train.batch_size", "unlabeled.batch_size"],
    "batchSize": ["train.batch_size", "unlabeled.batch_size"],
    "decay": ["train.weight_decay", "train.layer_decay"],
    "image_size": ["timeline.final_size", "model.feature_size"],
    "imgsz": ["timeline.final_size", "model.feature_size"],
    "temperature": ["unlabeled.temperature", "distill.temperature"],
    "workers": [],
    "x.y.z": [],
    "": [],
}


@pytest.mark.each(("name", "setting"), [*zip(*[iter(MEANT.replace(": ", " ").split())] * 2, strict=True)])
def test_one_setting_is_meant(name: str, setting: str):
    assert meant(name) == [setting]


@pytest.mark.each(("name", "settings"), [*SEVERAL.items()])
def test_several_settings_may_be_meant_or_none(name: str, settings: list[str]):
    assert meant(name) == settings


def test_every_name_leads_to_at_most_three_settings():
    for name in (*FIELDS, *NAMED, *(word for key in FIELDS for word in key.replace(".", "_").split("_"))):
        assert len(meant(name)) <= 3
        assert {*meant(name)} <= {*FIELDS, "--seed", "--out", "--budget", "--recipe", "--teacher"}
