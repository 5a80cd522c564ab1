"""What ten views of an image cost against ten plain passes: EfficientNet-Lite0 at 224 px, the small network at 28 px.

    make bench-tta-cost                                      # about 2 minutes on two cores
    make bench-tta-cost ARGS='--views 128 --repeats 5'

A plain pass is `etude.inference.predict` with one view: images are read from memory at the network's own size, which
costs it the least, and go through the network in the numeric mode that etude takes here. Views are those of
`many_views`, symmetries, shifts, zooms and random draws. Both are timed in turns; a ratio is that of one turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import etude.compat  # noqa: F401  (before timm)

import numpy as np

from common import machine
from etude.core.context import Context
from etude.inference.predict import predict
from etude.inference.views import IDENTITY, ViewLike, many_views
from etude.models.backbones import Backbone, build_backbone
from etude.models.classifier import Classifier, ModelCard, Preprocessing
from etude.models.device import best_device, choose_precision, keep_large_blocks
from etude.models.optimize import fold_batchnorm

GOAL = 1.05


class Case(NamedTuple):
    """A network, and the images it sees."""

    name: str
    backbone: str
    size: int
    channels: int
    policy: str
    images: int


CASES = (
    Case("EfficientNet-Lite0, photos", "tf_efficientnet_lite0", 224, 3, "photos", 96),
    Case("small network, digits", "tiny", 28, 1, "digits", 1600),
)


def passes(case: Case, views: int) -> tuple[Callable[[Sequence[ViewLike]], float], tuple[ViewLike, ...]]:
    """Return what times one prediction of all images through views, and the views."""
    backbone: Backbone = build_backbone(case.backbone, "none", case.channels)
    fold_batchnorm(backbone.module, backbone.probe())
    model = Classifier(backbone.module, backbone.num_features, 10)
    pixels = np.random.default_rng(0).integers(
        0, 256, (case.images, case.size, case.size, case.channels), dtype=np.uint8
    )
    shape = Preprocessing(
        case.size, case.size, "squash", case.channels, backbone.in_channels, backbone.mean, backbone.std
    )
    precision = choose_precision("auto", best_device())
    card = ModelCard(case.backbone, tuple("0123456789"), shape, precision, tta=1, policy=case.policy, folded=True)
    rows, ids = np.arange(case.images), [str(row) for row in range(case.images)]

    def timed(through: Sequence[ViewLike]) -> float:
        start = time.perf_counter()
        predict(model, card, lambda part, size: pixels[part], rows, ids, context=Context(), views=through)
        return time.perf_counter() - start

    return timed, many_views(case.policy, views)


def compare(case: Case, views: int, repeats: int) -> None:
    """Print seconds of a plain pass and of all views, and their ratio per view."""
    timed, chosen = passes(case, views)
    timed([IDENTITY])  # from now on all is warm
    timed(chosen[:2])
    pairs: list[tuple[float, float]] = []
    for _ in range(repeats):
        plain = [timed([IDENTITY])]
        many = timed(chosen)
        plain.append(timed([IDENTITY]))  # before and after: a machine that slows down slows both
        pairs.append((statistics.mean(plain), many))
    ratios = sorted(many / (len(chosen) * plain) for plain, many in pairs)
    plain, many = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    print(f"{case.name}, {case.size} px, {case.images:,} images, n={repeats}: a plain pass {plain:.2f} s,", end=" ")
    print(f"{len(chosen)} views {many:.2f} s; a view costs {ratio:.3f} plain passes", end=" ")
    print(f"({ratios[0]:.3f}-{ratios[-1]:.3f}); at most {GOAL}: {'holds' if ratio <= GOAL else 'MISSED'}", flush=True)


def main() -> None:
    """Print a line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    keep_large_blocks()
    print(machine())
    for case in CASES:
        compare(case, given.views, given.repeats)


if __name__ == "__main__":
    main()
