"""Whether the likely mode, which training takes without a race, is the fastest: every mode timed in turns.

    make bench-train-modes
    make bench-train-modes ARGS='--networks resnet18 --sizes 128 --repeats 7'
    make bench-train-modes ARGS='--networks tf_efficientnet_lite0 --sizes 128 --compile'

Every mode is timed at the whole batch, and the modes take turns, so that a slow minute of the machine meets all of
them; medians count. ``--compile`` also measures ``torch.compile`` in the likely mode, its compilation by itself.
Networks are built as fine-tuning builds them: tf_efficientnet_lite0 with its pretrained weights, folded and partly
frozen, the others from random weights.
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
    import torch

    from etude.models.backbones import Backbone
    from etude.models.modes import Mode

NETWORKS = ("tf_efficientnet_lite0", "resnet18", "mobilenetv3_large_100", "convnext_atto")
SIZES = (128, 224)
WITHIN = 0.05


@dataclass(frozen=True, slots=True)
class Compared:
    """One network at one size.

    Args:
        seconds: of each timed step, by mode.
        likely: the mode that training takes.
        compiled: seconds of compilation, and of a step afterwards; None without it.
    """

    network: str
    size: int
    seconds: dict[Mode, list[float]]
    likely: Mode
    compiled: tuple[float, float] | None

    @property
    def medians(self) -> dict[Mode, float]:
        """Seconds of a step, by mode, the fastest first."""
        return dict(
            sorted(((m, statistics.median(all_)) for m, all_ in self.seconds.items()), key=lambda pair: pair[1])
        )

    @property
    def ratio(self) -> float:
        """Speed of the likely mode as a share of the best mode's."""
        medians = self.medians
        return min(medians.values()) / medians[self.likely]


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
    """Time every mode, in turns."""
    from etude.models.device import best_device
    from etude.models.modes import candidate_modes, likely_mode

    device = best_device()
    backbone = network(name)
    module = backbone.module.to(device).train()
    modes = candidate_modes(device)
    seconds: dict[Mode, list[float]] = {mode: [] for mode in modes}
    for turn in range(repeats):
        for mode in modes[:: -1 if turn % 2 else 1]:  # so that a drift of the machine cancels
            seconds[mode].append(step_seconds(module, backbone.in_channels, size, batch_size, mode))
    likely = likely_mode(device)
    found = compilation(backbone, size, batch_size, likely, repeats) if compiled else None
    return Compared(name, size, seconds, likely, found)


def step_seconds(module: torch.nn.Module, channels: int, size: int, count: int, mode: Mode) -> float:
    """Return the seconds of a training step, the second of two."""
    import torch

    from etude.models.device import best_device
    from etude.models.features import autocast
    from etude.models.modes import applied, lay_out, lay_out_images

    device = best_device()
    images = lay_out_images(torch.randn(count, channels, size, size, device=device), mode)
    lay_out(module, mode)
    start = 0.0
    with applied(mode):
        for _ in range(2):
            start = time.perf_counter()
            with autocast(device, mode.precision):
                loss = module(images).float().square().mean()
            loss.backward()
            loss.item()  # waits for the device
            module.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def compilation(backbone: Backbone, size: int, batch_size: int, mode: Mode, repeats: int) -> tuple[float, float]:
    """Return seconds until the first compiled step is done, and the median of a step afterwards."""
    import torch

    module = torch.compile(backbone.module)
    assert isinstance(module, torch.nn.Module)
    start = time.perf_counter()
    first = step_seconds(module, backbone.in_channels, size, batch_size, mode)
    compiling = time.perf_counter() - start - first
    times = [step_seconds(module, backbone.in_channels, size, batch_size, mode) for _ in range(repeats)]
    return compiling, statistics.median(times)


def tell(found: Sequence[Compared], batch_size: int) -> None:
    """Print every mode's figures, and where the likely mode stands."""
    for one in found:
        count = len(one.seconds[one.likely])
        print(f"\n{one.network}, {one.size} px, batch {batch_size}, n={count}: training images/s")
        for mode, median in one.medians.items():
            spread = f"{batch_size / max(one.seconds[mode]):7.1f} to {batch_size / min(one.seconds[mode]):.1f}"
            taken = "  taken" if mode == one.likely else ""
            print(f"  {mode.in_words():36}{batch_size / median:8.1f} ({spread.strip()}){taken}")
        if one.compiled is not None:
            compiling, step = one.compiled
            print(
                f"  torch.compile of {one.likely.in_words()}: {batch_size / step:.1f} images/s, "
                f"x{one.medians[one.likely] / step:.2f}, after {compiling:.0f} s of compilation"
            )
    print(f"\n{'network':26}{'size':>6}{'taken/best':>13}  verdict")
    for one in found:
        print(f"{one.network:26}{one.size:6}{one.ratio:13.1%}  {'within' if one.ratio >= 1 - WITHIN else 'MISSED'}")
    met = sum(one.ratio >= 1 - WITHIN for one in found)
    print(f"the mode taken within {WITHIN:.0%} of the best: {met} of {len(found)}")


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
            print(f"{name} at {size} px done", flush=True)
    print(machine())
    tell(found, given.batch_size)


if __name__ == "__main__":
    main()
