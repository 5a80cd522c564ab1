"""The arms of the ablation: one change each against `default`."""

from __future__ import annotations

from typing import Any

TIMELINES = (
    "cyclic",
    "cyclic-decay",
    "cyclic-exp",
    "one-cycle",
    "plateau",
    "progressive",
    "large-batch",
    "five-minutes",
)

TRICKS: dict[str, dict[str, Any]] = {
    "fading augmentation": {"timeline.fade": True},
    "finish 10%": {"timeline.finish": 0.1},
    "finish 5%": {"timeline.finish": 0.05},
    "warmup 2%": {"timeline.warmup": 0.02},
    "no augmentation": {"augment.policy": "none"},
    "MixUp 0.2": {"augment.mixup": 0.2},
    "CutMix 1": {"augment.cutmix": 1.0},
    "label smoothing 0.1": {"train.label_smoothing": 0.1},
    "no EMA": {"train.ema": 0},
    "SWA over finish": {"train.ema": 0, "train.swa": True},
    "no clipping": {"train.clip": 0},
    "batch grows 4x": {"timeline.batch_growth": 4},
}
SMALL_NETWORK = {"dropout 0.2": {"train.dropout": 0.2}, "SGD, Nesterov": {"train.optimizer": "sgd", "train.lr": 0.2}}
PRETRAINED = {
    "no dropout": {"train.dropout": 0},
    "stochastic depth 0.1": {"train.drop_path": 0.1},
    "no layer decay": {"train.layer_decay": 1},
    "depthwise filters trained": {"train.freeze_depthwise": False},
    "all layers trained": {"train.freeze": 0, "train.freeze_depthwise": False},
    "mirror images only": {"augment.policy": "flips"},
}

# Cheaper epochs: how many more of them take the time of `default` (mean area of the images, by the plan).
EQUAL_TIME: dict[str, tuple[str, dict[str, float]]] = {
    "progressive (equal time)": ("progressive", {"mnist": 1.4, "elpv": 1.6})
}

COMMON: dict[str, dict[str, Any]] = {
    "mnist": {"stages": ["finetune"], "predict.tta": 1},  # the small network needs no stage 1
    # The symmetries are those that etude measures for these images; they are not measured anew each time.
    "elpv": {"augment.policy": "symmetric", "predict.tta": 1},
}


def arms_of(data: str) -> tuple[str, ...]:
    """Return the names of all arms for a data set, `default` first."""
    own = SMALL_NETWORK if data == "mnist" else PRETRAINED
    return ("default", *TIMELINES, *EQUAL_TIME, *TRICKS, *own)


def settings_of(data: str, arm: str, epochs: float) -> tuple[str, dict[str, Any]]:
    """Return the recipe and the settings of an arm."""
    common = {**COMMON[data], "train.epochs": epochs}
    if arm in EQUAL_TIME:
        recipe, factor = EQUAL_TIME[arm]
        return recipe, {**common, "train.epochs": epochs * factor[data]}
    if arm == "five-minutes":
        return arm, {**common, "timeline.length": "none"}  # its plan, at everyone's epochs
    if arm == "default" or arm in TIMELINES:
        return arm, common
    # A change is given last, so that it goes before what all arms share.
    return "default", {**common, **{**TRICKS, **SMALL_NETWORK, **PRETRAINED}[arm]}
