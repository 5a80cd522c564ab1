"""What a killed run finds again: the plan it was training by, its last checkpoint, and models that were finished."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from etude.callbacks.checkpoints import FILE_NAME
from etude.core.errors import EtudeError
from etude.core.files import read_json, replacing, write_json
from etude.models.classifier import Classifier
from etude.timeline import Timeline, timeline_from_tree, timeline_to_tree


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a fine-tuning was resolved to when it began.

    Args:
        timeline: resolved, without events.
        steps: optimiser steps of the whole run.
        validate_every: steps from one look at the validation images to the next.
        epoch_steps: steps of a pass over the training images.
    """

    timeline: Timeline
    steps: int
    validate_every: int
    epoch_steps: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished fine-tuning, as far as the rest of the run needs it.

    Args:
        steps: optimiser steps taken.
        timeline: with the events that happened.
        history: one row per validation.
        happened: rows of what the clock wrote.
    """

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

    @property
    def step(self) -> int:
        """Optimiser steps that the last checkpoint has behind it."""
        path = self.checkpoint
        return 0 if path is None else int(torch.load(path, weights_only=True, mmap=True)["global_step"])

    def clear(self) -> None:
        """Remove everything: a run that starts anew must not find an older one's state."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save_plan(self, plan: RunPlan) -> None:
        """Keep the plan: lengths in minutes come from a measured speed, which differs from time to time."""
        fields = {"steps": plan.steps, "validate_every": plan.validate_every, "epoch_steps": plan.epoch_steps}
        write_json(self.folder / "plan.json", {**fields, "timeline": timeline_to_tree(plan.timeline)})

    def load_plan(self) -> RunPlan | None:
        """Return the plan, or None when no training has begun here.

        Raises:
            EtudeError: the file is damaged.
        """
        path = self.folder / "plan.json"
        if not path.is_file():
            return None
        fields = read_json(path)
        try:
            timeline = timeline_from_tree(fields["timeline"])
            return RunPlan(timeline, int(fields["steps"]), int(fields["validate_every"]), float(fields["epoch_steps"]))
        except (KeyError, TypeError, ValueError) as problem:
            raise EtudeError(f"{path} is damaged ({problem}): start the run anew in another --out") from None

    def save_finished(self, model: Classifier, done: Finished) -> None:
        """Keep the trained weights; ``finished.json`` is written last, so that it vouches for them."""
        with replacing(self.folder / "finished.safetensors") as temporary:
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            temporary.write_bytes(save(weights))
        tree = {"steps": done.steps, "timeline": timeline_to_tree(done.timeline)}
        history = [{key: _json_value(value) for key, value in row.items()} for row in done.history]
        write_json(self.folder / "finished.json", {**tree, "history": history, "happened": done.happened})

    def load_finished(self, model: Classifier) -> Finished | None:
        """Put finished weights into ``model``; None when training has not finished."""
        path = self.folder / "finished.json"
        if not path.is_file():
            return None
        done = read_json(path)
        state = load((self.folder / "finished.safetensors").read_bytes())
        with torch.no_grad():
            model.load_state_dict(state)
        return Finished(done["steps"], timeline_from_tree(done["timeline"]), done["history"], done["happened"])


def _json_value(value: Any) -> Any:
    """Return None for a number that JSON cannot hold: a diverged metric must not lose the training."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
