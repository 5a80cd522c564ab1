"""docs/refine.md says what is: its blocks and commands run, its links lead somewhere, and no refiner is left out."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import etude.refine
from etude.core.predictions import Predictions

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "refine.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines() if line.startswith("etude ")]
CLASSES = ("cat", "dog", "eel")
CENTRES = np.random.default_rng(5).normal(size=(3, 6))


def model_output(images: int, model: int, count: int, *, views: int = 3, labelled: bool = True) -> Predictions:
    """What a model, through some views, says about images that others see too."""
    labels = np.random.default_rng(images).integers(3, size=count)
    own = np.random.default_rng((images, model))
    seen = 2 * np.eye(3)[labels] + own.normal(size=(views, count, 3))
    features = (CENTRES[labels] + own.normal(scale=0.7, size=(count, 6))).astype(np.float32)
    return Predictions([f"{images}-{n}" for n in range(count)], CLASSES, seen, features, labels if labelled else None)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two finished runs, as far as refining reads them, below the working folder."""
    monkeypatch.chdir(tmp_path)
    for model, name in enumerate(("first", "second")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        model_output(0, model, 200).save(folder / "valid.npz")
        model_output(1, model, 150, labelled=False).save(folder / "test.npz")
        model_output(2, model, 250, views=1).save(folder / "train.npz")
        head = {"head.weight": CENTRES.astype(np.float32), "head.bias": np.full(3, model, np.float32)}
        save_file(head, str(folder / "model.safetensors"))
    return tmp_path


def test_every_block_runs_after_the_one_before(runs: Path):
    names: dict[str, Any] = {}
    for block in PYTHON:
        exec(compile(block, "docs/refine.md", "exec"), names)  # the guide is our own text
        if "refined" in names:
            refined = names.pop("refined")
            assert refined.ids == names["test"].ids
            assert len(refined.logits) == 1
    assert Predictions.load(runs / "refined.npz").ids == names["test"].ids
    assert (runs / "soup.safetensors").is_file()
    assert (runs / "refine.json").is_file()


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs(etude, runs: Path, line: str):
    words = shlex.split(line)
    ended = etude(*words[1:])
    assert (ended.code, ended.err) == (0, ""), line
    assert (runs / words[words.index("--out") + 1]).is_file()


def test_no_refiner_is_left_out():
    public = {name: getattr(etude.refine, name) for name in etude.refine.__all__}
    steps = {name for name, one in public.items() if inspect.isclass(one) and hasattr(one, "transform")}
    assert {"KNN", "Chain", "Ensemble", "Stacking"} <= steps
    used = "\n".join(PYTHON)
    assert [name for name in sorted(steps - {"Refiner"}) if f"{name}(" not in used] == []


def test_every_section_names_its_source():
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    told = {section.splitlines()[0]: section for section in sections if not section.startswith("The chain")}
    assert len(told) == 11
    assert [name for name, section in told.items() if "**Source**" not in section] == []
    assert [name for name, section in told.items() if "**When it helps**" not in section] == []


def test_the_order_of_the_chain_is_as_written():
    words = {"knn": "neighbours", "last_layer": "last layer", "vector_scaling": "vector scaling"}
    order = ", ".join(words.get(name, name) for name in etude.refine.DEFAULT_ORDER)
    assert order in re.sub(r"\s+", " ", TEXT)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(target: str):
    file, _, heading = target.partition("#")
    text = (GUIDE.parent / file).read_text(encoding="utf-8")
    assert f"## {heading}" in text.lower()
