"""Mistakes that show without torch end before it is imported, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from picture_folders import write_classes, write_flat
from recorded_runs import write_run

HEAVY = ("torch", "timm", "lightning", "torchvision")
# Runs each command in one process, in which a mistake may have imported nothing heavy.
CODE = f"""
import contextlib, io, json, sys
from etude.cli.main import main
for words in json.load(sys.stdin):
    sys.argv, text, code = ["etude", *words], io.StringIO(), 0
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, text.getvalue(), sorted(set({HEAVY}) & set(sys.modules))]))
"""

# Command, and a word of the sentence that it ends in; ``fit train`` goes before an option.
MISTAKES = [
    ("fit nowhere", "nowhere"),
    ("fit empty", "empty"),
    ("fit one-class", "one class"),
    ("fit t.csv --image-column pictures", "pictures"),
    ("fit t.csv --label-column kind", "kind"),
    ("fit t.csv --weight-column heavy", "heavy"),
    ("fit t.csv --image-root nowhere", "nowhere"),
    ("--recipe defualt", "'default'"),
    ("--recipe none.toml", "none.toml"),
    ("--set lr=1", "'train.lr'"),
    ("--set train.lr=fast", "train.lr"),
    ("--epochs 0", "train.epochs"),
    ("--lr fast", "--lr"),
    ("--set augment.policy=photo", "'photos'"),
    ("--set timeline.preset=defualt", "'default'"),
    ("--set model.weights=nowhere.safetensors", "nowhere.safetensors"),
    ("--recipe quick --set train.find_lr=true", "learning rate"),
    ("--out file", "file"),
    ("--out full", "not empty"),
    ("--out file/run", "file/run"),
    ("--resume --out full", "no run"),
    ("--resume", "--resume"),
    ("--test nowhere", "nowhere"),
    ("--valid nowhere", "nowhere"),
    ("--valid other-classes", "zebra"),
    ("--unlabeled nowhere", "nowhere"),
    ("--teacher nowhere", "nowhere"),
    ("--recipe distill", "--teacher"),
    ("--recipe consistency", "--unlabeled"),
    ("--budget soon", "--budget"),
    ("--folds 1", "--folds"),
    ("--folds 3 --valid train", "--valid"),
    ("--sample half", "--sample"),
    ("--seed -1", "--seed"),
    ("--tag two,words", "tag"),
    ("--mlflow nowhere", "nowhere"),
    ("--test test --sample-submission nowhere.csv", "nowhere.csv"),
    ("--test test --positive zebra", "zebra"),
    ("lr-find nowhere", "nowhere"),
    ("lr-find train --recipe quick", "learning rate"),
    ("lr-find train --plot x.txt", "x.txt"),
    ("doctor nowhere", "nowhere"),
    ("doctor --recipe defualt", "'default'"),
    ("doctor train --set lr=1", "'train.lr'"),
    ("doctor nowhere --data", "nowhere"),
    ("doctor --seed -1", "seed"),
    ("ablate nowhere", "nowhere"),
    ("ablate train --tricks mixupp", "'mixup'"),
    ("ablate train --mode boht", "'both'"),
    ("ablate train --metric acuracy", "'accuracy'"),
    ("ablate train --seeds 1", "--seeds"),
    ("ablate train --budget soon", "--budget"),
    ("demo --recipe defualt", "'default'"),
    ("predict nowhere test --out x.csv", "nowhere"),
    ("predict full test --out x.csv", "run.json"),
    ("predict run nowhere --out x.csv", "nowhere"),
    ("predict run", "images"),
    ("predict run test --top 0", "--top"),
    ("predict run test --probabilities", "--out"),
    ("predict run test --sheet x.txt", "x.txt"),
    ("evaluate nowhere train", "nowhere"),
    ("evaluate run train --out x.csv", ".html"),
    ("evaluate run train --tta 0", "--tta"),
    ("refine nowhere --out x.csv", "nowhere"),
    ("blend nowhere other --out x.csv", "nowhere"),
    ("settings zzz", "zzz"),
    ("settings .", "'.'"),
    ("timeline defualt", "'default'"),
    ("journal show nowhere", "nowhere"),
    ("journal watch nowhere", "nowhere"),
    ("recipe show quik", "'quick'"),
]


def test_a_mistake_that_shows_without_torch_ends_before_it_is_imported(tmp_path: Path):
    write_classes(tmp_path / "train", count=2)
    write_classes(tmp_path / "one-class", ["only"])
    write_classes(tmp_path / "other-classes", ["round", "zebra"])
    write_flat(tmp_path / "test")
    write_run(tmp_path / "run")
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    for name in ("file", "full/precious.txt"):
        (tmp_path / name).write_text("keep me")
    (tmp_path / "t.csv").write_text("image,label\ntrain/round/000.png,x\ntrain/striped/000.png,y\n")
    commands = [words if not words.startswith("-") else f"fit train {words}" for words, _ in MISTAKES]
    ended = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps([words.split() for words in commands]), capture_output=True, text=True, check=True,
        cwd=tmp_path, env={**os.environ, "ETUDE_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    odd = {
        command: (code, text, heavy)
        for command, (_, word), (code, text, heavy) in zip(commands, MISTAKES, found, strict=True)
        if code != 2 or word not in text or text.count("\n") != 1 or heavy
    }
    assert odd == {}
