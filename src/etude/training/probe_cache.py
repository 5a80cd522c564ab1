"""Results of probes, kept for the machine, the network and what was asked."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from etude.core.errors import EtudeError
from etude.core.files import digest_of, read_json, write_json
from etude.core.processor import cpu_model, physical_cores, usable_cores
from etude.models.modes import AskedMode
from etude.training.probe_result import ProbeResult

PROBE_VERSION = 1
"""Raise it when probes measure anything else than before."""


def key_of(
    module: nn.Module, shape: tuple[int, int, int], device: torch.device, threads: int, train: bool, asked: AskedMode
) -> str:
    """Return a digest of all that a probe's result depends on: machine, network with what of it is frozen, batch.

    The network counts by its structure, not by its weights: how fast it runs does not depend on them.

    Args:
        shape: of the batch: images, channels, side.
    """
    graphics = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    machine = [cpu_model(), usable_cores(), physical_cores(), threads, device.type, graphics, torch.__version__]
    weights = [(name, tuple(weight.shape), weight.requires_grad) for name, weight in module.named_parameters()]
    told = json.dumps([PROBE_VERSION, machine, shape, train, asdict(asked), module.training, weights])
    return digest_of("probe", told, repr(module))


class ProbeCache:
    """One result in ``FOLDER/probes/KEY.json``.

    Args:
        folder: the cache; None keeps nothing.
        key: of :func:`key_of`.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path = None if folder is None else folder / "probes" / f"{key}.json"

    def load(self) -> ProbeResult | None:
        """Return the result, or None where there is none; one that is damaged is measured again."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            return replace(ProbeResult.from_dict(read_json(self._path)), cached=True)
        except (EtudeError, OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save(self, result: ProbeResult) -> None:
        """Keep the result.

        Raises:
            EtudeError: the cache cannot be written.
        """
        if self._path is not None:
            write_json(self._path, result.as_dict())
