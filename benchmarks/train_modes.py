"""Whether the probe finds the fastest mode: its choice beside an exhaustive timing of every mode, and what it costs.

    make bench-train-modes
    make bench-train-modes ARGS='--networks resnet18 --sizes 128 --repeats 7'
    make bench-train-modes ARGS='--networks tf_efficientnet_lite0 --sizes 128 --compile'

Every mode is timed at the whole batch, and the modes take turns, so that a slow minute of the machine meets all of
them; medians count. The probe works at a batch of its own choice and has no cache. ``--compile`` also measures
``torch.compile`` in the chosen mode, its compilation apart. Networks are built as fine-tuning builds them:
tf_efficientnet_lite0 with its pretrained weights, folded and partly frozen, the others from random weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etude.models.backbones import Backbone
    from etude.models.modes import Mode
    from etude.training.probe import ProbeResult

NETWORKS = ("tf_efficientnet_lite0", "resnet18", "mobilenetv3_large_100", "convnext_atto")
SIZES = (128, 224)
WITHIN, SECONDS = 0.05, 15.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One network at one size.

    Args:
        seconds: of each timed step, by mode.
        probes: results of the probe, one a repeat.
        compiled: seconds of compilation, and of a step afterwards; None without it.
    """

    network: str
    size: int
    seconds: dict[Mode, list[float]]
    probes: list[ProbeResult]
    compiled: tuple[float, float] | None

    @property
    def medians(self) -> dict[Mode, float]:
        """Seconds of a step, by mode, the fastest first."""
        return dict(
            sorted(((m, statistics.median(all_)) for m, all_ in self.seconds.items()), key=lambda pair: pair[1])
        )

    @property
    def ratios(self) -> list[float]:
        """Speed of each probe's choice as a share of the best mode's."""
        medians = self.medians
        return [min(medians.values()) / medians[probe.mode] for probe in self.probes]


def network(name: str) -> Backbone:
    """Return the backbone as fine-tuning builds it here."""
    from etude.models.device import best_device, choose_precision
    from etude.recipe import ImageFacts, load_recipe, resolve
    from etude.study.run.frozen import trainable_backbone

    weights = "auto" if name == NETWORKS[0] else "none"
    recipe = load_recipe("default", [f"model.backbone={name}", f"model.weights={weights}"])
    return trainable_backbone(
        resolve(recipe, ImageFacts(224, 3, count=1_000)), 3, choose_precision("auto", best_device())
    )


def compare(name: str, size: int, batch_size: int, repeats: int, *, compiled: bool) -> Compared:
    """Run the probe and time every mode, in turns."""
    from etude.models.device import best_device
    from etude.models.modes import AskedMode, Mode
    from etude.training.probe import Steps, candidate_formats, candidate_threads, probe_modes

    device, asked = best_device(), AskedMode()
    backbone = network(name)
    module = backbone.module.to(device)
    steps = Steps(module, size, backbone.in_channels, device, train=True, clock=time.perf_counter)
    modes = [
        Mode(precision, layout, threads)
        for precision, layout in candidate_formats(device, asked)
        for threads in candidate_threads(device, asked)
    ]
    seconds: dict[Mode, list[float]] = {mode: [] for mode in modes}
    probes: list[ProbeResult] = []
    for turn in range(repeats):
        probes.append(probe_modes(module, size, batch_size, backbone.in_channels, device))
        with steps.left_as_found():
            for mode in modes[:: -1 if turn % 2 else 1]:  # so that a drift of the machine cancels
                seconds[mode].append(steps.seconds(mode, batch_size))
    found = compilation(backbone, size, batch_size, probes[-1].mode, repeats) if compiled else None
    return Compared(name, size, seconds, probes, found)


def compilation(backbone: Backbone, size: int, batch_size: int, mode: Mode, repeats: int) -> tuple[float, float]:
    """Return seconds until the first compiled step is done, and the median of a step afterwards."""
    import torch

    from etude.models.device import best_device
    from etude.training.probe import Steps

    module = torch.compile(backbone.module)
    assert isinstance(module, torch.nn.Module)
    steps = Steps(module, size, backbone.in_channels, best_device(), train=True, clock=time.perf_counter)
    with steps.left_as_found():
        start = time.perf_counter()
        first = steps.seconds(mode, batch_size)
        compiling = time.perf_counter() - start - 2 * first
        return compiling, statistics.median(steps.seconds(mode, batch_size) for _ in range(repeats))


def tell(found: Sequence[Compared], batch_size: int) -> None:
    """Print every mode's figures, and what became of the probe's choices."""
    for one in found:
        print(f"\n{one.network}, {one.size} px, batch {batch_size}, n={len(one.probes)}: training images/s")
        chosen = [probe.mode for probe in one.probes]
        for mode, median in one.medians.items():
            spread = f"{batch_size / max(one.seconds[mode]):7.1f} to {batch_size / min(one.seconds[mode]):.1f}"
            times = f"  chosen {chosen.count(mode)} times" if mode in chosen else ""
            print(f"  {mode.in_words():36}{batch_size / median:8.1f} ({spread.strip()}){times}")
        if one.compiled is not None:
            compiling, step = one.compiled
            print(
                f"  torch.compile of {chosen[-1].in_words()}: {batch_size / step:.1f} images/s, "
                f"x{one.medians[chosen[-1]] / step:.2f}, after {compiling:.0f} s of compilation"
            )
    print(f"\n{'network':26}{'size':>6}{'chosen/best':>13}{'worst':>8}{'probe':>9}  verdict")
    met = 0
    for one in found:
        ratio, worst = statistics.median(one.ratios), min(one.ratios)
        cost = max(probe.seconds for probe in one.probes)
        good = ratio >= 1 - WITHIN and cost < SECONDS
        met += good
        verdict = "within" if good else "MISSED"
        print(f"{one.network:26}{one.size:6}{ratio:13.1%}{worst:8.1%}{cost:7.1f} s  {verdict}")
    goal = f"choice within {WITHIN:.0%} of the best, median of the probes, and none above {SECONDS:.0f} s"
    print(f"{goal}: {met} of {len(found)}")


def main() -> None:
    """Compare, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too (needs a C++ compiler)")
    given = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it, before torch loads OpenMP
    from common import machine
    from etude.models.device import keep_large_blocks

    keep_large_blocks()
    found: list[Compared] = []
    for name in given.networks:
        for size in given.sizes:
            found.append(compare(name, size, given.batch_size, given.repeats, compiled=given.compile))
            print(f"{name} at {size} px done: {found[-1].probes[-1].in_words()}", flush=True)
    print(machine())
    tell(found, given.batch_size)


if __name__ == "__main__":
    main()
