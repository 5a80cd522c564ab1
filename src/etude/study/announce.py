"""What a run shows: the plan before it starts, and the table at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence

from etude.core.scores import accuracy, adjusted_error, log_loss
from etude.data.dataset import seconds_to_decode
from etude.data.survey import SurveyResult
from etude.journal.screen import Screen
from etude.recipe.settings import Recipe
from etude.study.candidates import trainable_backbone
from etude.study.frozen import Frozen
from etude.study.plan import Amounts, expected_seconds, in_words
from etude.study.request import Request
from etude.study.session import Row, Session
from etude.study.sources import Sources
from etude.study.speed import measure_speed


def stored_size(recipe: Recipe) -> int:
    """Return the side at which images are stored: the largest that training needs.

    Tiny images are stored as they are; only the frozen backbone sees them enlarged.
    """
    finetuned = "finetune" in recipe.stages
    if recipe.model.backbone == "tiny":
        return max(recipe.timeline.start_size, recipe.timeline.final_size)
    trained = [recipe.timeline.start_size, recipe.timeline.final_size] if finetuned else []
    return max([recipe.model.feature_size, *trained])


def show_plan(
    session: Session,
    recipe: Recipe,
    sources: Sources,
    surveyed: SurveyResult,
    amounts: Amounts,
    frozen: Frozen | None,
    precision: str,
    device: str,
) -> list[tuple[str, float]]:
    """Print what will be done and how long it should take; return (stage, expected seconds)."""
    request = session.request
    decode = seconds_to_decode(sources.labelled, surveyed, stored_size(recipe)) / (os.cpu_count() or 1)
    features = None if frozen is None else measure_speed(frozen.backbone, recipe.model.feature_size, precision)
    training = None
    if "finetune" in recipe.stages:
        trained = trainable_backbone(recipe, recipe.model.weights, surveyed.channels, precision)
        training = measure_speed(trained, recipe.timeline.start_size, precision)
    classes = sources.labelled.classes
    width = 0 if frozen is None else frozen.backbone.num_features
    expected = expected_seconds(recipe, amounts, decode, features, training, width * len(classes))
    sample = f", a sample of {request.sample}" if request.sample else ""
    rows = [
        (
            "images",
            f"{sources.labelled.described}{sample}" + (f"; {amounts.test:,} to predict" if amounts.test else ""),
        ),
        ("classes", _short(classes)),
        ("split", _split_in_words(request, recipe, amounts)),
        ("device", device),
        ("stage 1", _head_in_words(recipe, frozen)),
    ]
    if "finetune" in recipe.stages:
        rows.append(("stage 2", _finetune_in_words(recipe)))
    rows.append(("time", in_words(expected)))
    session.screen.plan(f"Plan (recipe {recipe.name}, seed {request.seed})", rows)
    return expected


def show_scores(screen: Screen, rows: Sequence[Row]) -> None:
    """Print the final table: stage, seconds, validation scores."""
    cells: list[list[str | float | None]] = []
    for row in rows:
        scores: list[str | float | None] = [None, None]
        if row.predictions is not None and row.predictions.labels is not None:
            labels = row.predictions.labels
            right = accuracy(row.predictions.predicted(), labels)
            error = adjusted_error(right, len(labels))
            scores = [f"{right:.2%} ± {error:.2%}", f"{log_loss(row.predictions.probabilities(), labels):.4f}"]
        cells.append([row.stage, None if row.seconds is None else f"{row.seconds:.1f}", *scores])
    screen.table("", ["stage", "seconds", "validation accuracy", "log loss"], cells)


def _split_in_words(request: Request, recipe: Recipe, amounts: Amounts) -> str:
    sizes = f"{amounts.train:,} to train on, {amounts.valid:,} to validate"
    if request.valid is not None:
        return f"{sizes} (given)"
    if request.folds:
        return f"{request.folds} stratified folds, each about {sizes}"
    return f"{sizes} (stratified, {recipe.data.valid:.0%} held out)"


def _head_in_words(recipe: Recipe, frozen: Frozen | None) -> str:
    if frozen is None:
        return "left out" + (", since random weights give no useful features" if "head" in recipe.stages else "")
    random = "" if frozen.backbone.pretrained else " of random weights"
    return f"linear head on frozen {frozen.name}{random} at {recipe.model.feature_size} px"


def _finetune_in_words(recipe: Recipe) -> str:
    train, sizes = recipe.train, recipe.timeline
    grows = (
        f"{sizes.start_size} to {sizes.final_size} px"
        if sizes.start_size != sizes.final_size
        else f"{sizes.final_size} px"
    )
    epochs = f"{train.epochs:g} epoch{'' if train.epochs == 1 else 's'}"
    return f"fine-tune {recipe.model.backbone}, {epochs}, {grows}, {train.optimizer} at {train.lr:g}"


def _short(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > most else "")
