"""The page of ``etude evaluate``: how a finished run fares on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from etude.core.images import thumbnail
from etude.journal.report import scores
from etude.journal.report.html import data_uri, render_page


def render_evaluation(
    name: str, lead: str, evaluated: scores.Evaluated, pictures: Callable[[Sequence[str]], np.ndarray]
) -> str:
    """Return the page; ``pictures`` gives the images (N, S, S, 3 or 1) uint8 with these ids."""
    errors = scores.confident_errors(evaluated, scores.MOST_ERRORS)
    shown = pictures([one.id for one in errors])
    values: dict[str, Any] = {
        **{"name": name, "kind": "labelled", "lead": lead},
        **{"scores": scores.scores_of(evaluated), "images": len(evaluated.labels)},
        "errors": [replace(one, source=data_uri(thumbnail(own))) for one, own in zip(errors, shown, strict=True)],
        **{"pair_pictures": (), "balance": None},
        **scores.of_classes(evaluated, "labelled"),
    }
    return render_page("evaluation.html.j2", values)
