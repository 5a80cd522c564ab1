"""The journal over thousands of runs: seconds and memory of `etude journal list` and `etude journal render`.

    make bench-journal                          # 5,000 runs
    make bench-journal ARGS='--runs 500'

Writes finished runs of realistic records (every setting resolved, 7 stages, 50 classes), then calls the command line
as a user does: `list` without an index, with one, and after 10 runs have ended since; then `render`. Each call is a
process of its own; its memory is the most it had resident. Ends with code 1 when a limit does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common import machine, spread

LIMITS = {"list": 0.5, "render": 20.0}  # seconds
MEMORY = 500e6  # bytes
FIRST = "no index yet"  # reads every record, once
FOR_SCRIPTS = "all as JSON"  # 5,000 lines, where a person sees 30


def template(folder: Path) -> dict[str, Any]:
    """Return the record of a finished run as `etude fit` writes it, of typical length."""
    from etude.journal.record import RunRecord, read_run
    from etude.recipe import flat, load_recipe

    settings = flat(load_recipe("default"))
    record = RunRecord.open(
        folder, command=["etude", "fit", "data/birds"], recipe="default", settings=settings,
        changed={"train.epochs": 3.0}, seed=0,
    )  # fmt: skip
    record.set("plan", {"expected_seconds": {}, "resolved": settings, "device": "CPU"})
    classes = {f"class {number}": 100 for number in range(50)}
    data = {"described": "class folders, 5,000 images in 50 classes", "fingerprint": "0b1af131cc60740120456999"}
    record.set("data", {**data, "images": 5000, "classes": classes, "folds": [{"train": 4000, "valid": 1000}]})
    for name in ("scan", "plan", "store", "features", "head", "fine-tune", "TTA"):
        with record.stage(name) as stage:
            stage.score("accuracy", 0.9)
            stage.score("log_loss", 0.3)
    record.set("result", {"accuracy": 0.9, "log_loss": 0.3, "validation_images": 1000, "models": ["."]})
    record.close("finished")
    return read_run(folder)


def write_runs(runs: Path, first: int, count: int, record: dict[str, Any]) -> None:
    """Write that many run folders, each with a record of its own and the files that a run leaves beside it."""
    draw = random.Random(first)
    for number in range(first, first + count):
        folder = runs / f"birds-{number}"
        (folder / "tb").mkdir(parents=True)
        started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=30 * number)
        result = {**record["result"], "accuracy": draw.uniform(0.7, 0.99)}
        own = {
            "id": f"{number:010x}",
            "started": started.isoformat(timespec="seconds"),
            "result": result,
            "seed": number,
        }
        tags = {"tags": draw.sample(["baseline", "mixup", "long", "paper"], 1)}
        (folder / "run.json").write_text(json.dumps({**record, **own, **tags}, indent=2))
        for name in ("history.csv", "model.json", "report.html"):
            (folder / name).write_text("x")


# A process that is forked counts the memory of its parent as its own, so the parent must be a small one.
_LAUNCH = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


def timed(*words: str) -> tuple[float, int]:
    """Run `etude WORDS`; return its seconds and the bytes of memory that it had at most."""
    command = [sys.executable, "-S", "-c", _LAUNCH, sys.executable, "-m", "etude", *words]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(memory)


def main() -> None:
    """Measure, print a table, and end with 1 when a limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        record = template(Path(folder) / "template")
        write_runs(runs, 0, asked.runs, record)
        place = ("--runs", str(runs))
        print(f"{asked.runs:,} runs; {machine()}")
        rows = [("list", FIRST, [timed("journal", "list", *place)])]
        rows.append(("list", "nothing new", [timed("journal", "list", *place) for _ in range(asked.repeats)]))
        rows.append(("list", FOR_SCRIPTS, [timed("journal", "list", "--json", *place) for _ in range(asked.repeats)]))
        write_runs(runs, asked.runs, 10, record)
        rows.append(("list", "10 runs have ended", [timed("journal", "list", *place)]))
        rows.append(("render", "nothing new", [timed("journal", "render", *place)]))
    held = True
    for command, told, figures in rows:
        seconds, memory = [seconds for seconds, _ in figures], max(memory for _, memory in figures)
        fits = memory < MEMORY and (statistics.mean(seconds) < LIMITS[command] or told in (FIRST, FOR_SCRIPTS))
        held &= fits
        figure = f"{spread(seconds, '.2f')} s, n={len(figures)}"
        print(f"{command:<8}{told:<20}{figure:<24}{memory / 1e6:5.0f} MB  {'' if fits else 'too much'}".rstrip())
    sys.exit(not held)


if __name__ == "__main__":
    main()
