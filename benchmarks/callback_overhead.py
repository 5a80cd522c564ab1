"""What the callbacks add to a training step of 10 ms: the Clock with all of them, each alone, and the tricks' own work.

make bench-callback-overhead
make bench-callback-overhead ARGS='--rounds 9 --steps 300'

The step is a small network's and waits, busy, until 10 ms are over. Two figures are kept apart. The overhead of clock
and bookkeeping is measured with tricks that the timeline holds at nothing (strength 0, alpha 0, full size), against
Lightning's bare loop; all variants take turns in each round. The tricks' arithmetic on pixels is timed by itself.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from torch import nn

from common import machine
from etude.callbacks import (
    EMA,
    AugmentRamp,
    Checkpoints,
    Clock,
    CutMix,
    History,
    Hooks,
    LabelSmoothing,
    MixUp,
    ProgressiveResize,
    TrainingProgress,
    arrange,
)
from etude.callbacks.batches import BatchTransform, ImageBatch, Occasion
from etude.core.progress import Silent
from etude.models.backbones import build_backbone
from etude.models.classifier import Classifier
from etude.timeline import Cosine, Linear, Phase, Timeline
from etude.training.optimizer import parameter_groups

STEP = 0.010  # seconds
GOAL = 0.03
BATCH, SIZE, CLASSES = 32, 64, 10
RUN_STEPS = 10_000  # of the run that the measured steps begin
WARM_UP = 10  # steps
TRICKS = ("augment", "mixup", "cutmix", "label_smoothing")


def some_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images uint8 (B, S, S, 3) and labels (B,)."""
    images = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (BATCH,))


class SameBatch:
    """A loader that costs nothing."""

    def __init__(self, steps: int) -> None:
        self.steps, self.batch = steps, some_batch()

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return itertools.repeat(self.batch, self.steps)


class Waiting(pl.LightningModule):
    """A small classifier whose ``training_step`` takes 10 ms; it notes when each step begins."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = CLASSES
        backbone = build_backbone("tiny", "none", 3)
        self.model = Classifier(backbone.module, backbone.num_features, CLASSES, dropout=0.1)
        self.begun: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss, after 10 ms."""
        self.begun.append(start := time.process_time())
        images, targets = batch
        logits = self.model(images[:, ::8, ::8].permute(0, 3, 1, 2).float() / 255)  # few pixels: little but waiting
        loss = nn.functional.cross_entropy(logits, targets)
        while time.process_time() - start < STEP:
            pass
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimiser with layer-wise rates."""
        groups = parameter_groups(self.model, weight_decay=0.02, layer_decay=0.93)
        return torch.optim.AdamW(groups, lr=1e-3, fused=True)


def clock() -> Clock:
    """Return a clock of a long run that schedules everything, and keeps the tricks off while steps are measured."""
    rates = {"momentum": Linear(0.95, 0.85), "dropout": Linear(0.0, 0.1), "image_size": SIZE}
    off, on = dict.fromkeys(TRICKS, 0.0), dict.fromkeys(TRICKS, 0.2)
    phases = (
        Phase("measured", 0.5, lr=Linear(0.0, 1e-3), **rates, **off),
        Phase("later", 0.5, lr=Cosine(1e-3, 0.0), **rates, **on),  # a trick that is never on is refused
    )
    return Clock(Timeline(phases), RUN_STEPS)


def variants(folder: Path, steps: int) -> dict[str, Callable[[], list[pl.Callback]]]:
    """Return what is measured, by name; tricks stand beside a Clock, which tells them to do nothing."""
    makers: dict[str, Callable[[], pl.Callback]] = {
        "ProgressiveResize": ProgressiveResize,
        "AugmentRamp": AugmentRamp,
        "MixUp": MixUp,
        "CutMix": CutMix,
        "LabelSmoothing": LabelSmoothing,
        "EMA": EMA,
        "History": lambda: History(folder / "history.csv"),
        "Hooks": lambda: Hooks(on_batch_begin=lambda step, logs: None, on_batch_end=lambda step, logs: None),
        "TrainingProgress": lambda: TrainingProgress(Silent(), steps, BATCH),
        "Checkpoints": lambda: Checkpoints(folder / "checkpoints", every_steps=10**9, every_seconds=60.0, warn=print),
    }
    beside_a_clock = {
        f"Clock, {name}": lambda maker=maker: arrange([clock(), maker()]) for name, maker in makers.items()
    }
    everything = lambda: arrange([clock(), *(maker() for maker in makers.values())])  # noqa: E731
    return {"bare loop": list, "Clock": lambda: [clock()], **beside_a_clock, "all": everything}


def seconds_a_step(callbacks: list[pl.Callback], steps: int) -> float:
    """Return the median time from one step's beginning to the next."""
    torch.manual_seed(0)
    module = Waiting()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=callbacks, logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, SameBatch(steps))
    measured = module.begun[WARM_UP:]
    return statistics.median(after - before for before, after in itertools.pairwise(measured))


def tricks_at_work() -> Mapping[str, float]:
    """Return seconds that each trick takes for one batch when it does something."""
    batch = ImageBatch(*some_batch())
    trainer, module = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False), Waiting()
    tricks: list[BatchTransform] = [ProgressiveResize(), AugmentRamp(rise=0.0), MixUp(), CutMix(), LabelSmoothing()]
    seconds: dict[str, float] = {}
    for trick in tricks:
        trainer.callbacks = [trick]  # pyright: ignore[reportAttributeAccessIssue]  (set by Lightning, undeclared)
        times: list[float] = []
        for step in range(200):
            occasion = Occasion(trainer, module, step, step, 1000, None)
            start = time.process_time()
            trick.changed(batch, occasion)
            times.append(time.process_time() - start)
        seconds[type(trick).__name__] = statistics.median(times)
    return seconds


def main() -> None:
    """Print each variant's step, what it adds to the bare loop's, and the tricks' own work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    with tempfile.TemporaryDirectory() as name:
        chosen = variants(Path(name), given.steps)
        rounds: list[dict[str, float]] = []
        for number in range(given.rounds):
            turn = list(chosen.items())[:: -1 if number % 2 else 1]  # so that a drift of the machine cancels
            rounds.append({label: seconds_a_step(make(), given.steps) for label, make in turn})
    print(f"{'callbacks':28}{'ms a step':>12}{'added, ms':>12}{'of 10 ms':>10}   (median of {given.rounds} rounds)")
    shares: dict[str, float] = {}
    for label in chosen:
        whole = statistics.median(one[label] for one in rounds)
        added = statistics.median(one[label] - one["bare loop"] for one in rounds)
        shares[label] = added / STEP
        print(f"{label:28}{whole * 1e3:12.3f}{added * 1e3:12.3f}{shares[label]:10.2%}")
    print(f"\na trick's own work on {BATCH} images of {SIZE} × {SIZE} px, when it is on:")
    print(", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in tricks_at_work().items()))
    verdict = "within" if shares["all"] < GOAL else "ABOVE"
    print(
        f"\nClock and all callbacks: {shares['all']:.2%} of a 10 ms step, {verdict} the goal of {GOAL:.0%}; {machine()}"
    )


if __name__ == "__main__":
    main()
