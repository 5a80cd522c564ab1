"""The documentation's site: it builds without a warning, and what its pages say can be typed."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import etude.compat

import pytest
import torch

import etude.callbacks
import etude.refine
import etude.timeline
from doc_blocks import blocks, commands, stop, understood
from etude.core.submission import write_submission
from etude.recipe.catalogue import FIELDS
from picture_folders import picture, write_classes, write_flat
from recorded_runs import edit_record

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
NOT_RUN = ("settings.md", "unlabelled.md", "journal.md", "input-and-machine.md")
RUN_HERE = [name for name in PAGES if name in ("index.md", "tutorial.md") or name.startswith("how-to/")]
TRAINS = ("fit", "doctor")  # understood, but not run: one run is shared by all pages
UNDERSTOOD = {
    line
    for page, text in PAGES.items()
    for line in commands(text)
    if (page in RUN_HERE and line.split()[1] in TRAINS) or page in NOT_RUN
}


# --- the site ---


class Page(HTMLParser):
    """The addresses that a page of the site refers to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loaded, self.anchors = set[str](), set[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag in ("script", "img", "link", "iframe"):
            self.loaded |= {given[name] for name in ("src", "href") if name in given}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make site`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.mark.slow
def test_search_finds_what_people_look_for(site: Path):
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    text = {entry["location"]: f"{entry['title']} {entry['text']}".lower() for entry in entries}
    for words in ("resume", "class imbalance", "tta"):
        assert [place for place, found in text.items() if words in found and place.startswith("how-to/")], words


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere_and_nothing_is_fetched_from_elsewhere(site: Path):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = list[tuple[str, str]]()
    for path, page in pages.items():
        assert not [one for one in page.loaded if re.match(r"(https?:)?//", one)], path
        if path.name == "404.html":
            continue
        for link in page.links | page.loaded:
            file, _, anchor = unquote(link).partition("#")
            target = (path.parent / file).resolve() if file else path
            if not re.match(r"\w+:", link) and not (
                target.is_file() and (not anchor or target not in pages or anchor in pages[target].anchors)
            ):
                broken.append((path.name, link))
    assert not broken


@pytest.mark.slow
def test_references_name_everything_public(site: Path):
    settings, api = ((site / f"{name}.html").read_text(encoding="utf-8") for name in ("settings", "api"))
    assert [name for name in FIELDS if f"<code>{name}</code>" not in settings] == []
    rooms = (etude, etude.callbacks, etude.refine, etude.timeline)
    public = {name for room in rooms for name in room.__all__ if name != "__version__"}
    assert [name for name in sorted(public) if not re.search(rf"\b{name}\b", api)] == []
    assert "{options}" not in api


# --- the pages ---


@pytest.mark.each("line", sorted(UNDERSTOOD))
def test_commands_are_understood(line: str):
    understood(line)


@pytest.mark.each("cell", re.findall(r"^\|[^|]+\|([^|]+)\|", PAGES["coming-from.md"], re.MULTILINE))
def test_what_coming_from_gives_here_exists(cell: str):
    for text in re.findall("`([^`]+)`", cell):
        if text.startswith(("etude ", "--")):
            understood(text if text.startswith("etude ") else f"etude fit train/ {text}")
        elif re.fullmatch(r"[a-z]+\.[a-z_]+", text):
            assert text in {*FIELDS, "report.html", "etude.load"}


def test_messages_of_troubleshooting_are_those_of_the_code():
    constants = list[str]()
    for path in (ROOT / "src" / "etude").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        constants += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    everything = "\n".join(constants)
    messages = re.findall(r"^\*\*`(.+?)`\*\*", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(messages) >= 30
    pieces = [piece.strip(" ;(") for message in messages for piece in message.split("…")]
    assert [piece for piece in pieces if piece not in everything] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, tables and a run, as the pages name them."""
    folder = tmp_path_factory.mktemp("pages")
    write_classes(folder / "train", count=12)
    for kind, name in enumerate(("round", "striped")):
        (folder / "labelled" / name).mkdir(parents=True)
        for number in range(4):
            picture(kind, 500 + number, 24).save(folder / "labelled" / name / f"{number}.png")
    write_flat(folder / "test")
    rows = [f"train/{kind}/{n:03d}.png,{kind},p{n % 6},1" for kind in ("round", "striped") for n in range(12)]
    (folder / "train.csv").write_text("\n".join(["image,label,patient_id,weight", *rows]) + "\n")
    (folder / "sample_submission.csv").write_text(
        "\n".join(["id,label", *(f"t{n:03d}.png,round" for n in reversed(range(6)))]) + "\n"
    )
    torch.save({"head.weight": torch.ones(2, 2)}, folder / "weights.pth")
    run = etude.fit(
        folder / "train", test=folder / "test", recipe="quick", settings=["model.feature_size=32"],
        out=folder / "runs" / "first", cache=folder / "cache", quiet=True,
    )  # fmt: skip
    for name in ("second", "longer", "folds"):
        shutil.copytree(run.folder, folder / "runs" / name)
        edit_record(folder / "runs" / name, id=f"{name:0<12}")
    write_submission(folder / "theirs.csv", run.predict(folder / "test").predictions, probabilities=True)
    write_submission(folder / "theirs-valid.csv", run.validation(), probabilities=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE)
def test_a_page_can_be_followed(page: str, trained: Path, etude, tmp_path: Path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for line in commands(PAGES[page]):
        words = shlex.split(line)
        if words[1] in TRAINS:
            continue
        if words[1] == "resume":
            stop(tmp_path / words[2])
        ended = etude(*words[1:])
        monkeypatch.chdir(tmp_path)  # etude resume goes to where the run was begun
        assert ended.code == 0, (line, ended.err)
        if "--out" in words:
            assert (tmp_path / words[words.index("--out") + 1]).is_file()
    for block in blocks(PAGES[page], "python"):
        exec(compile(block, page, "exec"), {})  # the pages are our own text
