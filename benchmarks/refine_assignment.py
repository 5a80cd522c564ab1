"""Exact balanced assignment against the step-wise coefficient search, on 112,000 x 340 predictions (Quick, Draw! size).

    make bench-refine-assignment
    make bench-refine-assignment ARGS='--images 11200 --classes 34'

Generated, with a known truth: every class has the same number of images; a logit is noise, plus a signal for the true
class, plus a smaller one for the few classes that look like it, plus a bias of each class that the truth does not have.

The baseline is the known script of that competition: probabilities are multiplied by coefficients that start at one; in
each step the class predicted most often has its coefficient lowered a little; after 3,000 steps those coefficients are
kept that had the highest score Σ_k min(share_k%, 100 / C), and the next round starts there with a smaller step. Here a
step looks only at the images of the lowered class, which the script does not, so its seconds are kinder than they were.
The fewer images are moved, the more likely the labels, so likelihoods compare only at equal counts: "completed" moves
what the search left over, the cheapest image first, until all counts are met.

Peak memory is that of this process up to the end of the exact assignment, which runs first.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from numpy.typing import NDArray

from etude.core.predictions import Predictions
from etude.core.seeds import rng_for
from etude.refine import BalancedAssignment

LOWERED = (0.1, 0.03, 0.01, 0.003, 0.001)  # share of a coefficient taken off in a step, round by round


def generated(images: int, classes: int, seed: int) -> Predictions:
    """Return predictions of a biased model for as many images of each class, with labels."""
    rng = rng_for(seed, "assignment")
    labels = rng.permutation(np.arange(images) % classes)
    alike = rng.integers(classes, size=(classes, 5))
    logits = rng.standard_normal((images, classes), dtype=np.float32)
    logits *= 1.5
    logits[np.arange(images)[:, None], alike[labels]] += 3
    logits[np.arange(images), labels] += 6.5
    logits += 0.7 * rng.standard_normal(classes, dtype=np.float32)
    names = tuple(f"class {number:03}" for number in range(classes))
    return Predictions(tuple(map(str, range(images))), names, logits[None], labels=labels)


def coefficient_search(p: NDArray[np.float32], steps: int = 3000) -> NDArray[np.int64]:
    """Return the labels of the best coefficients that the step-wise search finds for probabilities (N, C)."""
    n, classes = p.shape
    best_score, best = -1.0, np.ones(classes, np.float32)
    for lowered in LOWERED:
        coefficients = best.copy()
        labels = (p * coefficients).argmax(axis=1)
        for _ in range(steps):
            counts = np.bincount(labels, minlength=classes)
            score = float(np.minimum(100 * counts / n, 100 / classes).sum())
            if score > best_score:
                best_score, best = score, coefficients.copy()
            largest = int(counts.argmax())
            coefficients[largest] *= 1 - lowered
            rows = np.flatnonzero(labels == largest)
            labels[rows] = (p[rows] * coefficients).argmax(axis=1)
    return (p * best).argmax(axis=1)


def completed(labels: NDArray[np.int64], log_p: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return ``labels`` with images of too large classes moved to too small ones, the least loss first."""
    labels, classes = labels.copy(), log_p.shape[1]
    counts = np.bincount(labels, minlength=classes)
    sizes = np.full(classes, len(labels) // classes)
    sizes[np.argsort(-counts, kind="stable")[: len(labels) % classes]] += 1
    rows, small = np.flatnonzero((counts > sizes)[labels]), np.flatnonzero(counts < sizes)
    loss = log_p[rows, labels[rows]][:, None] - log_p[np.ix_(rows, small)]
    for place in np.argsort(loss, axis=None, kind="stable"):
        row, c = rows[place // len(small)], small[place % len(small)]
        if counts[labels[row]] > sizes[labels[row]] and counts[c] < sizes[c]:
            counts[labels[row]] -= 1
            counts[c] += 1
            labels[row] = c
    return labels


def report(name: str, labels: NDArray[np.int64], log_p: NDArray[np.float32], truth: NDArray[np.int64]) -> str:
    """Return a line: accuracy, mean log likelihood of the labels, and the counts."""
    counts = np.bincount(labels, minlength=log_p.shape[1])
    likelihood = float(log_p[np.arange(len(labels)), labels].mean(dtype=np.float64))
    return (
        f"{name:24} accuracy {(labels == truth).mean():.3%}  log likelihood {likelihood:.5f} an image  "
        f"counts {counts.min()} to {counts.max()}, {int(np.abs(counts - len(labels) / len(counts)).sum())} off in all"
    )


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=112_000)
    parser.add_argument("--classes", type=int, default=340)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    target = generated(given.images, given.classes, given.seed)
    truth = target.labels
    assert truth is not None
    start = time.perf_counter()
    refiner = BalancedAssignment().fit(target=target)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    log_p = target.log_probabilities().astype(np.float32)
    print(f"{given.images:,} x {given.classes}, seed {given.seed}, with known uniform truth")
    print(report("plain argmax", target.predicted(), log_p, truth), flush=True)
    print(report("exact assignment", refiner.labels_, log_p, truth))
    print(f"{'':24} {seconds:.1f} s, peak memory {peak:.2f} GiB, at most {refiner.gap_:.1e} nats from the best")
    start = time.perf_counter()
    labels = coefficient_search(np.exp(log_p))
    print(report("coefficient search", labels, log_p, truth))
    print(f"{'':24} {time.perf_counter() - start:.1f} s, {len(LOWERED)} rounds of 3,000 steps", flush=True)
    print(report("  completed", completed(labels, log_p), log_p, truth))


if __name__ == "__main__":
    main()
