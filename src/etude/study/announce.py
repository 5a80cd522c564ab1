"""What a run shows: the plan before it starts, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from etude.core.processor import usable_cores
from etude.core.scores import accuracy, adjusted_error, log_loss
from etude.data.dataset import seconds_to_decode
from etude.data.survey import SurveyResult
from etude.data.table_split import GivenSplit
from etude.journal.screen import Screen
from etude.recipe.settings import Recipe
from etude.recipe.sizes import image_sizes, most_of
from etude.recipe.timeline import resolved_run
from etude.study.frozen import Frozen
from etude.study.mixture import labelled_share, supervised_recipe
from etude.study.mode import Training
from etude.study.plan import Amounts, expected_seconds, in_words, pace_of, pool_size
from etude.study.request import Request
from etude.study.session import Row, Session
from etude.study.sources import Sources
from etude.study.speed import measure_speed
from etude.timeline import Pace, RunSize, Timeline


def stored_size(recipe: Recipe) -> int:
    """Return the side at which images are stored: the largest that training needs.

    Tiny images are stored as they are; only the frozen backbone sees them enlarged.
    """
    trained = image_sizes(recipe).largest
    if recipe.model.backbone == "tiny":
        return trained
    return max(recipe.model.feature_size, trained) if "finetune" in recipe.stages else recipe.model.feature_size


def show_plan(
    session: Session,
    recipe: Recipe,
    sources: Sources,
    surveyed: SurveyResult,
    amounts: Amounts,
    frozen: Frozen | None,
    training: Training | None,
    precision: str,
    device: str,
) -> tuple[list[tuple[str, float]], Pace | None]:
    """Print what will be done and how long it should take; return (stage, expected seconds) and training's pace.

    Args:
        frozen: stage 1's backbone, if any.
        training: how stage 2 runs, if it does.
        precision: of stage 1.
        device: in words.
    """
    request = session.request
    decode = seconds_to_decode(sources.labelled, surveyed, stored_size(recipe)) / usable_cores()
    features = None if frozen is None else measure_speed(frozen.backbone, recipe.model.feature_size, precision)
    speed = None if training is None else training.speed
    classes = sources.labelled.classes
    width = 0 if frozen is None else frozen.backbone.num_features
    taught = replace(amounts, train=amounts.train + (pool_size(recipe, amounts) if request.teachers else 0))
    expected = expected_seconds(recipe, taught, decode, features, speed, width * len(classes))
    sample = f", a sample of {request.sample}" if request.sample else ""
    rows = [
        (
            "images",
            f"{sources.labelled.described}{sample}" + (f"; {amounts.test:,} to predict" if amounts.test else ""),
        ),
        ("classes", _short(classes)),
        ("split", _split_in_words(request, recipe, amounts, sources.labelled.split)),
        ("device", device),
        ("stage 1", _head_in_words(recipe, frozen)),
    ]
    pace = None if speed is None else pace_of(speed, recipe, amounts)
    if training is not None and pace is not None:
        alone = supervised_recipe(recipe)
        rows.append(("stage 2", _finetune_in_words(alone, *resolved_run(alone, taught.train, pace))))
        rows.append(("", training.told))
    if recipe.unlabeled.is_on:
        rows.append(("unlabelled", _unlabelled_in_words(recipe, amounts)))
    if request.teachers:
        rows.append(("teachers", ", ".join(map(str, request.teachers))))
    rows.append(("time", in_words(expected)))
    if session.kept:  # a search for the learning rate goes only part of the way
        session.screen.plan(f"Plan (recipe {recipe.name}, seed {request.seed})", rows)
    return expected, pace


def show_scores(screen: Screen, rows: Sequence[Row]) -> None:
    """Print the final table: stage, seconds, validation scores with their standard error."""
    cells: list[list[str | float | None]] = []
    for row in rows:
        scores: list[str | float | None] = [None, None]
        if row.predictions is not None and row.predictions.labels is not None:
            labels = row.predictions.labels
            right = accuracy(row.predictions.predicted(), labels)
            error = adjusted_error(right, len(labels))
            scores = [f"{right:.2%} ± {error:.2%}", f"{log_loss(row.predictions.probabilities(), labels):.4f}"]
        cells.append([row.stage, None if row.seconds is None else f"{row.seconds:.1f}", *scores])
    screen.table(
        "What each stage took and reached; ± is one standard error",
        ["stage", "seconds", "validation accuracy", "log loss"],
        cells,
    )


def _split_in_words(request: Request, recipe: Recipe, amounts: Amounts, given: GivenSplit | None) -> str:
    sizes = f"{amounts.train:,} to train on, {amounts.valid:,} to validate"
    if request.valid is not None:
        return f"{sizes} (given)"
    if given is not None:
        return f"{sizes} ({given.described})"
    if request.folds:
        return f"{request.folds} stratified folds, each about {sizes}"
    return f"{sizes} (stratified, {recipe.data.valid:.0%} held out)"


def _head_in_words(recipe: Recipe, frozen: Frozen | None) -> str:
    if frozen is None:
        return "left out" + (", since random weights give no useful features" if "head" in recipe.stages else "")
    random = "" if frozen.backbone.pretrained else " of random weights"
    return f"linear head on frozen {frozen.name}{random} at {recipe.model.feature_size} px"


def _finetune_in_words(recipe: Recipe, timeline: Timeline, size: RunSize) -> str:
    train, sizes = recipe.train, image_sizes(recipe)
    grows = f"{sizes.first} to {sizes.final} px" if sizes.first != sizes.final else f"{sizes.final} px"
    epochs = f"{size.steps / (size.epoch_steps or size.steps):.3g}"
    rate = "a learning rate to be searched" if train.find_lr else f"{most_of(recipe, 'lr'):g}"
    spans = ((name, round((stop - start) * size.steps)) for name, start, stop in timeline.spans())
    phases = ", ".join(f"{name} {steps:,}" for name, steps in spans)
    plural = "" if epochs == "1" else "s"
    return (
        f"fine-tune {recipe.model.backbone}, {epochs} epoch{plural}, {grows}, {train.optimizer} at "
        f"{rate}; {size.steps:,} steps: {phases}"
    )


def _unlabelled_in_words(recipe: Recipe, amounts: Amounts) -> str:
    settings = recipe.unlabeled
    images = f"{amounts.unlabelled:,} images" if amounts.unlabelled else ""
    if settings.use_test and amounts.test:
        images += f"{' and ' if images else ''}the {amounts.test:,} to predict"
    how = "online pseudo-labels" if settings.method == "online" else f"pseudo-labels in up to {settings.rounds} rounds"
    share = labelled_share(recipe, amounts.train, pool_size(recipe, amounts))
    mix = f"{share:.1%} of {'each batch' if 'finetune' in recipe.stages else 'the weight'} labelled"
    return f"{images}; {how}, {mix}; kept only if better on validation images"


def _short(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > most else "")
