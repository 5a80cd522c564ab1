"""The device and the numeric mode that a model runs in."""

from __future__ import annotations

import ctypes
import os
import sys

import torch


def best_device() -> torch.device:
    """Return the GPU when there is one, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(setting: str, device: torch.device) -> str:
    """Return ``fp32`` or ``bf16``; ``auto`` takes bfloat16 where the hardware multiplies it natively."""
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and native_bf16() else "fp32"


def describe_device(device: torch.device, precision: str) -> str:
    """Return the device in words for the plan."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    count = torch.get_num_threads()
    return f"{device.type.upper()}, {count} thread{'s' if count > 1 else ''}, {precision}"


def is_first_process() -> bool:
    """Whether this process writes the files, of those that train together; a process alone is the first."""
    return int(os.environ.get("RANK", "0")) == 0


def native_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX512-BF16 or AMX); elsewhere it is slower than float32."""
    # torch's own tests have no public names yet; an older torch lacks the one of AMX.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(test()) for name in names if (test := getattr(torch.cpu, name, None)) is not None)


# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_large_blocks(largest: int = 512 << 20) -> bool:
    """Let glibc serve blocks of up to ``largest`` bytes from its heap; return whether the settings were taken."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, largest), (_M_TRIM_THRESHOLD, 2 * largest), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
