"""Distillation on MNIST-5k: how much of the gap between a small student and an ensemble of teachers it closes.

    make bench-distill-mnist ARGS='--keep distill.json'       # goes on where it was stopped
    make bench-distill-mnist ARGS='--seeds 1 --epochs 2 --student-epochs 2'
    make bench-distill-mnist ARGS='--choose'                  # errors on validation digits, by temperature

The teacher is the mean of a few small networks, each trained on the 4,000 training digits with augmentation. Three
students of at most a tenth of its parameters learn for as many steps each: from the labels, from the labels with that
augmentation, and by distillation with that augmentation, where the teacher sees each image as the student does (Hinton,
Vinyals & Dean 2015; his student alone had no augmentation, while his teacher had), and half of the batches are mixtures
of two images. The gap closed is
(alone - distilled) / (alone - teacher) of the mean errors on the 1,000 test digits, which are always the same and which
no choice depends on. Choices are made with `--choose`, which holds out a fifth of the 4,000 and has seeds of its own:
students of 60 epochs have far fewer errors than those of 10, so patience is what counts, and mixtures help (Beyer et
al. 2022, "Knowledge distillation: A good teacher is patient and consistent"). The teacher's word alone at T = 1 is
best: at higher temperatures a student this small spends itself on shades of what cannot be. As 800 digits are too few
to tell such students apart, they are compared on eight augmented views of each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common import machine, spread
from digit_arrays import digit_arrays
from etude.core.context import Context
from etude.core.processor import usable_cores
from etude.core.seeds import derive_seed, rng_for
from etude.data.split import hold_out
from etude.functional.augment import augment, policy_named
from etude.functional.distill import distillation_loss, mean_probabilities
from etude.functional.mix import one_hot
from etude.models.backbones import TinyNet
from refine_common import Kept

TEACHER, STUDENT = (16, 32, 64), (10, 20, 40)  # widths
TEMPERATURE, SHARE, MIXED = 1.0, 1.0, 0.5
CHOICES = (1.0, 2.0, 4.0, 8.0, 20.0)  # temperatures
FIRST_CHOICE_SEED = 1_000
VIEWS = 8
BATCH, RATE, DECAY = 64, 4e-3, 0.02
DIGITS = policy_named("digits")

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What networks are trained on, and for how long.

    Args:
        images: uint8 (N, 28, 28, 1).
        labels: int64 (N,).
        seed: of all draws.
        epochs: of each of the teacher's networks.
        student_epochs: of each student.
        members: networks of the teacher.
    """

    images: Pixels
    labels: Labels
    seed: int
    epochs: float
    student_epochs: float
    members: int


def network(widths: tuple[int, ...]) -> nn.Sequential:
    """Return the small network with a linear head."""
    return nn.Sequential(TinyNet(1, widths), nn.Linear(widths[-1], 10))


def parameters(widths: tuple[int, ...]) -> int:
    """Return how many numbers such a network learns."""
    return sum(parameter.numel() for parameter in network(widths).parameters())


def as_input(images: Pixels) -> Tensor:
    """Return float (B, 1, 28, 28) of about unit variance."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 33.0) / 78.0


def trained(
    lesson: Lesson,
    widths: tuple[int, ...],
    epochs: float,
    name: str,
    *,
    augmented: bool = True,
    teachers: Sequence[nn.Module] = (),
    temperature: float = TEMPERATURE,
) -> nn.Module:
    """Train a network by ``lesson``; where there are teachers, by what they say, of mixed images too."""
    torch.manual_seed(derive_seed(lesson.seed, f"{name}/weights"))
    model, steps = network(widths), round(epochs * len(lesson.images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    rng = rng_for(lesson.seed, f"{name}/batches")
    for _ in range(steps):
        batch = rng.integers(len(lesson.images), size=BATCH)
        images = as_input(augment(lesson.images[batch], DIGITS, 1.0 if augmented else 0.0, rng))
        target = one_hot(torch.from_numpy(lesson.labels[batch]), 10)
        if teachers and rng.random() < MIXED:
            part = float(rng.random())
            images, target = (part * both + (1 - part) * both.flip(0) for both in (images, target))
        teacher, share = (mean_probabilities(teachers, images), SHARE) if teachers else (target, 0.0)
        loss = distillation_loss(model(images), target, torch.ones(BATCH), teacher, temperature, share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def the_teacher(lesson: Lesson, pool: Executor) -> list[nn.Module]:
    """Return the teacher's networks."""
    names = [f"teacher {number}" for number in range(lesson.members)]
    return list(pool.map(partial(trained, lesson, TEACHER, lesson.epochs), names))


def wrong(models: Sequence[nn.Module], images: Pixels, labels: Labels) -> float:
    """Return the error of the mean of the models' probabilities, in percent."""
    return 100 * float((mean_probabilities(models, as_input(images)).argmax(1).numpy() != labels).mean())


