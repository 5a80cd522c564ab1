"""Lets timm and Lightning be imported with a torchvision whose compiled operators do not load.

The torchvision wheel of the package registry is a CUDA build. With a CPU build of torch its operators
stay unregistered, and then ``import torchvision`` (so timm, torchmetrics and Lightning) fails on two missing
schemas. Declaring them is enough: etude never calls them. Every room that uses timm or Lightning imports
this module first.
"""

from __future__ import annotations

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a Library that is garbage-collected takes its operators away


def _operators_load() -> bool:
    try:
        import torchvision  # noqa: F401  # pyright: ignore
    except ImportError:
        return True  # no torchvision at all: nothing to repair
    except RuntimeError as error:
        if "torchvision::" in str(error):
            return False
        raise
    return True


def declare_missing_operators() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` when torchvision cannot load its own."""
    if _declared or _operators_load():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}{_SCHEMA}")
    _declared.append(library)


declare_missing_operators()
