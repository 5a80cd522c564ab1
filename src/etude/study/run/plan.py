"""What a run will do: its plan, with the expected seconds of each stage, as it is settled and shown before the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from etude.core.errors import EtudeError, listed
from etude.core.text import rough_duration
from etude.data.order import epoch_images
from etude.data.tables import GivenSplit
from etude.models.backbones import Backbone
from etude.models.device import best_device
from etude.models.features import autocast
from etude.models.modes import AskedMode, Mode, applied, lay_out, lay_out_images, likely_mode
from etude.recipe.resolve import labelled_share, mixed_recipe, supervised_recipe
from etude.recipe.settings import Recipe, changed
from etude.recipe.timeline import image_sizes, maximum_of, resolved_run
from etude.study.run.frozen import Frozen, other_recipes
from etude.study.run.request import Request
from etude.study.run.session import Session
from etude.study.run.sources import Sources
from etude.timeline import Pace, RunSize, Timeline
from etude.training.probe import probe_mode

_BATCH, _LARGEST_BATCH = 8, 64  # of a measurement, at 224 px and at most: few small images would time the overhead
_SOLVER_STEPS = 50  # of L-BFGS, as measured on features of EfficientNet-Lite0
_FLOPS = 8e10  # a second, in float32 matrix products on two cores
_MOMENTS = 200  # of a timeline that are looked at
_SECONDS_A_FIT = 0.1  # besides the arithmetic
_DIAGNOSTICS = 0.004  # seconds an image: near-duplicates, label errors, the gallery
_BLENDED = 0.5  # of the models besides the slowest, as far as can be guessed before they are compared
_AFTER_TRAINING = ("TTA", "head on all images", "predict test", "diagnostics")
SYMMETRY_IMAGES = 192  # evaluated at most; a few seconds on a CPU
_WORTH_PROBING = 120.0  # seconds of training: below, a probe is not worth its few seconds


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds an image of a forward pass, and of forward and backward pass, at one image size in pixels."""

    size: int
    infer: float
    train: float

    def infer_at(self, size: int) -> float:
        """Return seconds an image at another size: the work grows with the area."""
        return self.infer * (size / self.size) ** 2

    def training_seconds(self, timeline: Timeline, steps: int, batch_size: int) -> float:
        """Return the expected seconds of ``steps`` steps whose image sizes the timeline sets."""
        seen = min(steps, _MOMENTS)
        return (steps / seen) * sum(
            self.train * ((moment.image_size or self.size) / self.size) ** 2 * (moment.batch_size or batch_size)
            for moment in timeline.moments(seen)
        )