def compared(lesson: Lesson, pool: Executor, test_images: Pixels, test_labels: Labels) -> dict[str, float]:
    """Return errors in percent, by arm."""
    teachers = the_teacher(lesson, pool)
    student = partial(pool.submit, trained, lesson, STUDENT, lesson.student_epochs, "student")
    students = {  # the longest first
        "student, distilled": student(teachers=teachers),
        "student, augmented": student(),
        "student, plain": student(augmented=False),
    }
    singles = [wrong([teacher], test_images, test_labels) for teacher in teachers]
    found = {"teacher": wrong(teachers, test_images, test_labels), "one of its networks": statistics.mean(singles)}
    return found | {name: wrong([one.result()], test_images, test_labels) for name, one in students.items()}


def chosen(lesson: Lesson, pool: Executor, images: Pixels, labels: Labels) -> dict[str, float]:
    """Return errors on augmented validation digits in percent: of the teacher, by temperature, of students alone."""
    images = np.concatenate(
        [augment(images, DIGITS, 1.0, rng_for(lesson.seed, "views", view)) for view in range(VIEWS)]
    )
    labels = np.tile(labels, VIEWS)
    teachers = the_teacher(lesson, pool)
    student = partial(pool.submit, trained, lesson, STUDENT, lesson.student_epochs, "student", teachers=teachers)
    students = {f"T = {temperature:g}": student(temperature=temperature) for temperature in CHOICES}
    students["student, augmented"] = student(teachers=())
    students["student, plain"] = student(teachers=(), augmented=False)
    found = {"teacher": wrong(teachers, images, labels)}
    return found | {name: wrong([one.result()], images, labels) for name, one in students.items()}


def show(runs: Sequence[dict[str, float]]) -> None:
    """Print mean errors by arm, and what distillation closed of the gap."""
    mean = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
    for name in runs[0]:
        print(f"{name:22} {spread([run[name] for run in runs], '.2f'):>14} % errors")
    for alone in ("student, plain", "student, augmented"):
        gap = mean[alone] - mean["teacher"]
        for name in [each for each in mean if each == "student, distilled" or each.startswith("T = ")]:
            closed = f"{(mean[alone] - mean[name]) / gap:.1%}" if gap > 0 else "no gap"
            print(f"gap closed by {name}, against {alone}: {closed}")


def main() -> None:
    """Print a table of errors over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--members", type=int, default=4, help="networks of the teacher")
    parser.add_argument("--epochs", type=float, default=10, help="of each of them")
    parser.add_argument("--student-epochs", type=float, default=60)
    parser.add_argument("--keep", type=Path, help="JSON file of finished seeds, to go on from")
    parser.add_argument("--choose", action="store_true", help="compare temperatures on views of validation digits")
    given = parser.parse_args()
    large, small = given.members * parameters(TEACHER), parameters(STUDENT)
    if small * 10 > large:
        parser.error(f"the student has {small:,} parameters, more than a tenth of the teacher's {large:,}")
    digits, kept, start = digit_arrays(), Kept(given.keep), time.perf_counter()
    own, held = hold_out(digits.labels, range(len(digits.labels)), 0.2, Context(warn=lambda text: None))
    lengths = (given.epochs, given.student_epochs, given.members)
    described = f"{given.members} networks, {given.epochs:g} and {given.student_epochs:g} epochs"

    def run(seed: int) -> dict[str, float]:
        if given.choose:
            part = Lesson(digits.images[own], digits.labels[own], FIRST_CHOICE_SEED + seed, *lengths)
            return chosen(part, pool, digits.images[held], digits.labels[held])
        whole = Lesson(digits.images, digits.labels, seed, *lengths)
        return compared(whole, pool, digits.test_images, digits.test_labels)

    runs: list[dict[str, float]] = []
    # Networks as small as these train fastest side by side, a thread each.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), spawned, torch.set_num_threads, (1,)) as pool:
        for seed in range(given.seeds):
            asked = "choice" if given.choose else "test"
            name = f"{asked}, {described}, T = {TEMPERATURE:g}, share {SHARE:g}, seed {seed}"
            runs.append(kept.of(name, partial(run, seed)))
            print(f"seed {seed}: " + ", ".join(f"{arm} {error:.2f}" for arm, error in runs[-1].items()), flush=True)
    asked = f"{VIEWS} views of 800 validation digits" if given.choose else "1,000 test digits"
    print(f"\nMNIST-5k, {asked}, n={given.seeds} seeds, {described}, {machine()}")
    print(f"teacher {large:,} parameters, student {small:,}; T = {TEMPERATURE:g}, share {SHARE:g}")
    show(runs)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
