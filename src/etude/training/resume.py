"""What a killed run finds again: the plan it was training by, its last checkpoint, and models that were finished."""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from etude.callbacks.checkpoints import FILE_NAME
from etude.core.files import hash_of_file, read_checked_json, reading, write_checked_json
from etude.models.backbones import read_safetensors
from etude.models.classifier import Classifier, save_weights
from etude.timeline import Timeline, timeline_from_tree, timeline_to_tree


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a fine-tuning was resolved to when it began: ``timeline`` is resolved and without events."""

    timeline: Timeline
    steps: int
    validate_every: int
    epoch_steps: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished fine-tuning: ``timeline`` with its events, a row per validation, and rows of what the clock wrote."""

    steps: int
    timeline: Timeline
    history: list[dict[str, Any]]
    happened: list[dict[str, Any]]


class ResumeFolder:
    """``checkpoints/`` of one fine-tuning: ``plan.json``, ``last.ckpt``, then ``finished.json`` and its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, if one was written."""
        path = self.folder / FILE_NAME
        return path if path.is_file() else None

    def step_for(self, module: nn.Module) -> int:
        """Return the optimiser steps that the last checkpoint has behind it, which is to be loaded into ``module``."""
        path = self.checkpoint
        if path is None:
            return 0
        with reading(path, "a checkpoint", "remove it to train from the start, or start the run anew in another --out"):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} has changed since it was written")
            held = torch.load(path, weights_only=True, mmap=True)
            own, weights = module.state_dict(), held["state_dict"]
            if misfits := [name for name in {**own, **weights} if _shape(own, name) != _shape(weights, name)]:
                raise ValueError(f"{misfits[0]} is not as in the network that is trained")
            return int(held["global_step"])

    def clear(self) -> None:
        """Remove everything: a run that starts anew must not find an older one's state."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save_plan(self, plan: RunPlan) -> None:
        """Keep the plan: lengths in minutes come from a measured speed, which differs from time to time."""
        fields = {"steps": plan.steps, "validate_every": plan.validate_every, "epoch_steps": plan.epoch_steps}
        write_checked_json(self.folder / "plan.json", {**fields, "timeline": timeline_to_tree(plan.timeline)})

    def load_plan(self) -> RunPlan | None:
        """Return the plan, or None when no training has begun here."""
        path = self.folder / "plan.json"
        if not path.is_file():
            return None
        with reading(path, "the plan of a training", "it was damaged: start the run anew in another --out"):
            fields = read_checked_json(path)
            timeline = timeline_from_tree(fields["timeline"])
            plan = RunPlan(timeline, int(fields["steps"]), int(fields["validate_every"]), float(fields["epoch_steps"]))
            if not (plan.steps > 0 and plan.validate_every > 0 and 0 < plan.epoch_steps < math.inf):
                raise ValueError("its steps are not above 0")
        return plan

    def save_finished(self, model: Classifier, done: Finished) -> None:
        """Keep the trained weights; ``finished.json`` is written last, so that it vouches for them."""
        weights = self.folder / "finished.safetensors"
        save_weights(weights, model)
        tree = {"steps": done.steps, "timeline": timeline_to_tree(done.timeline), "weights": hash_of_file(weights)}
        history = [{key: _json_value(value) for key, value in row.items()} for row in done.history]
        write_checked_json(self.folder / "finished.json", {**tree, "history": history, "happened": done.happened})

    def load_finished(self, model: Classifier) -> Finished | None:
        """Put finished weights into ``model``; None when training has not finished."""
        path = self.folder / "finished.json"
        if not path.is_file():
            return None
        weights = self.folder / "finished.safetensors"
        with reading(path, "the end of a training", f"remove {path} to train on from the last checkpoint"):
            tree = read_checked_json(path)
            if "weights" in tree and tree["weights"] != hash_of_file(weights):  # an earlier version kept no hash
                raise ValueError(f"{weights.name} is not the file that it was written with")
            done = Finished(int(tree["steps"]), timeline_from_tree(tree["timeline"]), tree["history"], tree["happened"])
            with torch.no_grad():
                model.load_state_dict(read_safetensors(weights))
        return done


def _shape(state: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _json_value(value: Any) -> Any:
    """Return None for a number that JSON cannot hold: a diverged metric must not lose the training."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
