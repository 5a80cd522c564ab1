"""Golden runs: what a change of the code, not of behaviour, must leave byte for byte as it was.

make bench-golden ARGS='--write /tmp/golden.json'      # before the change
make bench-golden ARGS='--against /tmp/golden.json'    # after it: ends with 1 where a digest differs

MNIST-5k: `quick`, `default` shortened, the same interrupted by SIGKILL and resumed, `pseudo-label`, and refine
on `default`. ELPV, split by seed 0 and rule "half": `quick`, and `default` shortened at 96 px. One
thread each, with precision and memory format fixed, since both are otherwise measured on the machine.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common import machine
from elpv import write_split
from etude.core.context import Silent
from etude.core.predictions import Predictions
from etude.data.digits import write_digits

FIXED = ("train.threads=1", "train.precision=fp32", "train.memory_format=contiguous")
SHORT = ("train.epochs=2", "timeline.final_size=28")
CELLS = ("train.epochs=1", "timeline.final_size=96", "model.feature_size=96", "augment.policy=symmetric")
COLUMNS = ("--label-column", "label", "--weight-column", "weight")


def start(words: list[str], settings: tuple[str, ...], cache: Path) -> subprocess.Popen[bytes]:
    """Start etude with one thread."""
    sets = [word for setting in settings for word in ("--set", setting)]
    environment = {**os.environ, "ETUDE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "etude", *words, *sets], env=environment)


def run(words: list[str], settings: tuple[str, ...], cache: Path) -> None:
    """Run etude to its end."""
    if code := start(words, settings, cache).wait():
        sys.exit(f"etude {' '.join(words)} ended with code {code}")


def kill_and_resume(words: list[str], settings: tuple[str, ...], out: Path, cache: Path) -> None:
    """Kill a run once it has a checkpoint, and resume it."""
    process = start(words, settings, cache)
    while process.poll() is None and not [*(out / "checkpoints").rglob("*")]:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run([*words, "--resume"], settings, cache)


def digest(folder: Path) -> dict[str, str]:
    """Return a digest of everything that a run's numbers decide, and the validation accuracy."""
    found: dict[str, str] = {}
    for file in ("valid.npz", "test.npz"):
        if (folder / file).is_file():
            one = Predictions.load(folder / file)
            order = np.argsort([Path(name).name for name in one.ids])  # temporary folders differ by their names
            found[file] = sha(np.ascontiguousarray(one.logits[:, order]).tobytes())
            if one.labels is not None:
                found["accuracy"] = f"{(one.predicted() == one.labels).mean():.4f}"
    if (folder / "model.safetensors").is_file():
        found["model"] = sha((folder / "model.safetensors").read_bytes())
    return found


def sha(data: bytes) -> str:
    """Return the beginning of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def golden(folder: Path) -> dict[str, dict[str, str]]:
    """Make every golden run below ``folder``; return the digests by name."""
    digits, cache = write_digits(folder / "mnist-5k", Silent()), folder / "cache"
    mnist = ["fit", str(digits.train), "--test", str(digits.test), "--quiet"]
    cells, test, _ = write_split(folder, 0, "half")
    elpv = ["fit", str(cells), "--test", str(test), *COLUMNS, "--quiet"]
    every_second = (*FIXED, *SHORT, "train.checkpoint_every=1s", 'stages=["finetune"]')
    short = (*FIXED, *SHORT, "predict.train_features=always")
    runs = {name: folder / name for name in ("quick", "default", "whole", "resumed", "pseudo", "elpv-quick", "elpv")}
    run([*mnist, "--recipe", "quick", "--out", str(runs["quick"])], FIXED, cache)
    run([*mnist, "--out", str(runs["default"])], short, cache)
    run([*mnist, "--out", str(runs["whole"])], every_second, cache)
    kill_and_resume([*mnist, "--out", str(runs["resumed"])], every_second, runs["resumed"], cache)
    few = ["--sample", "400", "--recipe", "pseudo-label", "--out", str(runs["pseudo"])]
    run([*mnist, *few], (*FIXED, "train.epochs=4"), cache)
    run([*elpv, "--recipe", "quick", "--out", str(runs["elpv-quick"])], (*FIXED, "model.feature_size=96"), cache)
    run([*elpv, "--out", str(runs["elpv"])], (*FIXED, *CELLS, "predict.train_features=always"), cache)
    found = {name: digest(out) for name, out in runs.items()}
    for name in ("default", "elpv"):
        refined = folder / f"{name}.csv"
        run(["refine", str(runs[name]), "--prior", "estimate", "--out", str(refined), "--quiet"], (), cache)
        with refined.open(newline="") as file:
            rows = sorted([Path(row[0]).name, *row[1:]] for row in csv.reader(file))
        found[f"refine {name}"] = {"csv": sha(json.dumps(rows).encode())}
    found["resumed equals whole"] = {"model": str(found["resumed"]["model"] == found["whole"]["model"])}
    return found


def main() -> None:
    """Print every digest, and compare with an earlier file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a JSON file for the digests")
    parser.add_argument("--against", type=Path, help="an earlier file to compare with")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = golden(Path(name))
    before = json.loads(given.against.read_text()) if given.against else found
    for name, digests in found.items():
        for part, value in digests.items():
            same = "" if before.get(name, {}).get(part) == value else f"   was {before.get(name, {}).get(part)}"
            print(f"{name:22} {part:10} {value}{same}")
    print(machine())
    if given.write:
        given.write.write_text(json.dumps(found, indent=1))
    sys.exit(before != found)


if __name__ == "__main__":
    main()
