"""What each measure buys when EfficientNet-Lite0 is fine-tuned on a CPU: training images a second, step by step.

    make bench-cpu-training
    make bench-cpu-training ARGS='--size 160 --repeats 7'

Every variant adds one measure to the one before and runs in a process of its own (the heap settings last for a
process); the variants take turns, so that a slow minute of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

VARIANTS = (
    "timm, float32, statistics kept",
    "bfloat16 autocast",
    "batch norm folded",
    "large blocks kept",
    "depthwise gradients in mixed modes",
    "depthwise filters frozen",
    "first 35% of the layers frozen",
)
STEPS = 4


def measure(measures: int, size: int, batch_size: int) -> float:
    """Return training images a second with the first ``measures`` measures applied."""
    import torch

    from etude.models.backbones import build_backbone
    from etude.models.device import keep_large_blocks
    from etude.models.features import autocast
    from etude.models.optimize import fold_batchnorm, use_fast_depthwise
    from etude.training.optimizer import freeze_depthwise, freeze_first_layers

    network = build_backbone("tf_efficientnet_lite0", "bundled").module
    steps = (
        lambda: fold_batchnorm(network, torch.zeros(1, 3, 64, 64)),
        keep_large_blocks,
        lambda: use_fast_depthwise(network),
        lambda: freeze_depthwise(network),
        lambda: freeze_first_layers(network, 0.35),
    )
    for apply in steps[: max(0, measures - 1)]:
        apply()
    network.to(memory_format=torch.channels_last).eval()
    precision = "bf16" if measures else "fp32"
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    start = 0.0
    for step in range(STEPS + 2):
        if step == 2:
            start = time.perf_counter()
        with autocast(images.device, precision):
            loss = network(images).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return STEPS * batch_size / (time.perf_counter() - start)


def main() -> None:
    """Print images a second of every variant, and the ratio to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variant", type=int, help="measure one variant in this process and print its figure")
    given = parser.parse_args()
    if given.variant is not None:
        print(measure(given.variant, given.size, given.batch_size))
        return
    from common import machine

    words = [sys.executable, __file__, "--size", str(given.size), "--batch-size", str(given.batch_size), "--variant"]
    found: list[list[float]] = [[] for _ in VARIANTS]
    for _ in range(given.repeats):
        for number, rates in enumerate(found):
            rates.append(
                float(subprocess.run([*words, str(number)], capture_output=True, text=True, check=True).stdout)
            )
    print(f"EfficientNet-Lite0, {given.size} px, batch {given.batch_size}, n={given.repeats}, {machine()}")
    for name, rates in zip(VARIANTS, found, strict=True):
        ratio = statistics.median(one / base for one, base in zip(rates, found[0], strict=True))
        print(f"{name:38} {statistics.median(rates):6.1f} images/s ({min(rates):.1f}-{max(rates):.1f}), x{ratio:.2f}")


if __name__ == "__main__":
    main()
