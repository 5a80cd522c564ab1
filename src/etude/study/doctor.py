"""``etude doctor``: what this machine can do, how long this data will take on it, and what slows it down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.progress import Progress
from etude.data.sources import ImageSet
from etude.data.survey import SurveyResult, survey
from etude.models.backbones import Backbone, required_size
from etude.models.device import best_device, choose_precision
from etude.models.memory import keep_large_blocks
from etude.models.modes import AskedMode, Mode, likely_mode
from etude.recipe import ImageFacts, Recipe, load_recipe, resolve
from etude.recipe.lengths import value_range
from etude.recipe.resolve import DEFAULT_BACKBONE
from etude.recipe.sizes import image_sizes
from etude.study.announce import stored_size
from etude.study.backbone import trainable_backbone
from etude.study.doctor_checks import Complaint, Measurements, complaints
from etude.study.doctor_facts import MachineFacts, read_facts
from etude.study.doctor_measure import DiskSpeed, Rate, decode_rate, disk_speed, made_up_pictures, network_rates
from etude.study.frozen import Frozen, build_frozen
from etude.study.plan import Amounts, at_trained_sizes, expected_seconds
from etude.study.request import Request
from etude.study.sources import read_sources
from etude.study.speed import Speed, measure_speed
from etude.training.probe import probe_modes
from etude.training.probe_result import ProbeResult

SIZES = (128, 160, 224)
GPU_RATIO = (15.0, 50.0)
"""How many times faster than two processor cores a GPU trains, by published figures."""

_SURVEYED = 256  # images looked at, of however many there are
_DECODED = 256
_DISK_ROOM = 256 << 20
_CAMERA_SIDE = 768
_BY_NETWORK = frozenset({"features", "fine-tune", "predict test"})

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined beside the machine.

    Args:
        recipe: resolved for the images.
        channels: of the images.
        images: the labelled images, or None without TRAIN.
        surveyed: of a sample of them, or None.
    """

    recipe: Recipe
    channels: int
    images: ImageSet | None = None
    surveyed: SurveyResult | None = None


