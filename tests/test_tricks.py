"""The cards of docs/tricks say what is: code blocks run, commands and defaults hold, nothing is left out."""

from __future__ import annotations

import inspect
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import etude.compat

import pytest
import torch
from timm.optim import Lamb, Lars

import etude.callbacks
import etude.timeline
from doc_blocks import blocks, commands, understood
from etude.recipe import NAMED, ImageFacts, Recipe, flat, load_recipe, resolve, timeline_of

CARDS = Path(__file__).resolve().parents[1] / "docs" / "tricks"
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(CARDS.glob("*.md"))}
INDEX = TEXTS.pop("README")
HEADINGS = [
    "What it does",
    "Formula",
    "In etude",
    "In your own Lightning project",
    "When it helps, when not",
    "Our figures",
    "Source",
]
SMALL = 28  # side in pixels of the images that "small images" stands for
SLOW = {"dropout-and-stochastic-depth"}
NOT_TRICKS = {"TrainingProgress", "Checkpoints"}

Row = tuple[str, str]


def sections(card: str) -> dict[str, str]:
    """Return the text below each heading of a card, in order."""
    parts = re.split(r"^## (.+)$", TEXTS[card], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(text: str) -> list[Row]:
    """Return (name, default) of each row of a card's table."""
    return re.findall(r"^\| `([\w.]+)` \| ([^|]+?) \|", text, re.MULTILINE)


ROWS = [pytest.param(name, cell, id=f"{card}:{name}") for card, text in TEXTS.items() for name, cell in rows(text)]
COMMANDS = [pytest.param(line, id=line) for text in TEXTS.values() for line in commands(text)]


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the index puts before the block of every card, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    run(blocks(INDEX, "python")[0], names, "README.md")
    return names


def run(block: str, names: dict[str, Any], where: str) -> None:
    exec(compile(block, where, "exec"), names)  # the cards are our own text


# --- the text of a card ---


@pytest.mark.each("card", TEXTS)
def test_headings_are_the_same_everywhere(card: str):
    assert re.match(r"# \S.*\n\n## ", TEXTS[card])
    assert list(sections(card)) == HEADINGS
    assert all(text.strip() for text in sections(card).values())


@pytest.mark.each("card", TEXTS)
def test_figures_have_their_place(card: str):
    assert re.match(rf"\s*<!-- figures: {card} -->\n\S", sections(card)["Our figures"])
    assert TEXTS[card].count("<!-- figures:") == 1


@pytest.mark.each("card", TEXTS)
def test_figures_are_those_of_the_results(card: str):
    text, results = sections(card)["Our figures"], (CARDS.parent / "results.md").read_text(encoding="utf-8")
    of_arms = re.findall(r"^\| (?:MNIST-5k|ELPV) (\| .*)$", text, re.MULTILINE)
    known = {re.sub(r" +", " ", line) for line in results.splitlines()}
    assert [row for row in of_arms if row not in known] == []
    figures = re.compile(r"\d+\.\d+")
    claimed = figures.findall(text + sections(card)["When it helps, when not"])
    assert set(claimed) - set(figures.findall(results)) == set()


@pytest.mark.each("card", TEXTS)
def test_figures_name_the_command_that_prints_them(card: str):
    text = sections(card)["Our figures"]
    benchmarks = re.findall(r"`make bench-([\w-]+)", text)
    assert benchmarks or text.split("-->")[1].strip().startswith("Not measured")
    folder = CARDS.parents[1] / "benchmarks"
    assert [name for name in benchmarks if not (folder / f"{name.replace('-', '_')}.py").is_file()] == []


@pytest.mark.parametrize(("optimizer", "share"), [(Lamb, 1.0), (Lars, 0.001)])
def test_a_layer_moves_by_the_share_of_its_norm_that_the_card_of_large_batches_states(optimizer: Any, share: float):
    weight = torch.nn.Parameter(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))
    weight.grad = torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
    before = weight.detach().clone()
    optimizer([weight], lr=0.01, weight_decay=0.02).step()
    moved = (weight.detach() - before).norm() / before.norm()
    assert float(moved) == pytest.approx(0.01 * share, rel=0.05)


