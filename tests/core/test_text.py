"""Numbers, times, names, labels and ids as text; sentences and their parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.core.errors import EtudeError, error_text, listed, nearest, shown
from etude.core.files import digest_of
from etude.core.ids import IdMatch, match_ids, positive_class, similar_labels, spelled_as, spellings, tidy_label
from etude.core.images import resized
from etude.core.metrics import log_odds
from etude.core.prefetch import prefetch
from etude.core.seeds import derive_seed
from etude.core.tables import is_table
from etude.core.text import (
    counted,
    duration,
    file_size,
    in_words,
    moment,
    percent,
    plain_name,
    points,
    rough_duration,
    short_number,
    shortened,
    signed,
    toml,
    visible,
)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (short_number, {0: "0", 0.5: "0.5", 0.000123456: "1.23e-4", 0.001: "1e-3", 0.01: "0.01", 224: "224"}),
        (short_number, {65536: "65,536", 0.0099996: "0.01"}),
        (signed, {0.0968: "+0.0968", -0.00519: "−5.19e-3", 0.0: "0", None: ""}),
        (percent, {0.98549: "98.5%", None: "–"}),
        (points, {0.0225: "+2.25", -0.00125: "−0.12", None: ""}),
        (duration, {0.02: "0.02 s", 4.25: "4.2 s", 62.6: "1 min 3 s", 600: "10 min", 3725: "1 h 2 min"}),
        (duration, {190000: "2 d 4 h", None: "–"}),
        (rough_duration, {0.4: "<1 s", 59: "59 s", 600: "10 min", 9000: "2.5 h"}),
        (file_size, {912: "912 B", 1159936: "1.2 MB", 48e6: "48 MB", None: "–"}),
        (moment, {"2026-11-22T14:17:22+00:00": "2026-11-22 14:17 UTC", None: "–", "once": "once"}),
        (plain_name, {"log_loss": "log loss", "macro_f1": "macro F1", "labeled_share": "labeled share"}),
        (visible, {"a\x1b[31m\u202eb\nc [bold] é": r"a\x1b[31m\u202eb\nc [bold] é"}),
        (tidy_label, {" box ": "box", "e\u0301": "é"}),
        (is_table, {Path("train.CSV"): True, Path("train.xlsx"): False}),
    ],
)
def test_values_as_text(function: Any, expected: dict[Any, str]):
    assert {value: function(value) for value in expected} == expected


def test_counts_and_cut_names():
    assert counted(1, "image") == "1 image"
    assert counted(2624, "image") == "2,624 images"
    assert counted(2, "class", "classes") == "2 classes"
    assert shortened("defective", 16) == "defective"
    assert shortened("a very long class name", 9) == "a very l…"


def test_json_values_in_words_and_as_toml():
    assert in_words({"accuracy": 1, "log_loss": [0.12345678, True]}) == "accuracy 1, log loss 0.123457, yes"
    assert in_words(None) == in_words([]) == "none"
    assert toml({"lr": 0.1, "stages": ("head", None)}) == '{"lr" = 0.1, "stages" = ["head", "none"]}'


def test_parts_of_sentences():
    assert error_text(EtudeError("the table has no column 'label'")) == "the table has no column 'label'"
    assert error_text(OSError(28, "No space left", "run.json")) == "[Errno 28] No space left: 'run.json'"
    assert error_text(ValueError("bad shape")) == "ValueError: bad shape"
    assert error_text(MemoryError()) == "MemoryError"
    assert shown("a") == "'a'"
    assert shown([1] * 1_000, most=12) == "[1, 1, 1,..."
    assert shown(10**10_000) == "a very large int"
    assert nearest("defualt", ["default", "quick"]) == " Did you mean 'default'?"
    assert nearest("zzz", ["default", "quick"]) == ""
    assert listed(["a", "b", "c"], most=2) == "'a', 'b' and 1 more"


def test_ids_are_matched_with_and_without_folders_and_endings():
    assert match_ids(["a/1.png", "a/2.png"], ["2", "1", "3"]) == IdMatch([1, 0, -1], missing=["3"], extra=[])
    assert match_ids(["a/1.png", "b/1.png"], ["1"]).missing == ["1"]


def test_labels_that_differ_only_in_how_they_are_written():
    assert spellings(["box", "box ", " cat"]) == {"box ": "box"}
    assert spellings(["box ", "cat"], classes=["box", "cat"]) == {"box ": "box"}
    assert spelled_as(["dog", "box "], ["box", "cat"]) == ("dog", "box")
    names = ["box", "Box", "polar bear", "polar  bear", "cat", "1", "1.0"]
    assert similar_labels(names) == [("1", "1.0"), ("Box", "box"), ("polar  bear", "polar bear")]
    pairs = (("0", "1"), ("No", "Yes"), ("cat", "dog"))
    assert [positive_class(pair) for pair in pairs] == ["1", "Yes", None]


def test_small_tools():
    assert log_odds(np.log([[0.2, 0.8], [0.5, 0.5]])).round(2).tolist() == [[-1.39, 1.39], [0.0, 0.0]]
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert derive_seed(0, "split") != derive_seed(0, "augment")
    assert list(prefetch(abs, [-1, 2, -3], threads=2, ahead=2)) == [1, 2, 3]
    assert resized(np.array([0, 2, 4, 6], np.uint8).reshape(1, 2, 2, 1), 1).ravel().tolist() == [3]
