from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etude.core.errors import EtudeError
from etude.core.predictions import Predictions

# Any text, and the names of files that are not UTF-8.
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8) | st.binary(
    max_size=8
).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


def make(**changed: Any) -> Predictions:
    fields: dict[str, Any] = {
        "ids": ("a.jpg", "b.jpg", "c.jpg"),
        "classes": ("cat", "dog"),
        "logits": np.array([[[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 1.0], [5.0, 0.0]]]),
        "features": np.arange(12, dtype=np.float16).reshape(3, 4),
        "labels": np.array([0, 1, -1]),
    }
    return Predictions(**(fields | changed))


def same(one: Predictions, other: Predictions) -> bool:
    arrays = all(
        np.array_equal(getattr(one, name), getattr(other, name)) and _dtype(one, name) == _dtype(other, name)
        for name in ("logits", "features", "labels")
    )
    return arrays and one.ids == other.ids and one.classes == other.classes


def _dtype(predictions: Predictions, name: str) -> Any:
    value = getattr(predictions, name)
    return None if value is None else value.dtype


def test_probabilities_are_the_mean_over_views_of_the_softmax():
    made = make()
    softmax = np.exp(made.logits.astype(np.float64))
    softmax /= softmax.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(made.probabilities(), softmax.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(made.log_probabilities(), np.log(softmax.mean(axis=0)), rtol=1e-12)
    assert made.predicted().tolist() == [0, 1, 0]
    assert len(made) == 3


@given(hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)))
def test_probabilities_are_stable_for_any_finite_logits(logits: np.ndarray):
    made = Predictions(("a", "b", "c"), ("k", "l", "m", "n"), logits)
    np.testing.assert_allclose(made.probabilities().sum(axis=1), 1, rtol=1e-12)
    assert not np.isnan(made.log_probabilities()).any()
    best = made.probabilities()[np.arange(3), made.predicted()]
    np.testing.assert_array_equal(best, made.probabilities().max(axis=1))


def test_log_probabilities_stay_exact_where_probabilities_vanish():
    made = Predictions(("a",), ("x", "y"), np.array([[[0.0, -1000.0]]]))
    assert made.probabilities()[0, 1] == 0
    assert made.log_probabilities()[0, 1] == -1000


def test_arrays_are_read_only_copies():
    logits = np.zeros((1, 3, 2), np.float32)
    made = make(logits=logits)
    logits[:] = 7
    assert made.logits.max() == 0
    for array in (made.logits, made.features, made.labels):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    assert made.logits.dtype == np.float32
    assert made.labels is not None
    assert made.labels.dtype == np.int64


