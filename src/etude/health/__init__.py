"""The health of a data set: near-duplicates, label errors, shift between sets, leaks, damaged files."""

from __future__ import annotations

from etude.health.duplicates import near_duplicates
from etude.health.label_errors import suspect_labels
from etude.health.shift import dataset_shift

__all__ = ["dataset_shift", "near_duplicates", "suspect_labels"]
