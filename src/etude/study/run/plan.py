"""What a run shows: the plan before it starts, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from etude.core.errors import EtudeError
from etude.core.processor import usable_cores
from etude.core.text import rough_duration
from etude.data.dataset import seconds_to_decode
from etude.data.order import epoch_images
from etude.data.scan import Scan
from etude.data.tables import GivenSplit
from etude.models.backbones import Backbone
from etude.models.device import best_device
from etude.models.features import autocast
from etude.models.modes import AskedMode, Mode, applied, lay_out, lay_out_images, likely_mode
from etude.recipe.resolve import labelled_share, mixed_recipe, supervised_recipe
from etude.recipe.settings import Recipe
from etude.recipe.timeline import image_sizes, maximum_of, resolved_run
from etude.study.run.frozen import Frozen
from etude.study.run.request import Request
from etude.study.run.session import Session
from etude.study.run.sources import Sources
from etude.timeline import Pace, RunSize, Timeline
from etude.training.probe import DEFAULT_BUDGET, probe_modes

_BATCH = 8


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds an image, at one image size.

    Args:
        size: side in pixels at which it was measured.
        infer: forward pass.
        train: forward and backward pass.
    """

    size: int
    infer: float
    train: float

    def infer_at(self, size: int) -> float:
        """Return seconds an image at another size: the work grows with the area."""
        return self.infer * (size / self.size) ** 2

    def train_at(self, size: int) -> float:
        """Return seconds an image of training at another size."""
        return self.train * (size / self.size) ** 2


def measure_speed(
    backbone: Backbone, size: int, mode: Mode | str, *, clock: Callable[[], float] = time.perf_counter
) -> Speed:
    """Time one forward pass and one training pass of a small batch, each after one to warm up.

    A backbone without a trained parameter trains as fast as it infers.

    Args:
        mode: to run in; a precision alone (``fp32`` or ``bf16``) takes the likely rest and torch's present threads.
        clock: returns seconds.
    """
    device = best_device()
    if isinstance(mode, str):
        mode = likely_mode(device, AskedMode.of(mode, threads=torch.get_num_threads()))
    module = lay_out(backbone.module.to(device), mode).eval()
    images = lay_out_images(torch.zeros(_BATCH, backbone.in_channels, size, size, device=device), mode)
    precision = mode.precision

    def forward() -> None:
        with torch.inference_mode(), autocast(device, precision):
            module(images)

    def forward_and_backward() -> None:
        with autocast(device, precision):
            loss = module(images).float().sum()
        loss.backward()
        module.zero_grad(set_to_none=True)

    with applied(mode):
        infer = _seconds(forward, device, clock) / _BATCH
        trained = any(weight.requires_grad for weight in module.parameters())
        return Speed(size, infer, _seconds(forward_and_backward, device, clock) / _BATCH if trained else infer)


def training_seconds(speed: Speed, timeline: Timeline, steps: int, batch_size: int) -> float:
    """Return the expected seconds of ``steps`` steps whose image sizes the timeline sets."""
    return sum(
        speed.train_at(moment.image_size or speed.size) * (moment.batch_size or batch_size)
        for moment in timeline.moments(steps)
    )


