"""`etude ablate` as a user runs it: five tricks, five seeds, on MNIST-5k; and what a resume of it costs.

    make bench-ablate                                               # 30 trainings of 8 epochs
    make bench-ablate ARGS='--tricks augment,mixup --seeds 3 --set train.epochs=2'
    make bench-ablate ARGS='--mode both --keep runs/ablate-mnist'   # goes on where it was stopped

The small network without stage 1, one view. Nothing but the training images is read; the table is the command's own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common import machine, run_etude
from etude.core.context import Silent
from etude.data.digits import write_digits

COMMON = ('--set=stages=["finetune"]', "--set=predict.tta=1")


def main() -> None:
    """Run the command, run it again on what is there, and print what both took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tricks", default="augment,ema,clip,warmup,mixup")
    parser.add_argument("--mode", default="leave-one-out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", dest="settings", help="train.epochs=8 by default")
    parser.add_argument("--keep", type=Path, help="folder of the ablation; by default a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as nowhere:
        folder = (given.keep or Path(nowhere)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        digits = write_digits(folder / "mnist-5k", Silent())
        settings = [f"--set={each}" for each in given.settings or ["train.epochs=8"]]
        words = ["ablate", str(digits.train), "--tricks", given.tricks, "--mode", given.mode]
        words += ["--seeds", str(given.seeds), *COMMON, *settings]
        out, cache = folder / "ablation", folder / "cache"
        first = run_etude([*words, *(["--resume"] if out.is_dir() else [])], out, cache)
        again = run_etude([*words, "--resume", "--quiet"], out, cache)
        found = json.loads((out / "ablation.json").read_text(encoding="utf-8"))
        runs = sum(len(arm["accuracy"]) for arm in found["arms"])
    print(f"\nMNIST-5k, {runs} runs, {machine()}")
    print(f"{first.seconds:.0f} s, at most {first.peak_bytes / 2**30:.2f} GiB; again with all runs there: ", end="")
    print(f"{again.seconds:.0f} s")


if __name__ == "__main__":
    main()
