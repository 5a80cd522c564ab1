from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from etude.journal.record import describe_checkout, describe_environment, installed_from


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty git repository that no setting of this machine reaches."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "--quiet")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


def test_the_environment_is_json_and_tells_the_machine():
    told = describe_environment()
    assert json.loads(json.dumps(told)) == told
    assert told["python"] == platform.python_version()
    assert told["cores"] >= 1
    assert told["memory_bytes"] > 2**28
    assert {"torch", "timm", "lightning", "numpy"} <= set(told["packages"])


def test_a_checkout_is_told_by_its_commit_and_its_changes(checkout: Path):
    assert describe_checkout(checkout) == {"commit": None, "dirty": False, "diff": None}
    file = checkout / "a.txt"
    file.write_text("1")
    git(checkout, "add", "a.txt")
    assert describe_checkout(checkout) == {"commit": None, "dirty": True, "diff": None}
    git(checkout, "commit", "--quiet", "-m", "first")
    clean = {"commit": git(checkout, "rev-parse", "HEAD").strip(), "dirty": False, "diff": None}
    (checkout / "untracked.txt").write_text("2")
    assert describe_checkout(checkout) == clean
    diffs = {}
    for text in ("2", "3"):
        file.write_text(text)
        told = describe_checkout(checkout)
        assert told == {**clean, "dirty": True, "diff": told["diff"]}
        assert len(told["diff"]) == 32
        diffs[text] = told["diff"]
    assert diffs["2"] != diffs["3"]
    file.write_text("2")
    git(checkout, "add", "a.txt")  # the same change, staged
    assert describe_checkout(checkout)["diff"] == diffs["2"]


def test_outside_of_a_checkout_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_checkout(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert describe_checkout(Path(__file__).parent) is None


@pytest.mark.each("direct, found", [
    (None, {}),
    ({"url": "file:///tmp/etude-1.whl", "archive_info": {}}, {"etude_from": "etude @ file:///tmp/etude-1.whl"}),
    (
        {"url": "https://example.org/etude", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
        {"etude_from": "etude @ git+https://example.org/etude@abc"},
    ),
])  # fmt: skip
def test_what_pip_installs_etude_by(monkeypatch, direct, found):
    text = None if direct is None else json.dumps(direct)
    held = SimpleNamespace(read_text=lambda name: text if name == "direct_url.json" else None)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: held)
    assert installed_from() == found


def test_a_folder_is_named_with_its_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "one")
    direct = json.dumps({"url": checkout.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: SimpleNamespace(read_text=lambda file: direct))
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert installed_from() == {"etude_from": f"etude @ {checkout.as_uri()}", "etude_commit": commit}