def _seconds(work: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    work()
    _finish(device)
    start = clock()
    work()
    _finish(device)
    return clock() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


_SOLVER_STEPS = 50  # of L-BFGS, as seen on features of EfficientNet-Lite0
_FLOPS = 8e10  # a second, in float32 matrix products on two cores
_SECONDS_A_FIT = 0.1  # besides the arithmetic


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many images each stage works on.

    Args:
        labelled: images with labels, validation included.
        train: training images of one fold.
        valid: validation images of one fold.
        test: images to predict.
        folds: models to train.
        unlabelled: images without labels, the test images aside.
    """

    labelled: int
    train: int
    valid: int
    test: int
    folds: int
    unlabelled: int = 0


def expected_seconds(
    recipe: Recipe,
    amounts: Amounts,
    decode: float,
    features: Speed | None,
    training: Speed | None,
    head_weights: int = 0,
) -> list[tuple[str, float]]:
    """Return (stage, seconds) for the stages of the recipe, in order.

    Args:
        decode: seconds an image to read, decode and resize, on all threads together.
        features: speed of the frozen backbone, or None without stage 1.
        training: speed of the trained backbone, or None without stage 2.
        head_weights: numbers in stage 1's head, features times classes.
    """
    stages = [("store", decode * (amounts.labelled + amounts.test + amounts.unlabelled))]
    if features is not None:
        views = recipe.head.views  # of each training image; folds share them
        seen = amounts.labelled + (views - 1) * (amounts.train if amounts.folds == 1 else amounts.labelled)
        stages.append(("features", features.infer_at(recipe.model.feature_size) * seen))
        stages.append(("head", _head_seconds(recipe, amounts, head_weights) * views * amounts.folds))
    if training is not None:
        timeline, size = resolved_run(recipe, amounts.train, pace_of(training, recipe, amounts))
        one = training_seconds(training, timeline, size.steps, min(recipe.train.batch_size, amounts.train))
        stages.append(("fine-tune", one * amounts.folds))
        if recipe.unlabeled.is_on:
            stages.append(("unlabelled", _unlabelled_seconds(recipe, amounts, training) * amounts.folds))
    predictor = training or features
    size = image_sizes(recipe).final if training is not None else recipe.model.feature_size
    if predictor is not None and amounts.test:
        views = recipe.predict.tta * amounts.folds
        stages.append(("predict test", predictor.infer_at(size) * amounts.test * views))
    return stages


def pool_size(recipe: Recipe, amounts: Amounts) -> int:
    """Return how many unlabelled images there are to learn from, copies counted in."""
    return amounts.unlabelled + (amounts.test if recipe.unlabeled.use_test else 0)


def pace_of(training: Speed, recipe: Recipe, amounts: Amounts) -> Pace:
    """Return the measured seconds of a training step, by which lengths in minutes become steps."""
    return Pace(training.train * min(recipe.train.batch_size, amounts.train), training.size)


def _unlabelled_seconds(recipe: Recipe, amounts: Amounts, training: Speed) -> float:
    """Return seconds of all rounds on a fold; few runs come to the last of them."""
    recipe, rounds = mixed_recipe(recipe), recipe.unlabeled.rounds
    pool = pool_size(recipe, amounts)
    share = labelled_share(recipe, amounts.train, pool)
    images = epoch_images(amounts.train, pool, share)
    timeline, size = resolved_run(recipe, images, pace_of(training, recipe, amounts))
    seconds = training_seconds(training, timeline, size.steps, recipe.train.batch_size)
    if recipe.unlabeled.method == "online":
        rounds, seconds = 1, seconds + training.infer * recipe.train.batch_size * (1 - share) * size.steps
    return rounds * (seconds + training.infer * pool * recipe.predict.tta)


def _head_seconds(recipe: Recipe, amounts: Amounts, weights: int) -> float:
    """Estimate the fits of the head from their arithmetic; right within a factor of about two."""
    searched = min(amounts.train, recipe.head.search_rows) * (recipe.head.folds - 1)
    candidates = len(recipe.head.inverse_regularization)
    rows = searched * candidates + amounts.train
    fits = recipe.head.folds * candidates + 1
    return 4.0 * weights * rows * _SOLVER_STEPS / _FLOPS + fits * _SECONDS_A_FIT


def refuse_single_images(recipe: Recipe, train: int) -> None:
    """Refuse steps of one image where batch norm needs statistics over several.

    Raises:
        EtudeError: with the settings to change.
    """
    if "finetune" in recipe.stages and recipe.train.batchnorm == "train" and min(recipe.train.batch_size, train) < 2:
        raise EtudeError(
            f"train.batch_size is {recipe.train.batch_size} with {train:,} training images, and train.batchnorm=train "
            "needs statistics over several images a step: give 2 or more, or --set train.batchnorm=keep"
        )


def in_words(stages: Sequence[tuple[str, float]]) -> str:
    """Return the stages with their times for the plan.

    >>> in_words([("features", 16.2), ("fine-tune", 245.0)])
    'features ~16 s, fine-tune ~4 min; about 4 min in all'
    """
    each = ", ".join(f"{name} {_about(seconds, '~')}" for name, seconds in stages)
    return f"{each}; {_about(sum(seconds for _, seconds in stages), 'about ')} in all"


def _about(seconds: float, sign: str) -> str:
    return rough_duration(seconds) if seconds < 1 else f"{sign}{rough_duration(seconds)}"


_WORTH_PROBING = 120.0  # seconds of training: below, a probe costs more than the better mode saves
_SHARE = 0.05  # of the training that a probe may take


@dataclass(frozen=True, slots=True)
class Training:
    """How stage 2 runs on this machine.

    Args:
        mode: that it trains in.
        speed: measured in that mode.
        reason: why this mode, for the plan.
    """

    mode: Mode
    speed: Speed
    reason: str


def settle_training(
    session: Session, recipe: Recipe, backbone: Backbone, amounts: Amounts, device: torch.device
) -> Training:
    """Return the mode to train in and its speed; a resumed run keeps the mode that it began with.

    A mode is measured where training takes long enough for that to pay, and on a GPU, whose memory may be too small
    for the batch.
    """
    first, train = image_sizes(recipe).first, recipe.train
    asked = AskedMode.of(train.precision, train.memory_format, train.threads, train.micro_batch)
    if (begun := session.begun_mode()) is not None:
        return Training(begun, measure_speed(backbone, first, begun), f"{begun.in_words()}, as this run began")
    mode = likely_mode(device, asked)
    speed = measure_speed(backbone, first, mode)
    expected = _expected_seconds(recipe, speed, amounts)
    if expected < _WORTH_PROBING and device.type != "cuda":
        return Training(mode, speed, mode.in_words())
    found = probe_modes(
        backbone.module, image_sizes(recipe).largest, _largest_batch(recipe, amounts), backbone.in_channels, device,
        asked=asked, budget=min(DEFAULT_BUDGET, expected * _SHARE + 1.0), cache=session.context.cached(),
        progress=session.screen,
    )  # fmt: skip
    session.record.set("probe", found.as_dict())
    if found.mode != mode:
        speed = measure_speed(backbone, first, replace(found.mode, micro_batch=None))
    return Training(found.mode, speed, found.in_words())


def _expected_seconds(recipe: Recipe, speed: Speed, amounts: Amounts) -> float:
    timeline, size = resolved_run(recipe, amounts.train, pace_of(speed, recipe, amounts))
    return training_seconds(speed, timeline, size.steps, min(recipe.train.batch_size, amounts.train)) * amounts.folds


def _largest_batch(recipe: Recipe, amounts: Amounts) -> int:
    return min(amounts.train, max(recipe.train.batch_size, round(maximum_of(recipe, "batch_size"))))


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
    scanned: Scan,
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
    decode = seconds_to_decode(sources.labelled, scanned, stored_size(recipe)) / usable_cores()
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
        rows.append(("", training.reason))
    if recipe.unlabeled.is_on:
        rows.append(("unlabelled", _unlabelled_in_words(recipe, amounts)))
    if request.teachers:
        rows.append(("teachers", ", ".join(map(str, request.teachers))))
    rows.append(("time", in_words(expected)))
    if session.kept:  # a search for the learning rate goes only part of the way
        session.screen.plan(f"Plan (recipe {recipe.name}, seed {request.seed})", rows)
    return expected, pace


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
    rate = "a learning rate to be searched" if train.find_lr else f"{maximum_of(recipe, 'lr'):g}"
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
