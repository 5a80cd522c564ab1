"""How tables and figures write the scheduled quantities: their names, units and values."""

from __future__ import annotations

import math

LABELS: dict[str, str] = {
    "lr": "learning rate",
    "momentum": "momentum",
    "image_size": "image size",
    "augment": "augmentation",
    "mixup": "MixUp α",
    "cutmix": "CutMix α",
    "dropout": "dropout",
    "drop_path": "stochastic depth",
    "batch_size": "batch size",
    "label_smoothing": "label smoothing",
    "unlabeled_weight": "unlabelled weight",
}

UNITS: dict[str, str] = {"image_size": "px", "batch_size": "images"}


def short_number(value: float) -> str:
    """Return a number as a practitioner writes it, to three significant digits.

    >>> [short_number(value) for value in (0, 0.5, 0.000123456, 0.001, 0.01, 224, 65536)]
    ['0', '0.5', '1.23e-4', '1e-3', '0.01', '224', '65,536']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    # Rounded first: 0.0099996 is 0.01, not 10e-3.
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 0.01:
        return f"{rounded:g}"
    mantissa, exponent = f"{rounded:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
