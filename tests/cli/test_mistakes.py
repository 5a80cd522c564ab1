"""Every mistake a user can make ends in one sentence: no traceback, exit code 2, and nothing half done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from picture_folders import picture, write_classes

QUICK = ("--recipe", "quick", "--set", "model.feature_size=32")


def nothing(root: Path) -> list[object]:
    return [root / "nowhere"]


def empty(root: Path) -> list[object]:
    (root / "empty").mkdir()
    return [root / "empty"]


def one_class(root: Path) -> list[object]:
    return [write_classes(root / "train", ["only"])]


def one_image_a_class(root: Path) -> list[object]:
    return [write_classes(root / "train", count=1)]


def duplicate_ids(root: Path) -> list[object]:
    write_classes(root / "p")
    (root / "t.csv").write_text(
        "image,label\np/round/000.png,round\np/round/000.png,striped\np/striped/001.png,striped\n"
    )
    return [root / "t.csv"]


def all_missing(root: Path) -> list[object]:
    (root / "t.csv").write_text("image,label\na.png,x\nb.png,y\n")
    return [root / "t.csv"]


def out_not_empty(root: Path) -> list[object]:
    (root / "run").mkdir()
    (root / "run" / "precious.txt").write_text("keep me")
    return [write_classes(root / "train"), "--out", root / "run"]


def with_words(*words: object) -> Callable[[Path], list[object]]:
    return lambda root: [write_classes(root / "train"), *words]


MISTAKES: list[tuple[Callable[[Path], list[object]], str]] = [
    (nothing, "does not exist"),
    (empty, "empty"),
    (one_class, "one class"),
    (one_image_a_class, "no class has two distinct images"),
    (duplicate_ids, "000.png"),
    (all_missing, "none of the 2 images"),
    (out_not_empty, "not empty"),
    (with_words("--recipe", "defualt"), "Did you mean 'default'?"),
    (with_words("--recipe", "missing.toml"), "does not exist"),
    (with_words("--set", "train.lrr=1"), "Did you mean 'train.lr'?"),
    (with_words("--set", "train.lr=fast"), "train.lr received 'fast'"),
    (with_words("--set", "data.fit=stretch"), "data.fit"),
    (with_words("--set", "augment.policy=photo"), "Did you mean 'photos'?"),
    (with_words("--set", "model.backbone=resnet51"), "resnet5"),
    (with_words("--set", "model.weights=none.safetensors", "--set", "model.backbone=resnet18"), "does not exist"),
    (with_words("--folds", "1"), "2 or more"),
    (with_words("--folds", "3", "--valid", "x"), "--valid"),
    (with_words("--sample", "half"), "--sample"),
    (with_words("--seed", "-1"), "--seed"),
    (with_words("--test", "nowhere"), "does not exist"),
    (with_words("--sample-submission", "x.csv"), "--test"),
    (with_words("--image-column", "x"), "--image-column"),
]


@pytest.mark.parametrize(("prepare", "told"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistake_ends_in_one_sentence(etude, tmp_path, prepare, told):
    words = prepare(tmp_path)
    if "--recipe" not in words:
        words += ["--recipe", "quick"]
    if "--out" not in words:
        words += ["--out", tmp_path / "run"]
    ended = etude("fit", *words)
    assert ended.code == 2, ended.out
    assert told in ended.err
    assert ended.err.startswith("etude: ")
    assert len(ended.err.strip().splitlines()) == 1
    assert "Traceback" not in ended.err


def test_occupied_out_folder_is_left_alone(etude, tmp_path):
    etude("fit", *out_not_empty(tmp_path), "--recipe", "quick")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "names",
    [["a,b", 'with "quotes"'], [" leading", "trailing "], ["\N{GRINNING FACE}", "<b>bold</b>"], ["con", "-rf"]],
    ids=str,
)
def test_odd_class_names_survive(etude, tmp_path, names):
    write_classes(tmp_path / "train", names, count=6)
    assert etude("fit", tmp_path / "train", *QUICK, "--out", tmp_path / "run").code == 0
    ended = etude("predict", tmp_path / "run", tmp_path / "train", "--out", "p.csv", "--probabilities")
    assert ended.code == 0, ended.err


def test_class_named_like_a_path_in_a_table(etude, tmp_path):
    pictures = write_classes(tmp_path / "p", ["x", "y"], count=6)
    lines = ["image,label"]
    lines += [f"p/{name}/{k:03d}.png,{label}" for name, label in (("x", ".."), ("y", "a/b")) for k in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert etude("fit", tmp_path / "t.csv", *QUICK, "--out", tmp_path / "run").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([pictures.name, "t.csv", "run", "cache"])


def test_predict_refuses_what_is_no_run(etude, tmp_path):
    write_classes(tmp_path / "train")
    for words, told in (
        (("predict", "nowhere", tmp_path / "train", "--out", "p.csv"), "nowhere"),
        (("predict", tmp_path / "train", tmp_path / "train", "--out", "p.csv"), "run.json"),
        (("predict", tmp_path, tmp_path / "train", "--out", "p.txt"), ".csv"),
    ):
        ended = etude(*words)
        assert ended.code == 2
        assert told in ended.err


def test_failed_run_is_recorded_as_failed(etude, tmp_path):
    write_classes(tmp_path / "train")
    picture(0, 0, 24).save(tmp_path / "one.png")
    os.truncate(tmp_path / "one.png", 0)
    ended = etude("fit", tmp_path / "train", "--test", tmp_path / "one.png", "--recipe", "quick", "--out", "run")
    assert ended.code == 2
    assert '"state": "failed"' in (tmp_path / "run" / "run.json").read_text()


EVIL = "a\x1b[31m\u202eb\nc[bold]"


@pytest.mark.parametrize(
    "words",
    [
        ("fit", EVIL),
        ("fit", "x", "--seed", EVIL),
        (EVIL,),
        ("predict", EVIL, "x", "--out", "p.csv"),
        ("fit", "x", EVIL),
    ],
)
def test_nothing_in_a_path_commands_the_terminal(etude, words):
    """Neither in etude's sentences nor in those about a command line that cannot be read."""
    ended = etude(*words)
    assert ended.code in (1, 2)
    shown = ended.out + ended.err
    assert r"a\x1b[31m\u202eb" in shown
    assert "[bold]" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\nc[bold]" not in shown
