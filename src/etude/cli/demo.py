"""``etude demo``: the main job on data that a pip package holds."""

from __future__ import annotations

import sys
from pathlib import Path


def demo(*, out: Path | None = None, recipe: str = "default", seed: int = 0, cache: Path | None = None) -> None:
    """Train on 5,000 MNIST digits from a pip package, in about a minute.

    4,000 digits are for training and 1,000 for the test; the split is fixed, and the test labels are used once, at
    the end.

    Parameters
    ----------
    out
        The run's folder; by default runs/demo or the next free name.
    recipe
        default or quick.
    seed
        Of the training; the split stays the same.
    cache
        Folder of decoded images and features; by default ~/.cache/etude.
    """
    from etude.cli.fit import show_files
    from etude.core.context import default_cache
    from etude.core.metrics import accuracy, wilson
    from etude.core.predictions import Predictions
    from etude.data.digits import write_digits
    from etude.journal.screen import Screen
    from etude.recipe import load_recipe
    from etude.study.run.request import Request, claim_run_folder
    from etude.study.run.start import fit as run_job

    load_recipe(recipe)  # a mistake in it ends the command before anything is written
    screen = Screen()
    cache = cache or default_cache()
    digits = write_digits(cache / "demo" / "mnist-5k", screen)
    out = out or claim_run_folder(Path("demo"))
    given = {"test": digits.test, "recipe": recipe, "seed": seed, "out": out, "cache": cache}
    folder = run_job(Request(digits.train, ("etude", *sys.argv[1:]), **given), screen)
    predictions = Predictions.load(folder / "test.npz")
    labels = [predictions.classes.index(digits.test_labels[name]) for name in predictions.ids]
    right = accuracy(predictions.predicted(), labels)
    low, high = wilson(right * len(labels), len(labels))
    ends = f"95% interval {low:.1%} to {high:.1%}"
    screen.say(f"test accuracy: {right:.2%} ({ends}) on {len(labels):,} digits never seen before")
    show_files(screen, folder)
