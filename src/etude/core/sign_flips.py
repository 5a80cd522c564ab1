"""The exact test for a gain that few images make."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FEW = 30
"""Below so many changed images a bootstrap passes chance gains too often, and differently by its seed."""

_STEPS = 2000  # of the largest share, in which all are counted


class SignFlips(NamedTuple):
    """What :func:`sign_flips` returns.

    Args:
        low: end of the interval of the sum.
        high: its other end.
        p: chance of a sum this large or larger where nothing is gained.
    """

    low: float
    high: float
    p: float


def sign_flips(shares: ArrayLike, level: float) -> SignFlips:
    """Test whether the sum of ``shares`` (M,), what each changed image adds to a gain, is above zero.

    Where nothing is gained, each share might as well have the other sign: the sum is compared with those of all 2^M
    signs (Fisher 1935, The Design of Experiments; Pitman 1937). For right and wrong answers, all shares alike, that is
    McNemar's exact test (1947, Edwards 1948): 5 wins and no loss pass one-sided at 5%, 4 do not. For other metrics it
    takes for granted that gains and losses of one size are equally likely under chance; a rare large loss that none of
    few images shows, no test can see. The distribution is computed and not drawn, so no seed takes part.

    The interval is the sum ± what chance alone reaches; it lies above zero where ``p`` is at most (1 - ``level``) / 2.

    >>> sign_flips([1.0] * 5, 0.9), sign_flips([1.0] * 4, 0.9)
    (SignFlips(low=2.0, high=8.0, p=0.03125), SignFlips(low=0.0, high=8.0, p=0.0625))
    """
    values = np.asarray(shares, dtype=np.float64)
    values = values[values != 0.0]
    if not len(values):
        return SignFlips(0.0, 0.0, 1.0)
    steps = np.rint(np.abs(values) / np.abs(values).max() * _STEPS).astype(np.int64)
    common = int(np.gcd.reduce(steps))
    steps //= common
    unit = float(np.abs(values).max()) * common / _STEPS
    chances = np.ones(1)  # of the sums from -K to K in steps of 2, K the sum so far of all sizes
    for step in steps.tolist():
        chances = (np.pad(chances, (0, step)) + np.pad(chances, (step, 0))) / 2.0
    largest, total = int(steps.sum()), int(np.sign(values) @ steps)
    p = float(chances[(total + largest) // 2 :].sum())
    reach = 2 * int(np.searchsorted(np.cumsum(chances), (1.0 + level) / 2.0 - 1e-12)) - largest
    return SignFlips((total - reach) * unit, (total + reach) * unit, p)
