"""Seeds derived from (seed, step, name), so that no random draw depends on what was drawn before it."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, name: str, step: int = 0) -> int:
    """Return a 63-bit seed that depends on all three arguments and on nothing else; ``name`` says what is drawn."""
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def rng_for(seed: int, name: str, step: int = 0) -> np.random.Generator:
    """Return a numpy generator for one draw, seeded by :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(seed, name, step))