@dataclass(frozen=True, slots=True)
class DataReport:
    """How long this data takes.

    Args:
        described: the data in a line.
        stages: (stage, expected seconds) of a run here.
        gpu: least and most seconds of that run on a GPU, by published ratios; None where one is at work already.
    """

    described: str
    images: int
    stages: tuple[tuple[str, float], ...]
    gpu: tuple[float, float] | None

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(seconds for _, seconds in self.stages)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found.

    Args:
        network: that the modes were measured with.
        size: of its images.
        decoded_size: to which images were decoded.
        disk: None when there was no room to try.
    """

    facts: MachineFacts
    recipe: str
    network: str
    size: int
    probe: ProbeResult
    decode: float
    decoded_size: int
    disk: DiskSpeed | None
    rates: tuple[Rate, ...]
    data: DataReport | None
    complaints: tuple[Complaint, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        tree = asdict(self) | {"probe": self.probe.as_dict()}
        tree["facts"]["cache"] = str(self.facts.cache)
        if self.data is not None:
            tree["data"]["seconds"] = self.data.seconds
        return tree


def choose_subject(
    recipe: str, settings: Sequence[str], request: Request | None, progress: Progress, warn: Say
) -> Subject:
    """Read what is to be examined; a sample of the images is looked at, not all.

    Raises:
        EtudeError: as ``etude fit`` would.
    """
    asked = load_recipe(recipe, settings)
    needed = required_size(asked.model.backbone)
    if request is None:
        facts = ImageFacts(_CAMERA_SIDE, 3, count=1_000, required_size=needed)
        return Subject(at_trained_sizes(resolve(asked, facts), warn), 3)
    request.check()
    sources = read_sources(request, asked, warn)
    images = sources.labelled
    spread = np.unique(np.linspace(0, len(images) - 1, min(_SURVEYED, len(images))).astype(int))
    values: list[str] = []
    surveyed = survey(images.take(spread), progress).in_range(value_range(asked.data.range), values.append)
    images = replace(images, described="; ".join([images.described, *values]))
    if surveyed.bad:
        warn(f"{len(surveyed.bad):,} of {len(spread):,} files looked at cannot be read; etude fit lists all of them")
    facts = ImageFacts(surveyed.median_short_side, surveyed.channels, count=len(images), required_size=needed)
    return Subject(at_trained_sizes(resolve(asked, facts), warn), surveyed.channels, images, surveyed)


def examine(subject: Subject, cache: Path, progress: Progress) -> Report:
    """Measure the machine and what the subject will take on it.

    Raises:
        EtudeError: the network cannot be built, or the cache not be written.
    """
    facts = read_facts(cache)
    keep_large_blocks()
    recipe, settings = subject.recipe, subject.recipe.train
    disk = disk_speed(cache, progress) if facts.disk_free > _DISK_ROOM else None
    decoded = stored_size(recipe)
    known = None if subject.surveyed is None else subject.surveyed.value_range
    decode = decode_rate(_pictures(subject), decoded, subject.channels, progress, value_range=known)
    asked = AskedMode.of(settings.precision, settings.memory_format, settings.threads, settings.micro_batch)
    frozen, trained = _networks(subject)
    backbone, size = _probed(recipe, frozen, trained)
    probe = probe_modes(
        backbone.module, size, settings.batch_size, backbone.in_channels, best_device(),
        asked=asked, train=trained is not None, cache=cache, progress=progress,
    )  # fmt: skip
    rates = _rates(recipe, backbone, size, probe.mode, trained is not None, progress)
    data = None
    if subject.images is not None:
        features = None if frozen is None else measure_speed(frozen.backbone, recipe.model.feature_size, probe.mode)
        training = None if trained is None else measure_speed(trained, image_sizes(recipe).first, probe.mode)
        data = _data_report(subject.images, recipe, facts, decode, features, training, _head_weights(subject, frozen))
    speed = next((rate.train for rate in rates if rate.network == _name(recipe, trained) and rate.size == size), None)
    found = complaints(facts, Measurements(disk.write if disk else None, disk.read if disk else None, decode, speed))
    return Report(
        facts, recipe.name, _name(recipe, trained), size, probe, decode, decoded, disk, tuple(rates), data,
        tuple(found),
    )  # fmt: skip


def _networks(subject: Subject) -> tuple[Frozen | None, Backbone | None]:
    recipe = subject.recipe
    frozen = build_frozen(recipe, subject.channels)
    if "finetune" not in recipe.stages:
        return frozen, None
    return frozen, trainable_backbone(recipe, subject.channels, choose_precision(recipe.train.precision, best_device()))


def _probed(recipe: Recipe, frozen: Frozen | None, trained: Backbone | None) -> tuple[Backbone, int]:
    """Return the network whose modes are measured, and its image size."""
    if trained is not None:
        return trained, image_sizes(recipe).largest
    assert frozen is not None  # a recipe has one of the stages
    return frozen.backbone, recipe.model.feature_size


def _name(recipe: Recipe, trained: Backbone | None) -> str:
    return DEFAULT_BACKBONE if trained is None and recipe.model.backbone == "tiny" else recipe.model.backbone


def _rates(recipe: Recipe, backbone: Backbone, size: int, mode: Mode, trained: bool, progress: Progress) -> list[Rate]:
    """Return the rates of the recipe's network, and of the default one where that is another."""
    name = recipe.model.backbone if trained else _name(recipe, None)
    sizes = {size, recipe.model.feature_size if not trained else image_sizes(recipe).first}
    same = name == DEFAULT_BACKBONE and trained
    own = network_rates(name, backbone, sorted({*sizes, *(SIZES if same else ())}), mode, progress)
    if not trained:
        own = [Rate(rate.network, rate.size, None, rate.infer) for rate in own]
    if same:
        return own
    usual = resolve(load_recipe("default"), ImageFacts(_CAMERA_SIDE, 3, count=1_000))
    device = best_device()
    default = trainable_backbone(usual, 3, choose_precision("auto", device))
    return [*own, *network_rates(DEFAULT_BACKBONE, default, SIZES, likely_mode(device), progress)]


def _pictures(subject: Subject) -> Sequence[Path | bytes]:
    if subject.images is None or subject.surveyed is None:
        return made_up_pictures()
    step = max(1, len(subject.images) // _DECODED)
    return subject.images.paths[::step][:_DECODED]


def _head_weights(subject: Subject, frozen: Frozen | None) -> int:
    assert subject.images is not None
    return 0 if frozen is None else frozen.backbone.num_features * len(subject.images.classes)


def _data_report(
    images: ImageSet, recipe: Recipe, facts: MachineFacts, decode: float,
    features: Speed | None, training: Speed | None, head_weights: int,
) -> DataReport:  # fmt: skip
    valid = max(1, round(len(images) * recipe.data.valid))
    amounts = Amounts(len(images), max(1, len(images) - valid), valid, 0, folds=1)
    stages = tuple(expected_seconds(recipe, amounts, 1 / max(decode, 1e-9), features, training, head_weights))
    gpu = None if facts.device != "cpu" else gpu_seconds(stages, facts.cores_usable)
    return DataReport(images.described, len(images), stages, gpu)


def gpu_seconds(stages: Sequence[tuple[str, float]], cores: int) -> tuple[float, float]:
    """Return least and most seconds of these stages on a GPU; only a network's own work becomes faster there.

    >>> gpu_seconds([("store", 10.0), ("fine-tune", 300.0)], cores=2)
    (16.0, 30.0)
    """
    network = sum(seconds for name, seconds in stages if name in _BY_NETWORK)
    rest = sum(seconds for name, seconds in stages if name not in _BY_NETWORK)
    slow, fast = (max(1.0, ratio * 2 / cores) for ratio in GPU_RATIO)
    return rest + network / fast, rest + network / slow
