"""Exact resume: `etude fit` on MNIST digits, killed at random moments of training and resumed until it ends.

make bench-resume
make bench-resume ARGS='--presets plateau,one-cycle --kills 8 --seed 1'
make bench-resume ARGS='--presets one-cycle --kills 20 --signal SIGINT'

Each preset is trained once without interruption and once with kills; the bytes of model.safetensors must be the same.
Two presets run side by side, a thread each: on a CPU the order of sums, and so the last bit, depends on the threads.
Lengths are in epochs, in five-minutes too: what a minute holds differs from run to run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common import machine
from etude.core.context import Silent
from etude.core.seeds import rng_for
from etude.data.digits import write_digits
from etude.journal.record import read_run
from etude.timeline import PRESETS
from etude.training.resume import ResumeFolder

EPOCHS = 20
SETTINGS = ('stages=["finetune"]', "train.checkpoint_every=1s")
PATIENCE = 300.0  # seconds that a process may take to begin training


@dataclass(slots=True)
class Tally:
    """What became of one preset.

    Args:
        kills: processes killed while they trained.
        steps: that the checkpoints held at the kills; 0 before the first checkpoint.
        whole_steps: of the uninterrupted run.
        equal: whether each run that was resumed to its end gave the model of the uninterrupted one.
    """

    kills: int = 0
    steps: list[int] = field(default_factory=list[int])
    whole_steps: int = 0
    equal: list[bool] = field(default_factory=list[bool])


class Run:
    """A run in a folder, started and resumed by processes of its own."""

    def __init__(self, folder: Path, preset: str, digits: Path, cache: Path, sent: signal.Signals) -> None:
        length = f"timeline.length={EPOCHS}ep" if preset == "five-minutes" else f"train.epochs={EPOCHS}"
        settings = [word for setting in (*SETTINGS, length) for word in ("--set", setting)]
        words = [str(digits), "--sample", "500", "--recipe", preset, *settings, "--quiet", "--out", str(folder)]
        self.folder, self.command = folder, [sys.executable, "-m", "etude", "fit", *words]
        self.environment = {**os.environ, "ETUDE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        self.sent, self.starts = sent, 0

    @property
    def model(self) -> bytes:
        """The trained network's file."""
        return (self.folder / "model.safetensors").read_bytes()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the run, or resume it."""
        again = [*self.command[:3], "resume", str(self.folder), "--quiet"]
        command = again if self.starts else self.command
        self.starts += 1
        # A shell starts what it runs in the background deaf to Ctrl-C, and children inherit that.
        listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL, preexec_fn=listening)

    def wait_for_training(self, process: subprocess.Popen[bytes]) -> None:
        """Return when the process trains, or has ended. TensorBoard begins a file whenever training begins."""
        until = time.monotonic() + PATIENCE
        while process.poll() is None and len(list(self.folder.glob("tb/events*"))) < self.starts:
            if time.monotonic() > until:
                process.kill()
                sys.exit(f"{' '.join(self.command)} did not begin to train within {PATIENCE:g} s")
            time.sleep(0.01)

    def finish(self) -> None:
        """Run to the end."""
        self.check(self.start())

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a process that nobody has killed."""
        if code := process.wait():
            sys.exit(f"{' '.join(self.command)} ended with code {code}")

    def killed(self, after: float) -> bool:
        """Start the run and kill it ``after`` seconds of training; return False when it came to its end before."""
        process = self.start()
        self.wait_for_training(process)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(self.sent)
        if process.wait() not in (-signal.SIGKILL, 130, 143):
            self.check(process)
        return read_run(self.folder)["state"] != "finished"


def try_preset(preset: str, kills: int, seed: int, folder: Path, digits: Path, sent: signal.Signals) -> Tally:
    """Return what becomes of ``kills`` kills of a preset's training, at moments spread evenly at random over it."""
    whole = Run(folder / f"{preset}-whole", preset, digits, folder / "cache", sent)
    whole.finish()
    stage = next(stage for stage in read_run(whole.folder)["stages"] if stage["name"] == "fine-tune")
    tally, rng = Tally(whole_steps=stage["notes"]["steps"]), rng_for(seed, f"kills/{preset}")
    while tally.kills < kills:  # a run may end before its last kill comes: then another one takes the kills left
        run = Run(folder / f"{preset}-{len(tally.equal)}", preset, digits, folder / "cache", sent)
        moments = np.sort(rng.uniform(0.0, stage["seconds"], kills - tally.kills))
        ended = False
        for pause in np.diff(moments, prepend=0.0):
            ended = not run.killed(float(pause))
            if ended:
                break
            tally.kills += 1
            saved = ResumeFolder(run.folder).checkpoint
            tally.steps.append(0 if saved is None else torch.load(saved, weights_only=True)["global_step"])
        if not ended:
            run.finish()
        tally.equal.append(run.model == whole.model)
    return tally


def main() -> None:
    """Print a line a preset and the totals; end with code 1 if any resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(PRESETS), help="names, separated by commas")
    parser.add_argument("--kills", type=int, default=4, help="of each preset")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--signal", choices=("SIGKILL", "SIGINT", "SIGTERM"), default="SIGKILL", help="that is sent")
    given = parser.parse_args()
    presets = given.presets.split(",")
    if unknown := set(presets) - set(PRESETS):
        parser.error(f"there is no preset {', '.join(sorted(unknown))}; there are {', '.join(PRESETS)}")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        digits = write_digits(folder / "digits", Silent()).train
        rest = (given.kills, given.seed, folder, digits, signal.Signals[given.signal])
        waiting = [pool.submit(try_preset, preset, *rest) for preset in presets]
        print(f"{'preset':14}{'kills':>6}  {'model equal':12}  last checkpoint at each kill", flush=True)
        tallies: list[Tally] = []
        for preset, future in zip(presets, waiting, strict=True):
            tallies.append(one := future.result())
            equal = "yes" if all(one.equal) else "NO"
            steps = ", ".join(map(str, one.steps))
            print(f"{preset:14}{one.kills:6}  {equal:12}  step {steps} of {one.whole_steps}", flush=True)
    kills, equal = sum(one.kills for one in tallies), [same for one in tallies for same in one.equal]
    print(
        f"\nMNIST, 400 digits to train on, {kills} kills, {sum(equal)} of {len(equal)} resumed runs equal bit for bit"
    )
    print(f"{time.perf_counter() - start:.0f} s, seed {given.seed}, {machine()}")
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
