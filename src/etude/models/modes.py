"""The numeric mode a network runs in: precision, layout in memory, threads, and images at once."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from torch import nn

from etude.core.processor import physical_cores, usable_cores
from etude.models.device import choose_precision

Module = TypeVar("Module", bound=nn.Module)
Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["channels_last", "contiguous"]

Count = Annotated[int, Field(ge=1, strict=True)]

_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True, slots=True)
class Mode:
    """How a network is run: precision (autocast), memory format, threads, and images in memory at once."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    precision: Precision
    memory_format: MemoryFormat
    threads: Count
    micro_batch: Count | None = None

    def in_words(self) -> str:
        """Return the mode for the plan."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        pieces = f", {self.micro_batch} images at a time" if self.micro_batch else ""
        return f"{self.precision}, {self.memory_format}, {threads}{pieces}"

    def as_dict(self) -> dict[str, Any]:
        """Return the mode as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Mode:
        """Return the mode that :meth:`as_dict` described, or raise a ValueError."""
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True, slots=True)
class AskedMode:
    """What of a mode the user has fixed; None is left to etude."""

    precision: Precision | None = None
    memory_format: MemoryFormat | None = None
    threads: int | None = None
    micro_batch: int | None = None

    @classmethod
    def of(
        cls, precision: str = "auto", memory_format: str = "auto", threads: int | None = None,
        micro_batch: int | None = None,
    ) -> Self:  # fmt: skip
        """Return what the settings of ``recipe.train`` ask, where ``auto`` leaves the choice."""
        asked: Any = [None if setting == "auto" else setting for setting in (precision, memory_format)]
        return cls(asked[0], asked[1], threads, micro_batch)


def likely_mode(device: torch.device, asked: AskedMode | None = None) -> Mode:
    """Return the mode that was the fastest wherever modes were timed (``benchmarks/train_modes.py``)."""
    asked = asked or AskedMode()
    precision = asked.precision or cast(Precision, choose_precision("auto", device))
    return Mode(precision, asked.memory_format or "channels_last", asked.threads or usable_cores(), asked.micro_batch)


def candidate_modes(device: torch.device, asked: AskedMode | None = None) -> list[Mode]:
    """Return the modes that may be the fastest somewhere and that the user has not ruled out, the likely one first."""
    asked = asked or AskedMode()
    likely = likely_mode(device, asked)
    native: list[Precision] = ["bf16", "fp32"] if likely.precision == "bf16" else ["fp32"]
    precisions: list[Precision] = [asked.precision] if asked.precision else native
    formats = [likely.memory_format] if asked.memory_format else _FORMATS
    threads = [likely.threads]
    if asked.threads is None and device.type == "cpu":
        physical = min(likely.threads, physical_cores())
        threads = list(dict.fromkeys((likely.threads, physical, max(1, physical // 2))))
    return [
        Mode(precision, cast(MemoryFormat, layout), count, asked.micro_batch)
        for count in threads
        for precision in precisions
        for layout in formats
    ]


def lay_out(module: Module, mode: Mode) -> Module:
    """Lay the module's convolution weights out as ``mode`` says, in place; their values stay."""
    return module.to(memory_format=_FORMATS[mode.memory_format])  # pyright: ignore[reportCallIssue]  (missing in stubs)


def lay_out_images(images: torch.Tensor, mode: Mode) -> torch.Tensor:
    """Return (B, C, H, W) images laid out as ``mode`` says; the same tensor when they are already."""
    return images.contiguous(memory_format=_FORMATS[mode.memory_format])


@contextmanager
def applied(mode: Mode) -> Generator[None]:
    """Let torch use the mode's threads inside the block; precision is set by autocast around the forward pass alone."""
    threads, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    try:
        torch.set_num_threads(mode.threads)
        torch.backends.cuda.matmul.allow_tf32 = True
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = tf32
