"""Lee's pseudo-labels on MNIST-5k: his setting remade, supervised against pseudo-labelled, by number of labels.

    make bench-lee
    make bench-lee ARGS='--seeds 2 --labels 100 --steps 300'

After Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method": one hidden layer of rectified
units with dropout, sigmoid outputs with a cross-entropy for each class, batches of 32 labelled and 256 unlabelled
images, the class of the largest output as pseudo-label, found anew at every step, and the weight α(t) of their loss: 0
until t1, rising to 3 at t2 (`etude.functional.pseudo.lee_weight`). Both arms share weights at the start, labelled
batches and number of steps; the first has no unlabelled images.

Other than his: 4,000 training digits, of which all but the labelled ones are unlabelled, and 1,000 to test, not 60,000
and 10,000; Adam and a rate that falls to nothing, so that a run is over in seconds; t1 and t2 as shares of the run. The
labelled images are drawn by the seed, as many of each class; the test images are always the same, and nothing was
chosen by them. No augmentation, no validation, the last weights count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from common import machine, spread
from digit_arrays import DigitArrays, digit_arrays, labelled_subset
from etude.core.seeds import derive_seed, rng_for
from etude.functional.mix import one_hot
from etude.functional.pseudo import lee_weight

LABELLED, UNLABELLED = 32, 256  # images of a batch, as in the paper
T1, T2, FINAL = 0.1, 0.6, 3.0  # his epochs 100 and 600 as shares of a run of 1,000
RATE = 1e-3
ALLOWED = 0.3  # points that a seed may lose


def network(width: int) -> nn.Sequential:
    """Return one hidden layer on 784 pixels."""
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(784, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 10))


def classes_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over images of the cross-entropies of ten sigmoid outputs."""
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def trained(
    known: Tensor, targets: Tensor, unknown: Tensor, alpha: Callable[[int], float], steps: int, width: int, seed: int
) -> nn.Module:
    """Train a network; ``alpha`` is the weight of the loss on the ``unknown`` images at a step."""
    torch.manual_seed(derive_seed(seed, "lee/weights"))
    model = network(width)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    draws, more = rng_for(seed, "lee/labelled"), rng_for(seed, "lee/unlabelled")
    for step in range(steps):
        batch = torch.from_numpy(draws.integers(len(known), size=LABELLED))
        loss = classes_loss(model(known[batch]), targets[batch])
        if (weight := alpha(step)) > 0.0:
            images = unknown[torch.from_numpy(more.integers(len(unknown), size=UNLABELLED))]
            with torch.no_grad():
                pseudo = one_hot(model.eval()(images).argmax(1), 10)
            loss = loss + weight * classes_loss(model.train()(images), pseudo)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def errors(digits: DigitArrays, count: int, steps: int, width: int, seed: int) -> tuple[float, float]:
    """Return test errors in percent, supervised and with pseudo-labels."""
    images, test = (
        torch.from_numpy(each.reshape(-1, 784) / np.float32(255)) for each in (digits.images, digits.test_images)
    )
    own = labelled_subset(digits.labels, count, seed)
    rest = np.setdiff1d(np.arange(len(images)), own)
    targets = one_hot(torch.from_numpy(digits.labels[own]), 10)
    found = []
    for alpha in (lambda step: 0.0, lambda step: lee_weight(step / steps, T1, T2, FINAL)):
        model = trained(images[own], targets, images[rest], alpha, steps, width, seed)
        with torch.no_grad():
            wrong = model(test).argmax(1).numpy() != digits.test_labels
        found.append(100 * float(wrong.mean()))
    return found[0], found[1]


def main() -> None:
    """Print errors by number of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 300, 600, 1000])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=500, help="hidden units")
    given = parser.parse_args()
    start, digits = time.perf_counter(), digit_arrays()
    print(f"MNIST-5k, 1,000 test digits, test error in %, mean ± sd of {given.seeds} seeds, {machine()}")
    print(f"{given.width} hidden units, {given.steps} steps, α 0 to {FINAL:g} from {T1:.0%} to {T2:.0%} of them\n")
    print(
        f"{'labels':>6}  {'supervised':>14}  {'pseudo-labels':>14}  {'relative gain':>13}  seeds worse by > {ALLOWED}"
    )
    for count in given.labels:
        plain, pseudo = zip(
            *(errors(digits, count, given.steps, given.width, seed) for seed in range(given.seeds)), strict=True
        )
        gain = 1 - statistics.mean(pseudo) / statistics.mean(plain)
        worse = sum(after > before + ALLOWED for before, after in zip(plain, pseudo, strict=True))
        print(f"{count:6}  {spread(plain, '.2f'):>14}  {spread(pseudo, '.2f'):>14}  {gain:13.1%}  {worse}", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
