"""How images of any shape become squares: chosen from their aspect ratios, and told with the figures."""

from __future__ import annotations

import numpy as np

NEAR_SQUARE = 1.1
HALF_LOST = 2.0  # a central square keeps 1/ratio of the image, so at 2 half of it is gone


def choose_fit(widths: np.ndarray, heights: np.ndarray) -> tuple[str, str]:
    """Choose squash, crop or letterbox from the sizes of the images.

    The long side over the short side of 90% of the images decides: up to 1.1, stretching is hardly visible
    (squash); up to 2, the central square keeps at least half of the image (crop); beyond, a crop would lose more than
    half, so everything is kept and padded (letterbox).

    Args:
        widths: (N,) pixels, N >= 1.
        heights: (N,) pixels.

    Returns:
        The fit's name and a sentence that gives the reason.

    >>> choose_fit(np.array([640, 640, 480]), np.array([480, 480, 640]))[0]
    'crop'
    """
    widths, heights = np.asarray(widths, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    if not len(widths):
        raise ValueError("choose_fit needs at least one image size")
    ratios = np.maximum(widths, heights) / np.minimum(widths, heights)
    # An observed ratio, not one interpolated between two images, so that "90% of the images" is exact.
    most = float(np.quantile(ratios, 0.9, method="inverted_cdf"))
    shape = f"long side : short side is {np.median(ratios):.2f} in the median and up to {most:.2f} in 90% of the images"
    if most <= NEAR_SQUARE:
        return "squash", f"squash, since {shape}: stretching them to a square is hardly visible"
    if most <= HALF_LOST:
        return "crop", f"crop, since {shape}: the central square keeps at least {1 / most:.0%} of nine images in ten"
    return "letterbox", f"letterbox, since {shape}: a central crop would lose more than half of too many images"
