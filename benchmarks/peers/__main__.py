"""Other tools on the portfolio's tasks, as their own documentation advises, each in its own environment.

    make bench-peers                                           # every peer, and etude at 1, 5 and 15 minutes
    make bench-peers ARGS='--list'                             # install them and list what came of it; takes an hour
    make bench-peers ARGS='--tasks trial --seeds 1'            # every peer once, on thirty digits
    make bench-peers ARGS='--tasks digits-8x8 icons --seeds 3 --methods 1m 5m fastai timm --keep peers.json'

Further options are those of `make bench-portfolio`, which judges and prints. A peer is one script here, installed when
it is first asked for. All but Ultralytics start from the same EfficientNet-Lite0 weights. A peer that cannot be
installed, or that ends with an error, is listed with the last line of it. All take about 10 GB in ~/.cache/etude-peers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.environments import HOME, PEERS, environment
from portfolio.__main__ import main
from portfolio.methods import PEER_METHODS

EVERY = [name for name in PEER_METHODS if not name.endswith("30m")]
SMALL = ["digits-8x8", "mnist-1000", "cells", "clip-art", "icons"]


def listed(names: Iterable[str]) -> None:
    """Print what came of installing these peers."""
    print("\n| peer | installed |\n|---|---|")
    for name in names:
        made = environment(name)
        print(f"| {name} | {made.error or PEERS[name][0].partition('==')[0] + ' ' + made.version} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only install the peers, and list them")
    given, others = parser.parse_known_args()
    if not given.list:
        main(["--tasks", *SMALL, "--methods", "1m", "5m", "15m", *EVERY, *others])
    listed(name for name in PEERS if given.list or (HOME / name).exists())
