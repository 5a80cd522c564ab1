from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etude.core.errors import EtudeError
from etude.refine.base import normalised
from etude.refine.prior.correction import correct, parse_prior

CLASSES = ("ant", "bee", "cat")
SHARES = hnp.arrays(np.float64, 3, elements=st.floats(0.01, 1)).map(lambda shares: shares / shares.sum())
LOGITS = hnp.arrays(np.float64, (4, 3), elements=st.floats(-20, 20))


def test_uniform_and_estimate():
    np.testing.assert_allclose(parse_prior("uniform", CLASSES), 1 / 3)
    assert parse_prior("estimate", CLASSES) is None


@pytest.mark.parametrize(
    "given",
    [
        {"cat": 2, "ant": 1, "bee": 1},
        {"cat": 0.5, "ant": 0.25, "bee": 0.25},
        [10, 10, 20],
        np.array([1, 1, 2]),
        {"cat": 1e308, "ant": 5e307, "bee": 5e307},
    ],
)
def test_shares_and_counts(given: Any):
    np.testing.assert_allclose(parse_prior(given, CLASSES), [0.25, 0.25, 0.5])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", json.dumps({"bee": 3, "ant": 1, "cat": 0})),
        ("p.csv", "class,share\nbee,0.75\nant,.25\ncat,0\n"),
        ("p.csv", "bee, 30\nant, 10\n\ncat, 0\n"),
        ("P.CSV", "\ufeffclass,count\r\nbee,3\r\nant,1\r\ncat,0\r\n"),
    ],
)
def test_files(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    np.testing.assert_allclose(parse_prior(tmp_path / name, CLASSES), [0.25, 0.75, 0])
    np.testing.assert_allclose(parse_prior(str(tmp_path / name), CLASSES), [0.25, 0.75, 0])


@pytest.mark.each(
    ("given", "told"),
    [
        ("unifrom", "Did you mean 'uniform'"),
        ("prior.txt", "json or .csv"),
        ("missing.json", "does not exist"),
        ({"ant": 1, "bee": 1}, "lacks 'cat'"),
        ({"ant": 1, "bee": 1, "cat": 1, "cet": 1}, "Did you mean 'cat'"),
        ({"ant": 1, "bee": -1, "cat": 1}, "'bee' the share -1"),
        ({"ant": 1, "bee": float("nan"), "cat": 1}, "'bee' the share nan"),
        ({"ant": 1, "bee": "many", "cat": 1}, "'bee' the share 'many'"),
        ({"ant": 1, "bee": True, "cat": 1}, "'bee' the share True"),
        ([0, 0, 0], "at least one"),
        ([1, 2], "3 classes needs as many numbers, and got 2"),
    ],
)
def test_mistakes_are_told_in_one_sentence(given: Any, told: str):
    with pytest.raises(EtudeError, match=told) as caught:
        parse_prior(given, CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.each(
    ("name", "content", "told"),
    [
        ("p.json", "[1, 2, 3]", "an object"),
        ("p.json", "{}", "an object"),
        ("p.json", "{", "is not a readable prior"),
        ("p.json", '{"ant": 1, "ant": 2, "bee": 1, "cat": 1}', "'ant' more than once"),
        ("p.json", '{"ant": null, "bee": 1, "cat": 1}', "'ant' the share None"),
        ("p.csv", "", "two columns"),
        ("p.csv", "ant,1,2\n", "two columns"),
        ("p.csv", "class,n\nant,1\nant,1\nbee,1\ncat,1\n", "'ant' more than once"),
        ("p.csv", b"ant,1\nb\xffe,1\n", "is not a readable prior"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: str | bytes, told: str):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EtudeError, match=told) as caught:
        parse_prior(path, CLASSES)
    assert name in str(caught.value)


@given(LOGITS, SHARES, SHARES)
def test_correcting_there_and_back_changes_nothing(logits: np.ndarray, source: np.ndarray, target: np.ndarray):
    log_p = normalised(logits)
    np.testing.assert_allclose(correct(log_p, source, source), log_p, atol=1e-9)
    np.testing.assert_allclose(correct(correct(log_p, source, target), target, source), log_p, atol=1e-9)


@given(SHARES, SHARES)
def test_correcting_is_bayes_rule(source: np.ndarray, target: np.ndarray):
    likelihood = np.array([[0.2, 0.5, 0.1], [0.3, 0.3, 0.3]])  # of two images, under each class
    model, truth = (likelihood * prior / (likelihood @ prior)[:, None] for prior in (source, target))
    np.testing.assert_allclose(np.exp(correct(np.log(model), source, target)), truth, atol=1e-12)


def test_a_class_that_the_target_lacks_gets_nothing():
    out = correct(np.log([[0.9, 0.1]]), np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    np.testing.assert_array_equal(np.exp(out), [[0, 1]])


def test_a_class_that_the_source_lacks_is_refused():
    with pytest.raises(EtudeError, match="share was zero"):
        correct(np.log([[0.9, 0.1]]), np.array([1.0, 0.0]), np.array([0.5, 0.5]))