@pytest.mark.each(
    ("changed", "sentence"),
    [
        ({"ids": ()}, "at least one entry in ids"),
        ({"classes": ()}, "at least one entry in classes"),
        ({"ids": ("a.jpg", "b.jpg", "a.jpg")}, "ids must be unique.*'a.jpg'"),
        ({"classes": ("cat", "cat")}, "classes must be unique"),
        ({"ids": "abc"}, "ids must be a sequence of texts"),
        ({"ids": (1, 2, 3)}, "ids must be a sequence of texts"),
        ({"ids": ("a\0", "b", "c")}, "ids may not hold NUL .* rename"),
        ({"classes": ("a\ud800", "b")}, "classes may not hold NUL or half of a surrogate pair"),
        ({"logits": np.zeros((3, 2))}, r"shape \(views, 3, 2\)"),
        ({"logits": np.zeros((0, 3, 2))}, r"shape \(views, 3, 2\)"),
        ({"logits": np.zeros((1, 2, 3))}, r"shape \(views, 3, 2\)"),
        ({"logits": np.full((1, 3, 2), "x")}, "must be numbers"),
        ({"logits": np.full((1, 3, 2), 1e300)}, "'a.jpg' hold NaN or infinity"),
        ({"features": np.zeros((2, 4), np.float32)}, r"shape \(3, D\)"),
        ({"features": np.zeros((3, 4), np.float64)}, "float32 or float16"),
        ({"features": np.zeros((3, 0), np.float32)}, r"shape \(3, D\)"),
        ({"labels": np.array([0, 1])}, "labels must be 3 integers"),
        ({"labels": np.array([0.0, 1.0, 0.0])}, "labels must be 3 integers"),
        ({"labels": np.array([0, 2, 0])}, "label of 'b.jpg' is 2"),
        ({"labels": np.array([0, 1, -2])}, "label of 'c.jpg' is -2"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], sentence: str):
    with pytest.raises(EtudeError, match=sentence):
        make(**changed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_image_that_is_not_finite_is_named(value: float):
    logits = np.zeros((2, 3, 2))
    logits[1, 1, 0] = logits[0, 2, 1] = value
    with pytest.raises(EtudeError, match=r"logits of 'b.jpg' hold NaN or infinity \(2 of 3 images do\)"):
        make(logits=logits)
    features = np.zeros((3, 4), np.float32)
    features[2] = value
    with pytest.raises(EtudeError, match=r"features of 'c.jpg'"):
        make(features=features)


def test_take_follows_the_order_asked_for():
    made = make()
    taken = made.take([2, 0])
    assert taken.ids == ("c.jpg", "a.jpg")
    np.testing.assert_array_equal(taken.logits, made.logits[:, [2, 0]])
    assert taken.features is not None
    np.testing.assert_array_equal(taken.features[:, 0], [8, 0])
    assert taken.labels is not None
    assert taken.labels.tolist() == [-1, 0]
    assert same(made.take(np.array([True, False, True])), made.take([0, 2]))
    assert same(made.take(np.arange(3)), made)


def test_take_of_nothing_or_of_the_same_twice_is_refused():
    with pytest.raises(EtudeError, match="at least one entry"):
        make().take(np.zeros(3, bool))
    with pytest.raises(EtudeError, match="unique"):
        make().take([1, 1])


@given(ids=st.lists(NAMES, min_size=1, max_size=5, unique=True), classes=st.lists(NAMES, min_size=1, unique=True))
def test_any_names_survive_the_file(tmp_path_factory: pytest.TempPathFactory, ids: list[str], classes: list[str]):
    path = tmp_path_factory.mktemp("names") / "p.npz"
    made = Predictions(tuple(ids), tuple(classes), np.ones((2, len(ids), len(classes))))
    made.save(path)
    assert same(Predictions.load(path), made)


def test_everything_survives_the_file_and_nothing_else_is_left(tmp_path: Path):
    made = make()
    made.save(tmp_path / "new" / "valid.npz")
    again = Predictions.load(str(tmp_path / "new" / "valid.npz"))
    assert same(again, made)
    assert not again.logits.flags.writeable
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["valid.npz"]
    first = (tmp_path / "new" / "valid.npz").read_bytes()
    again.save(tmp_path / "new" / "valid.npz")
    assert (tmp_path / "new" / "valid.npz").read_bytes() == first


def test_without_features_and_labels(tmp_path: Path):
    made = make(features=None, labels=None)
    made.save(tmp_path / "p.npz")
    assert same(Predictions.load(tmp_path / "p.npz"), made)


def test_files_of_another_kind_are_refused(tmp_path: Path):
    path = tmp_path / "p.npz"
    with pytest.raises(EtudeError, match="does not exist"):
        Predictions.load(path)
    with pytest.raises(EtudeError, match="is not a readable file of predictions"):
        Predictions.load(tmp_path)
    for content in (b"", b"P", b"id,label\na,b\n", b"PK\x03\x04 then nothing"):
        path.write_bytes(content)
        with pytest.raises(EtudeError, match="is not a readable file of predictions"):
            Predictions.load(path)
    np.savez(path, images=np.zeros(3))
    with pytest.raises(EtudeError, match=r"lacks 'ids', 'classes', 'logits' \(it holds 'images'\)"):
        Predictions.load(path)
    np.savez(path, ids=np.arange(3), classes=np.array(["x", "y"]), logits=np.zeros((1, 3, 2)))
    with pytest.raises(EtudeError, match="'ids' must be a list of texts"):
        Predictions.load(path)
    np.savez(path, ids=np.array(["a", "b"]), classes=np.array(["x", "y"]), logits=np.zeros((1, 3, 2)))
    with pytest.raises(EtudeError, match=r"p.npz: logits must be"):
        Predictions.load(path)


def test_pickled_objects_are_never_loaded(tmp_path: Path):
    bomb = np.array(["a", object], dtype=object)
    np.savez(tmp_path / "p.npz", ids=bomb, classes=np.array(["x", "y"]), logits=np.zeros((1, 2, 2)))
    with pytest.raises(EtudeError, match="is not a readable file of predictions"):
        Predictions.load(tmp_path / "p.npz")


@given(where=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_read_unchanged(
    tmp_path_factory: pytest.TempPathFactory, where: float, value: int, cut: bool
):
    path = tmp_path_factory.mktemp("damage") / "p.npz"
    made = make(features=None, labels=None)
    made.save(path)
    content = bytearray(path.read_bytes())
    position = int(where * len(content))
    if cut:
        del content[position:]
    else:
        content[position] = value
    path.write_bytes(content)
    try:
        loaded = Predictions.load(path)
    except EtudeError:
        loaded = made
    assert same(loaded, made)


@given(hnp.arrays(np.float64, (3, 2), elements=st.floats(0, 1)).filter(lambda values: values.sum(axis=1).all()))
def test_probabilities_come_back(values: np.ndarray):
    made = Predictions.from_probabilities(["a", "b", "c"], ["x", "y"], values, labels=np.array([0, 1, -1]))
    expected = values / values.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(made.probabilities(), expected, atol=1e-4)
    assert made.logits.shape == (1, 3, 2)
    assert made.labels is not None


@pytest.mark.parametrize("row", [[-0.1, 1.1], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_what_is_no_probability_is_refused(row: list[float]):
    with pytest.raises(EtudeError, match="probabilities of 'b'"):
        Predictions.from_probabilities(["a", "b"], ["x", "y"], [[0.5, 0.5], row])


def test_probabilities_of_another_shape_are_refused():
    with pytest.raises(EtudeError, match=r"shape \(views, 1, 2\)"):
        Predictions.from_probabilities(["a"], ["x", "y"], [[0.5, 0.3, 0.2]])
    with pytest.raises(EtudeError, match=r"shape \(views, 2, 2\)"):
        Predictions.from_probabilities(["a", "b"], ["x", "y"], [[0.5, 0.5]])


def test_probabilities_of_nothing_are_refused():
    with pytest.raises(EtudeError, match="at least one entry in ids"):
        Predictions.from_probabilities([], [], np.zeros((0, 0)))
