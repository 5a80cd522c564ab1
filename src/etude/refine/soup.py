"""Greedy soup: the mean of the weights of several checkpoints that began from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.core.errors import EtudeError
from etude.core.files import reading, replacing
from etude.refine.base import difference

Weights = dict[str, NDArray[Any]]
Score = Callable[[Weights], float]
"""Scores a network of these weights on validation images; larger is better."""


@dataclass(frozen=True, eq=False)
class Soup:
    """The mean of some checkpoints."""

    weights: Weights
    members: tuple[Path, ...]
    score: float
    scores: tuple[float, ...]

    def save(self, path: Path | str) -> None:
        """Write the weights as a safetensors file, whole or not at all."""
        with replacing(Path(path)) as temporary:
            import_module("safetensors.numpy").save_file(self.weights, str(temporary))


def greedy_soup(checkpoints: Sequence[Path | str], score: Score) -> Soup:
    """Return the greedy soup of safetensors ``checkpoints``.

    They are taken from the best to the worst; each goes into the mean if the mean with it scores at least as well as
    without. The result is never worse, by ``score``, than the best checkpoint. Ties go to the earlier checkpoint.
    Only weights that were trained from the same initialisation have a useful mean. Integers are those of the best
    checkpoint; running statistics of batch norm are averaged like weights, so let ``score`` recompute them if it can.

    Args:
        checkpoints: files with the same names and shapes.
        score: called once for each checkpoint and once for each trial; larger is better.

    Raises:
        EtudeError: there are none, one cannot be read, names or shapes differ, or a score is not a number.

    Source: Wortsman et al. 2022, Model soups (https://arxiv.org/abs/2203.05482).

    Example::

        soup = greedy_soup(["a.safetensors", "b.safetensors", "c.safetensors"], score=accuracy_of)
        soup.save("soup.safetensors")
    """
    paths = [Path(path) for path in checkpoints]
    if not paths:
        raise EtudeError("a soup needs at least one checkpoint: give .safetensors files")
    first = _read(paths[0])
    scores = [_scored(score, _matching(_read(path), first, path, paths[0]), path) for path in paths]
    order = sorted(range(len(paths)), key=lambda number: (-scores[number], number))
    base = weights = _read(paths[order[0]])
    members, best = [paths[order[0]]], scores[order[0]]
    total = {name: value.astype(np.float64) for name, value in base.items() if value.dtype.kind == "f"}
    for number in order[1:]:
        added = _read(paths[number])
        trial_total = {name: added[name] + value for name, value in total.items()}
        means = {name: (value / (len(members) + 1)).astype(base[name].dtype) for name, value in trial_total.items()}
        trial = base | means
        if (value := _scored(score, trial, paths[number])) >= best:
            total, weights, best = trial_total, trial, value
            members.append(paths[number])
    return Soup(weights, tuple(members), best, tuple(scores))


def _read(path: Path) -> Weights:
    hint = "give a .safetensors file of float16, float32 or float64 weights"  # bfloat16 is a KeyError
    with reading(path, "a readable safetensors file", hint):
        return import_module("safetensors.numpy").load(path.read_bytes())


def _matching(weights: Weights, first: Weights, path: Path, other: Path) -> Weights:
    if parts := difference(first, weights):
        raise EtudeError(f"{path} {parts} against {other}: a soup needs checkpoints of the same network")
    for name, value in first.items():
        if weights[name].shape != value.shape:
            raise EtudeError(
                f"{name!r} has shape {weights[name].shape} in {path} and {value.shape} in {other}: "
                "a soup needs checkpoints of the same network"
            )
    return weights


def _scored(score: Score, weights: Weights, path: Path) -> float:
    value = float(score(weights))
    if not np.isfinite(value):
        raise EtudeError(f"the score with {path} is {value}: leave that checkpoint out if its training diverged")
    return value
