"""The arms of the broad ablation: one change each against `default`, wider than the tricks of `etude ablate`."""

from __future__ import annotations

from typing import Any

from etude.study.ablation.design import ArmContrast, Design

TIMELINES: dict[str, dict[str, Any]] = {
    **{
        name: {"timeline.preset": name}
        for name in ("cyclic", "cyclic-decay", "cyclic-exp", "one-cycle", "plateau", "progressive")
    },
    "large-batch": {
        "timeline.preset": "large-batch",
        "timeline.base_batch_size": 32,
        "train.batch_size": 128,
        "train.optimizer": "lamb",
        "train.lr": 0.00125,
    },
    "five-minutes": {"timeline.preset": "five-minutes"},  # its plan, at everyone's epochs
}

TRICKS: dict[str, dict[str, Any]] = {
    "fading augmentation": {"timeline.fade": True},
    "finish 10%": {"timeline.finish": 0.1},
    "finish 5%": {"timeline.finish": 0.05},
    "warmup 2%": {"timeline.warmup": 0.02},
    "no augmentation": {"augment.policy": "none"},
    "MixUp 0.2": {"augment.mixup": 0.2},
    "CutMix 1": {"augment.cutmix": 1.0},
    "label smoothing 0.1": {"train.label_smoothing": 0.1},
    "no EMA": {"train.ema": 0.0},
    "SWA over finish": {"train.ema": 0.0, "train.swa": True},
    "no clipping": {"train.clip": 0.0},
    "batch grows 4x": {"timeline.batch_growth": 4.0},
}
SMALL_NETWORK = {"dropout 0.2": {"train.dropout": 0.2}, "SGD, Nesterov": {"train.optimizer": "sgd", "train.lr": 0.2}}
PRETRAINED = {
    "no dropout": {"train.dropout": 0.0},
    "stochastic depth 0.1": {"train.drop_path": 0.1},
    "no layer decay": {"train.layer_decay": 1.0},
    "depthwise filters trained": {"train.freeze_depthwise": False},
    "all layers trained": {"train.freeze": 0.0, "train.freeze_depthwise": False},
    "mirror images only": {"augment.policy": "flips"},
}

# Cheaper epochs: how many more of them take the time of `default` (mean area of the images, by the plan).
EQUAL_TIME = {"mnist": 1.4, "elpv": 1.6}

COMMON: dict[str, dict[str, Any]] = {
    "mnist": {"stages": ["finetune"], "predict.tta": 1},  # the small network needs no stage 1
    # The symmetries are those that etude measures for these images; they are not measured anew each time.
    "elpv": {"augment.policy": "symmetric", "predict.tta": 1},
}


def arms_of(data: str, epochs: float) -> dict[str, dict[str, Any]]:
    """Return what each arm changes, by its name, `default` first."""
    longer = {"timeline.preset": "progressive", "train.epochs": epochs * EQUAL_TIME[data]}
    own = SMALL_NETWORK if data == "mnist" else PRETRAINED
    return {"default": {}, **TIMELINES, "progressive (equal time)": longer, **TRICKS, **own}


def design_of(data: str, epochs: float, names: list[str] | None) -> Design:
    """Return the arms of these names, all when None, and the comparison of each with `default`."""
    known = arms_of(data, epochs)
    arms = {name: known[name] for name in names or known}
    others = [name for name in arms if name != "default"]
    return Design(arms, [ArmContrast(name, "add-one-in", without="default", with_it=name) for name in others])
