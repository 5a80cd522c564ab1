"""What the callbacks add to a training step of 10 ms: the Clock with all of them, each alone, and the tricks' own work.

make bench-callback-overhead
make bench-callback-overhead ARGS='--rounds 9 --steps 300'

The step is that of etude's small network, and waits, busy, until 10 ms are over. The callbacks' overhead is measured
with tricks that the timeline holds at nothing (strength 0, alpha 0, full size), against Lightning's bare loop; all
variants take turns in each round. It is told in two ways: as the whole step's difference, and as what the step spends
inside Lightning's calls of hooks, which a busy machine disturbs less. EMA's average of all weights is within it, at
the pace it has in a long run (every 32nd step), and once left out. The tricks' arithmetic on pixels is timed by
itself. All times are the process's own (one thread).
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer import call
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
from etude.callbacks.batches import BatchContext, BatchTransform, ImageBatch
from etude.core.context import Silent
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


@contextmanager
def hooks_timed() -> Generator[list[float]]:
    """Yield a list to which each step adds the seconds of Lightning's calls of callbacks and of the batch hook."""
    steps: list[float] = []
    spent = 0.0
    own_callbacks, own_module = call._call_callback_hooks, call._call_lightning_module_hook

    def callbacks(trainer: pl.Trainer, name: str, *words: Any, **more: Any) -> None:
        nonlocal spent
        start = time.process_time()
        own_callbacks(trainer, name, *words, **more)
        spent += time.process_time() - start
        if name == "on_train_batch_end":
            steps.append(spent)
            spent = 0.0

    def module(trainer: pl.Trainer, name: str, *words: Any, **more: Any) -> Any:
        nonlocal spent
        start = time.process_time()
        result = own_module(trainer, name, *words, **more)
        spent += time.process_time() - start if name == "on_after_batch_transfer" else 0.0
        return result

    call._call_callback_hooks, call._call_lightning_module_hook = callbacks, module
    try:
        yield steps
    finally:
        call._call_callback_hooks, call._call_lightning_module_hook = own_callbacks, own_module


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
        few = images[:4, ::8, ::8].permute(0, 3, 1, 2).float() / 255  # so that the step is little but waiting
        loss = nn.functional.cross_entropy(self.model(few), targets[:4])
        while time.process_time() - start < STEP:
            for _ in range(500):  # asking for the time is a call of the system
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
        "EMA": lambda: EMA(warmup=False),
        "History": lambda: History(folder / "history.csv"),
        "Hooks": lambda: Hooks(on_batch_begin=lambda step, logs: None, on_batch_end=lambda step, logs: None),
        "TrainingProgress": lambda: TrainingProgress(Silent(), steps, BATCH),
        "Checkpoints": lambda: Checkpoints(folder / "checkpoints", every_steps=10**9, every_seconds=60.0, warn=print),
    }
    beside_a_clock = {
        f"Clock, {name}": lambda maker=maker: arrange([clock(), maker()]) for name, maker in makers.items()
    }

    def everything(ema: EMA) -> list[pl.Callback]:
        return arrange([clock(), ema, *(maker() for name, maker in makers.items() if name != "EMA")])

    return {
        "bare loop": list,
        "Clock": lambda: [clock()],
        **beside_a_clock,
        "all, nothing averaged": lambda: everything(EMA(phases="later")),
        "all": lambda: everything(EMA(warmup=False)),
    }


class Seconds(NamedTuple):
    """What a step takes, and of it what is spent inside hooks; means over the steps of a run."""

    step: float
    hooks: float


def seconds_of(callbacks: list[pl.Callback], steps: int) -> Seconds:
    """Train with the callbacks and return what a step takes."""
    torch.manual_seed(0)
    module = Waiting()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=callbacks, logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with hooks_timed() as hooks:
        trainer.fit(module, SameBatch(steps))
    begun = module.begun[WARM_UP:]
    between = [after - before for before, after in itertools.pairwise(begun)]
    # The EMA works in some steps only, hence a mean; the slowest are those in which the machine did other things.
    return Seconds(_mean_but_slowest(between), _mean_but_slowest(hooks[WARM_UP:]))


def _mean_but_slowest(seconds: list[float]) -> float:
    return statistics.fmean(sorted(seconds)[: -max(1, len(seconds) // 50)])


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
            context = BatchContext(trainer, module, step, step, None)
            start = time.process_time()
            trick.changed(batch, context)
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
        rounds: list[dict[str, Seconds]] = []
        for number in range(given.rounds):
            turn = list(chosen.items())[:: -1 if number % 2 else 1]  # so that a drift of the machine cancels
            rounds.append({label: seconds_of(make(), given.steps) for label, make in turn})
    tell(chosen, rounds)


def tell(labels: Iterable[str], rounds: list[dict[str, Seconds]]) -> None:
    """Print the table, the tricks' own work, and whether the goal is met."""
    print(f"medians of {len(rounds)} rounds; ms added to the bare loop's step, and as a share of 10 ms")
    print(f"{'callbacks':24}{'ms a step':>10}{'added':>9}{'share':>8}{'in hooks':>10}{'share':>8}")
    shares: dict[str, float] = {}
    for label in labels:
        step = statistics.median(one[label].step for one in rounds)
        added = statistics.median(one[label].step - one["bare loop"].step for one in rounds)
        hooks = statistics.median(one[label].hooks - one["bare loop"].hooks for one in rounds)
        shares[label] = hooks / STEP
        numbers = f"{step * 1e3:10.3f}{added * 1e3:9.3f}{added / STEP:8.1%}{hooks * 1e3:10.3f}{hooks / STEP:8.2%}"
        print(f"{label:24}{numbers}")
    print(f"\na trick's own work on {BATCH} images of {SIZE} × {SIZE} px, when it is on:")
    print(", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in tricks_at_work().items()))
    weights = sum(parameter.numel() for parameter in Waiting().parameters())
    verdict = "within" if shares["all"] < GOAL else "ABOVE"
    print(
        f"\nClock and all callbacks, in hooks: {shares['all']:.2%} of a 10 ms step, {verdict} the goal of {GOAL:.0%};"
    )
    print(f"without the average of {weights:,} weights: {shares['all, nothing averaged']:.2%}; {machine()}")


if __name__ == "__main__":
    main()