@pytest.mark.each("card", [*TEXTS, "README"])
def test_links_lead_somewhere(card: str):
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS.get(card, INDEX)):
        file, _, anchor = target.partition("#")
        assert target.startswith("https://") or (CARDS / file).is_file(), target
        if anchor and not target.startswith("https://"):
            headings = re.findall(r"^#+ (.+)$", (CARDS / file).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def test_index_lists_every_card_once():
    assert sorted(re.findall(r"^\| \[[^]]+\]\(([\w-]+)\.md\) \|", INDEX, re.MULTILINE)) == sorted(TEXTS)


def test_every_callback_and_preset_has_a_card():
    everything = "\n".join(TEXTS.values())
    callbacks = {name for name in etude.callbacks.__all__ if inspect.isclass(getattr(etude.callbacks, name))}
    missing = [name for name in callbacks - NOT_TRICKS if not re.search(rf"\b{name}\(", everything)]
    assert not missing
    assert not [name for name in etude.timeline.PRESETS if f"`{name}`" not in everything]


# --- defaults ---


@pytest.mark.each(("name", "cell"), ROWS)
def test_defaults_are_the_real_ones(name: str, cell: str):
    value, told = read_cell(cell)
    owner, _, argument = name.partition(".")
    if owner[0].isupper():
        kind = getattr(etude.callbacks, owner, None) or getattr(etude.timeline, owner)
        assert (value, told) == (as_written(inspect.signature(kind).parameters[argument].default), {})
        return
    assert value == as_written(flat(Recipe())[name])
    small = as_written(flat(resolve(Recipe(), ImageFacts(SMALL, channels=1, unlabelled=True)))[name])
    small_told = told.pop("small images", value)
    assert small == (SMALL if small_told == "their own" else small_told)
    for recipe, changed in told.items():
        assert changed == as_written(flat(load_recipe(recipe))[name])


def test_every_card_with_settings_names_them():
    assert len(ROWS) > 60
    assert {card for card, text in TEXTS.items() if not rows(text)} == set()


@pytest.mark.each(("name", "value"), re.findall(r"`([a-z_]+\.[a-z_]+)=([^`]+)`", INDEX))
def test_defaults_of_the_index_are_the_real_ones(name: str, value: str):
    assert read_value(value) == as_written(flat(Recipe())[name])


def read_cell(cell: str) -> tuple[Any, dict[str, Any]]:
    """Return the value of ``0.98 (small images: 0.99; large-batch: 1)``, and those in brackets by name.

    >>> read_cell("0.98 (small images: 0.99)")
    (0.98, {'small images': 0.99})
    """
    value, _, bracket = cell.rstrip(")").partition(" (")
    parts = [part.partition(": ") for part in bracket.split("; ") if part]
    return read_value(value), {name: read_value(told) for name, _, told in parts}


def read_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def as_written(value: Any) -> Any:
    """Return a default as the cards write it."""
    return "none" if value is None else value


# --- commands ---


@pytest.mark.each("line", COMMANDS)
def test_commands_are_understood(line: str):
    words, (options, recipe) = shlex.split(line)[1:], understood(line)
    assert timeline_of(recipe).phases
    assert ("--set" in words) <= bool(getattr(options, "settings", ()))
    assert "--recipe" not in words or options.recipe == words[words.index("--recipe") + 1]


def test_every_recipe_of_a_preset_has_a_command():
    used = set(re.findall(r"--recipe ([\w-]+)", "\n".join(TEXTS.values())))
    assert used >= set(etude.timeline.PRESETS) - {"default"}
    assert used <= set(NAMED)


def test_recipe_files_of_the_index_load(tmp_path: Path):
    assert blocks(INDEX, "toml")
    for number, block in enumerate(blocks(INDEX, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, encoding="utf-8")
        assert [phase.name for phase in timeline_of(load_recipe(str(path))).phases] == ["warmup", "grow", "finish"]


# --- code blocks ---


@pytest.mark.parametrize("card", [pytest.param(card, marks=pytest.mark.slow if card in SLOW else ()) for card in TEXTS])
def test_python_block_runs(card: str, namespace: dict[str, Any]):
    (block,) = blocks(TEXTS[card], "python")
    run(block, namespace, f"{card}.md")
    trainer = namespace["trainer"]
    assert trainer.state.finished
    assert trainer.global_step > 0
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trainer.lightning_module.parameters())
    present = {type(callback).__name__ for callback in trainer.callbacks}
    imported = {name for name in etude.callbacks.__all__ if inspect.isclass(namespace.get(name))}
    assert imported <= present


@pytest.mark.each("card", TEXTS)
def test_python_block_imports_etude_first(card: str):
    modules = re.findall(r"^(?:from|import) (\w+)", blocks(TEXTS[card], "python")[0], re.MULTILINE)
    assert "etude" in modules
    assert all(modules.index("etude") < modules.index(other) for other in ("lightning", "timm") if other in modules)
