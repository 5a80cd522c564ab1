"""What practitioners do after training, on anybody's predictions: no torch here, and nothing loads before its use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Public name -> module of this room. One line a name, sorted by module; no name may be that of a module, which would
# take its place once imported.
_HOMES = {
    "BalancedAssignment": "prior.assignment",
    "Refiner": "base",
    "average": "ensemble",
    "geometric_mean": "ensemble",
    "majority_vote": "ensemble",
    "rank_mean": "ensemble",
    "Temperature": "calibration",
    "VectorScaling": "calibration",
    "calibration_error": "calibration",
    "Chain": "chain",
    "DEFAULT_ORDER": "chain",
    "standard_steps": "chain_steps",
    "advice": "ensemble",
    "Ensemble": "ensemble",
    "blend_views": "ensemble",
    "forward_selection": "ensemble",
    "log_linear": "ensemble",
    "log_linear_weights": "ensemble",
    "mixture_weights": "ensemble",
    "select_ensemble": "ensemble",
    "KNN": "neighbours.knn",
    "LastLayer": "last_layer",
    "NeighbourIndex": "neighbours.index",
    "PriorCorrection": "prior.correction",
    "correct": "prior.correction",
    "parse_prior": "prior.correction",
    "Propagation": "propagation",
    "neighbour_graph": "propagation",
    "propagate": "propagation",
    "PseudoLabelRule": "pseudo_labels",
    "drift": "pseudo_labels",
    "greedy_soup": "soup",
    "Stacking": "stacking",
    "read_probabilities": "tables",
    "with_labels": "tables",
    "Thresholds": "thresholds",
    "ViewWeights": "views",
    "gain_by_views": "views",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'etude.refine' has no attribute {name!r}")
    return getattr(import_module(f"etude.refine.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
