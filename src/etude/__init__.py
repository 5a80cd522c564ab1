"""etude: turns a folder of labelled images into an accurate classifier, and writes down what each step contributed.

Importing this package is light; torch and the rest load when they are first needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from etude.api import fit
    from etude.core.errors import EtudeError
    from etude.core.predictions import Predictions
    from etude.run import Run, load

_HOMES = {
    "fit": "etude.api",
    "load": "etude.run",
    "Run": "etude.run",
    "Predictions": "etude.core.predictions",
    "EtudeError": "etude.core.errors",
}

__all__ = ["EtudeError", "Predictions", "Run", "__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'etude' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
