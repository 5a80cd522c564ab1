"""Keep freed memory in the process, so that every training step finds its large blocks again."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_large_blocks(largest: int = 512 << 20) -> bool:
    """Let glibc serve blocks of up to ``largest`` bytes from its heap instead of mapping each anew.

    A mapped block is zeroed page by page by the kernel at every step; what that costs a training step on a CPU is
    measured by ``benchmarks/cpu_training.py``. Nothing changes on other C libraries.

    Returns:
        Whether the settings were taken.

    >>> isinstance(keep_large_blocks(), bool)
    True
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, largest), (_M_TRIM_THRESHOLD, 2 * largest), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
