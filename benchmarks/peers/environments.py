"""Each peer's own virtual environment, under ~/.cache/etude-peers, so that nobody's pins meet.

What etude itself has installed is not visible there. `etude.compat`, which needs torch alone, is read from the source.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from filelock import FileLock

from etude.core.files import read_json, write_json

HOME = Path.home() / ".cache" / "etude-peers"
BENCHMARKS = Path(__file__).resolve().parents[1]
VARIABLES = {"PYTHONPATH": f"{BENCHMARKS}:{BENCHMARKS.parent / 'src'}"}

TORCH = ("torch==2.13.0", "torchvision==0.28.0")
TIMM = ("timm==1.0.31", *TORCH)
PEERS: dict[str, tuple[str, ...]] = {
    "logistic": ("scikit-learn==1.9.1", *TIMM),
    "fastai": ("fastai==2.8.12", *TIMM),
    "timm": TIMM,
    "lightning": ("lightning==2.6.6", *TIMM),
    "keras": ("keras==3.15.1", *TIMM),
    "autogluon": ("autogluon.multimodal==1.6.3", *TORCH),
    "ultralytics": ("ultralytics==8.4.190", *TORCH),
    "tabpfn": ("tabpfn==9.2.0", *TIMM),
}
"""Requirements of each peer, its own package first."""
TIMED = ("autogluon", "ultralytics")
"""The peers that take a limit of time."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A peer's virtual environment.

    Args:
        python: its interpreter.
        version: of the peer's package.
        error: the last line of pip's error; empty where everything was installed.
    """

    python: Path
    version: str
    error: str


def environment(peer: str) -> Environment:
    """Return a peer's environment, made on the first call; a failure is kept until the peer's folder is removed."""
    folder, requirements = HOME / peer, list(PEERS[peer])
    python, record = folder / "bin" / "python", folder / "peer.json"
    HOME.mkdir(parents=True, exist_ok=True)
    with FileLock(HOME / f"{peer}.lock"):
        if not record.is_file() or read_json(record)["requirements"] != requirements:
            print(f"installing {' '.join(requirements)} into {folder}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, symlinks=True)
            command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *requirements]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            error = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
            write_json(record, {"requirements": requirements, "error": error})
    package = requirements[0].partition("==")[0]
    paths = [str(path) for path in folder.glob("lib/python*/site-packages")]
    version = next((one.version for one in distributions(name=package, path=paths)), "")
    return Environment(python, version, read_json(record)["error"])