def measure_speed(
    backbone: Backbone, size: int, mode: Mode | str, *, clock: Callable[[], float] = time.perf_counter
) -> Speed:
    """Time one forward pass and one training pass of a small batch, each after one to warm up.

    A backbone without a trained parameter trains as fast as it infers. A ``mode`` may be a precision alone (``fp32`` or
    ``bf16``): the rest is then the likely one, with torch's present threads.
    """
    device = best_device()
    if isinstance(mode, str):
        mode = likely_mode(device, AskedMode.of(mode, threads=torch.get_num_threads()))
    module = lay_out(backbone.module.to(device), mode).eval()
    batch = min(_LARGEST_BATCH, max(_BATCH, _BATCH * 224**2 // size**2))
    images = lay_out_images(torch.zeros(batch, backbone.in_channels, size, size, device=device), mode)
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
        infer = _seconds(forward, device, clock) / batch
        trained = any(weight.requires_grad for weight in module.parameters())
        return Speed(size, infer, _seconds(forward_and_backward, device, clock) / batch if trained else infer)


def _seconds(work: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    def done() -> float:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    start = done()
    return done() - start


@dataclass(frozen=True, slots=True)
class Plan:
    """How many images each stage of a run works on, and how fast this machine is at it."""

    recipe: Recipe  # resolved for the images
    labelled: int  # validation images included
    train: int  # of one fold, as is valid
    valid: int
    test: int = 0
    unlabelled: int = 0  # the test images aside
    folds: int = 1
    decode: float = 0.0  # seconds an image to read, decode and resize, on all threads together
    head_weights: int = 0  # features of stage 1 times classes
    features: Speed | None = None  # of the frozen backbone; None without stage 1
    others: tuple[tuple[str, Speed, int], ...] = ()  # name and speed of further ones, and their features times classes
    training: Speed | None = None  # of the trained backbone; None without stage 2
    mode: Mode | None = None  # that stage 2 trains in
    drawn: bool = True  # whether etude draws the validation images itself
    chosen: str = ""  # which network, and why
    budget: str = ""  # what of the recipe fits into the time that the run has

    @property
    def pool(self) -> int:
        """How many unlabelled images there are to learn from, near-duplicates counted in."""
        return self.unlabelled + (self.test if self.recipe.unlabeled.use_test else 0)

    @property
    def pace(self) -> Pace | None:
        """The measured seconds of a training step, by which lengths in minutes become steps."""
        speed = self.training
        return None if speed is None else Pace(speed.train * self._batch, speed.size)

    @property
    def _batch(self) -> int:
        return min(self.recipe.train.batch_size, self.train)

    def seconds(self) -> list[tuple[str, float]]:
        """Return (stage, expected seconds) of the stages that are to come, in order."""
        recipe, folds = self.recipe, self.folds
        stages = [("store", self.decode * (self.labelled + self.test + self.unlabelled))]
        models = [speed.infer for _, speed, _ in self.others]  # seconds an image of each that may predict
        if self.features is not None:
            views = recipe.head.views  # of each training image; folds share them
            images = self.labelled + (views - 1) * (self.train if folds == 1 else self.labelled)
            models.append(frozen := self.features.infer_at(recipe.model.feature_size))
            stages.append(("features", frozen * images))
            stages.append(("head", self._head_seconds(self.head_weights) * views * folds))
            if recipe.augment.policy == "auto" and recipe.changes_images:
                stages.append(("symmetry", 3 * frozen * min(self.valid, SYMMETRY_IMAGES)))
        for name, speed, weights in self.others:
            stages.append((f"features of {name}", speed.infer * self.labelled))
            stages.append((f"head of {name}", self._head_seconds(weights) * folds))
        if self.training is not None:
            models += [self.training.infer_at(image_sizes(recipe).final)] * recipe.train.networks
            stages.append(("fine-tune", self.training_seconds()))
        if recipe.unlabeled.is_on:
            stages.append(("unlabelled images", self._unlabelled_seconds() * folds))
        slowest = max(models, default=0.0)
        image = slowest + _BLENDED * (sum(models) - slowest)
        views = 1 if recipe.augment.policy == "none" else recipe.predict.tta
        if views > 1:
            stages.append(("TTA", image * (views - 1) * self.valid * folds))
        if self.features is not None and self.refits:
            weights = self.head_weights + sum(weights for *_, weights in self.others)
            stages.append(("head on all images", _fit_seconds(weights, self.labelled)))
        if models and self.test:
            stages.append(("predict test", image * self.test * views * folds))
        return [*stages, ("diagnostics", _DIAGNOSTICS * (self.labelled + self.test))]

    def seconds_after_training(self, views: int) -> float:
        """Return the expected seconds from the end of training to the last prediction, with so many views."""
        plan = replace(self, recipe=changed(self.recipe, {"predict.tta": views}))
        return sum(seconds for name, seconds in plan.seconds() if name in _AFTER_TRAINING)

    @property
    def seconds_of_rounds(self) -> float:
        """Expected seconds of further trainings with unlabelled images, which follow that of the labelled ones."""
        return self._unlabelled_seconds() * self.folds if self.recipe.unlabeled.trains_networks else 0.0

    @property
    def refits(self) -> bool:
        """Whether models learn from the validation images too in the end: where they are a draw of etude's own."""
        return self.drawn and self.folds == 1 and self.recipe.head.refit == "auto"

    def training_seconds(self) -> float:
        assert self.training is not None
        timeline, size = resolved_run(self.recipe, self.train, self.pace)
        seconds = self.training.training_seconds(timeline, size.steps, self._batch)
        networks = 1 if self.recipe.unlabeled.trains_networks else self.recipe.train.networks
        further = (networks - 1) * (1.0 + self.valid / self.train if self.refits else 1.0)
        return seconds * (1.0 + further) * self.folds

    def _unlabelled_seconds(self) -> float:
        """Return seconds of all rounds on a fold; few runs come to the last of them."""
        views = self.recipe.predict.tta
        if self.training is None or self.recipe.unlabeled.method == "head":  # each view goes through the network once
            if self.features is None:
                return 0.0
            passes = self.pool * views + self.valid * (views - 1)
            fits = _fit_seconds(self.head_weights, self.train + self.pool) * self.recipe.unlabeled.rounds
            return self.features.infer_at(self.recipe.model.feature_size) * passes + fits
        mixed, speed = replace(self, recipe=mixed_recipe(self.recipe)), self.training
        recipe, rounds = mixed.recipe, mixed.recipe.unlabeled.rounds
        share = labelled_share(recipe, self.train, self.pool)
        timeline, size = resolved_run(recipe, epoch_images(self.train, self.pool, share), mixed.pace)
        seconds = speed.training_seconds(timeline, size.steps, recipe.train.batch_size)
        if recipe.unlabeled.method == "online":
            rounds, seconds = 1, seconds + speed.infer * recipe.train.batch_size * (1 - share) * size.steps
        return rounds * (seconds + speed.infer * self.pool * views)

    def _head_seconds(self, weights: int) -> float:
        head = self.recipe.head
        searched = min(self.train, head.search_rows) * (head.folds - 1) / head.folds
        fits = head.folds * len(head.inverse_regularization)
        return fits * _fit_seconds(weights, searched) + _fit_seconds(weights, self.train)


def _fit_seconds(weights: int, rows: float) -> float:
    """Estimate a fit of the head from its arithmetic; right within a factor of about two."""
    return 4.0 * weights * rows * _SOLVER_STEPS / _FLOPS + _SECONDS_A_FIT


def refuse_single_images(recipe: Recipe, train: int) -> None:
    if "finetune" in recipe.stages and recipe.train.batchnorm == "train" and min(recipe.train.batch_size, train) < 2:
        raise EtudeError(
            f"train.batch_size is {recipe.train.batch_size} with {train:,} training images, and train.batchnorm=train "
            "needs statistics over several images a step: give 2 or more, or --set train.batchnorm=keep"
        )


def settle_mode(session: Session, plan: Plan, backbone: Backbone, device: torch.device) -> tuple[Plan, str]:
    """Return the plan with the mode to train in and its speed, and why; a resumed run keeps the mode it began with.

    It is probed where training takes long enough for that to pay, and on a GPU, whose memory may be too small.
    """
    recipe, train, sizes = plan.recipe, plan.recipe.train, image_sizes(plan.recipe)
    if (begun := session.begun_mode()) is not None:
        plan = replace(plan, mode=begun, training=measure_speed(backbone, sizes.first, begun))
        return plan, f"{begun.in_words()}, as this run began"
    asked = AskedMode.of(train.precision, train.memory_format, train.threads, train.micro_batch)
    mode = likely_mode(device, asked)
    plan = replace(plan, mode=mode, training=measure_speed(backbone, sizes.first, mode))
    if plan.training_seconds() < _WORTH_PROBING and device.type != "cuda":
        return plan, mode.in_words()
    largest_batch = min(plan.train, max(train.batch_size, round(maximum_of(recipe, "batch_size"))))
    found, note = probe_mode(backbone.module, sizes.largest, largest_batch, backbone.in_channels, device, asked=asked)
    session.record.set("probe", {"mode": found.as_dict(), "note": note})
    if found != mode:
        speed = measure_speed(backbone, sizes.first, replace(found, micro_batch=None))
        plan = replace(plan, mode=found, training=speed)
    return plan, "; ".join(filter(None, (found.in_words(), note)))


def stored_size(recipe: Recipe) -> int:
    """Return the side at which images are stored: the largest that training needs; tiny ones are stored as they are."""
    trained = image_sizes(recipe).largest
    if recipe.model.backbone == "tiny":
        return trained
    sides = {recipe.model.feature_size, trained if "finetune" in recipe.stages else 0}
    return max(sides | {other.model.feature_size for other in other_recipes(recipe)})


def show_plan(
    session: Session, sources: Sources, plan: Plan, frozen: Frozen | None, others: Sequence[tuple[Frozen, Recipe]],
    mode_reason: str, device: str,
) -> list[tuple[str, float]]:  # fmt: skip
    """Print what will be done and how long it should take; return (stage, expected seconds)."""
    request, recipe, classes = session.request, plan.recipe, sources.labelled.classes
    taught = replace(plan, train=plan.train + (plan.pool if request.teachers else 0))
    expected = taught.seconds()
    sample = f", a sample of {request.sample}" if request.sample else ""
    predicted = f"; {plan.test:,} to predict" if plan.test else ""
    rows = [
        ("images", f"{sources.labelled.described}{sample}{predicted}"),
        ("classes", f"{len(classes)}: {listed(classes, 6, str)}"),
        ("split", _split_in_words(request, plan, sources.labelled.split)),
        ("device", device),
        *([("network", plan.chosen)] if plan.chosen else []),
        *([("budget", plan.budget)] if plan.budget else []),
        ("stage 1", _head_in_words(recipe, frozen)),
    ]
    rows += [("", _head_in_words(own, other)) for other, own in others]
    if plan.training is not None:
        alone = supervised_recipe(recipe)
        rows.append(("stage 2", _finetune_in_words(alone, *resolved_run(alone, taught.train, plan.pace))))
        rows.append(("", mode_reason))
    if recipe.unlabeled.is_on:
        rows.append(("unlabelled", _unlabelled_in_words(plan)))
    if request.teachers:
        rows.append(("teachers", ", ".join(map(str, request.teachers))))
    rows.append(("time", stages_in_words(expected)))
    if session.kept:  # a search for the learning rate goes only part of the way
        session.screen.plan(f"Plan (recipe {recipe.name}, seed {request.seed})", rows)
    return expected


def stages_in_words(stages: Sequence[tuple[str, float]]) -> str:
    """Return the stages with their times for the plan.

    >>> stages_in_words([("features", 16.2), ("fine-tune", 245.0)])
    'features ~16 s, fine-tune ~4 min; about 4 min in all'
    """
    each = ", ".join(f"{name} {_about(seconds, '~')}" for name, seconds in stages)
    return f"{each}; {_about(sum(seconds for _, seconds in stages), 'about ')} in all"


def _about(seconds: float, sign: str) -> str:
    return rough_duration(seconds) if seconds < 1 else f"{sign}{rough_duration(seconds)}"


def _split_in_words(request: Request, plan: Plan, given: GivenSplit | None) -> str:
    sizes = f"{plan.train:,} to train on, {plan.valid:,} to validate"
    if request.valid is not None:
        return f"{sizes} (given)"
    if given is not None:
        return f"{sizes} ({given.described})"
    if request.folds:
        return f"{request.folds} stratified folds, each about {sizes}"
    return f"{sizes} (stratified, {plan.recipe.data.valid:.0%} held out)"


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


def _unlabelled_in_words(plan: Plan) -> str:
    recipe, settings = plan.recipe, plan.recipe.unlabeled
    images = f"{plan.unlabelled:,} images" if plan.unlabelled else ""
    if settings.use_test and plan.test:
        images += f"{' and ' if images else ''}the {plan.test:,} to predict"
    how = "online pseudo-labels" if settings.method == "online" else f"pseudo-labels in up to {settings.rounds} rounds"
    share = labelled_share(recipe, plan.train, plan.pool)
    mix = f"{share:.1%} of {'each batch' if 'finetune' in recipe.stages else 'the weight'} labelled"
    return f"{images}; {how}, {mix}; kept only if better on validation images"
