from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from etude.core.context import Context
from etude.inference import predict as prediction
from etude.inference.predict import predict
from etude.inference.views import IDENTITY, input_size, many_views, views_of
from etude.models.backbones import TinyNet
from etude.models.classifier import Classifier, ModelCard, Preprocessing
from etude.models.features import extract_features

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
ROWS = np.array([4, 2, 8, 0, 1])
IDS = [f"image {row}" for row in ROWS]


def gather(rows: np.ndarray, size: int) -> np.ndarray:
    assert size == 16
    return PIXELS[rows]


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(TinyNet(3, widths=(4, 8, 16)), 16, 3).eval()


def card(policy: str = "photos") -> ModelCard:
    half = (0.5, 0.5, 0.5)
    return ModelCard("tiny", ("a", "b", "c"), Preprocessing(16, 16, "squash", 3, 3, half, half), "fp32", 1, policy)


def test_predictions_are_the_models_logits(model: Classifier):
    labels = np.array([0, 1, 2, 0, -1])
    found = predict(model, card(), gather, ROWS, IDS, context=Context(), labels=labels)
    with torch.inference_mode():
        expected = model(card().preprocessing.to_input(torch.from_numpy(PIXELS[ROWS]))).numpy()
    assert found.logits.shape == (1, 5, 3)
    np.testing.assert_allclose(found.logits[0], expected, rtol=1e-2, atol=5e-3)  # features are kept in float16
    assert found.ids == tuple(IDS)
    assert found.classes == ("a", "b", "c")
    assert found.labels is not None
    assert found.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("tta", [1, 2])
def test_known_features_give_exactly_the_same(model: Classifier, tta: int):
    known = extract_features(model.backbone, gather, ROWS, card().preprocessing, context=Context())
    options = {"context": Context(), "tta": tta}
    fresh = predict(model, card(), gather, ROWS, IDS, **options)
    cached = predict(model, card(), gather, ROWS, IDS, known_features=known, **options)
    np.testing.assert_array_equal(fresh.logits, cached.logits)
    assert fresh.features is not None
    assert cached.features is not None
    np.testing.assert_array_equal(fresh.features, cached.features)


def test_known_features_spare_the_network(model: Classifier):
    def forbidden(rows: np.ndarray, size: int) -> np.ndarray:
        raise AssertionError("no image is needed")

    known = np.zeros((5, 16), np.float16)
    found = predict(model, card(), forbidden, ROWS, IDS, context=Context(), known_features=known)
    np.testing.assert_allclose(found.logits[0], np.tile(model.head.bias.detach().numpy(), (5, 1)), rtol=1e-6)


def test_each_view_has_its_own_logits(model: Classifier):
    found = predict(model, card("symmetric"), gather, ROWS, IDS, context=Context(), tta=8)
    assert found.logits.shape == (8, 5, 3)
    for number, view in enumerate(views_of("symmetric", 8)):
        seen = predict(
            model, card(), lambda rows, size, view=view: view(gather(rows, size)), ROWS, IDS, context=Context()
        )
        np.testing.assert_array_equal(found.logits[number], seen.logits[0])
    plain = predict(model, card(), gather, ROWS, IDS, context=Context())
    np.testing.assert_array_equal(found.features, plain.features)  # type: ignore[arg-type]


@pytest.mark.parametrize(("policy", "asked", "views"), [("none", 7, 1), ("digits", 7, 7), ("photos", 3, 3)])
def test_views_go_on_beyond_the_symmetries(model: Classifier, policy: str, asked: int, views: int):
    found = predict(model, card(policy), gather, ROWS, IDS, context=Context(), tta=asked)
    assert found.logits.shape[0] == views
    same = predict(model, card(policy), gather, ROWS, IDS, context=Context(), views=many_views(policy, asked))
    np.testing.assert_array_equal(found.logits, same.logits)


def test_a_model_in_training_mode_predicts_the_same(model: Classifier):
    expected = predict(model, card(), gather, ROWS, IDS, context=Context())
    again = predict(model.train(), card(), gather, ROWS, IDS, context=Context())
    np.testing.assert_array_equal(again.logits, expected.logits)


def test_all_views_of_a_batch_are_made_from_one_gather(model: Classifier):
    asked: list[tuple[list[int], int]] = []

    def counted(rows: np.ndarray, size: int) -> np.ndarray:
        asked.append((rows.tolist(), size))
        return np.random.default_rng(size).integers(0, 256, (len(rows), size, size, 3), dtype=np.uint8)

    rows = np.arange(70)
    views = many_views("symmetric", 20, larger=1.25)
    found = predict(model, card(), counted, rows, [f"{row}" for row in rows], context=Context(), views=views)
    assert found.logits.shape == (20, 70, 3)
    parts = [list(range(start, stop)) for start, stop in ((0, 32), (32, 64), (64, 70))]
    assert sorted(asked) == sorted((part, size) for part in parts for size in (16, 20))


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_any_number_of_threads_makes_the_same(model: Classifier, monkeypatch: pytest.MonkeyPatch, cores: int):
    rows = np.arange(9).repeat(9)
    names = [str(row) for row in range(81)]
    options = {"context": Context(), "views": many_views("symmetric", 15)}
    expected = predict(model, card(), gather, rows, names, **options)
    monkeypatch.setattr("etude.inference.predict.usable_cores", lambda: cores)
    found = predict(model, card(), gather, rows, names, **options)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_batch_is_let_go_once_its_views_are_made(model: Classifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("etude.inference.predict.usable_cores", lambda: 2)
    read: list[weakref.ref[np.ndarray]] = []
    held: list[int] = []

    def watched(rows: np.ndarray, size: int) -> np.ndarray:
        found = PIXELS[rows % 9]
        read.append(weakref.ref(found))
        held.append(sum(batch() is not None for batch in read))
        return found

    rows = np.arange(640)
    predict(model, card(), watched, rows, [str(row) for row in rows], context=Context(), tta=4)
    assert len(read) == 20
    assert max(held) <= 4


def test_an_image_that_cannot_be_read_ends_the_prediction(model: Classifier):
    def broken(rows: np.ndarray, size: int) -> np.ndarray:
        if rows[0] == 32:
            raise OSError("the disk is gone")
        return PIXELS[rows % 9]

    rows, before = np.arange(100), threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        predict(model, card(), broken, rows, [str(row) for row in rows], context=Context(), tta=3)
    assert threading.active_count() == before


def test_each_of_many_views_has_the_logits_of_its_images(model: Classifier):
    pixels = np.random.default_rng(5).integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)

    def stored(rows: np.ndarray, size: int) -> np.ndarray:
        return pixels[rows, :size, :size]

    rows, names = np.arange(39), [f"{row}" for row in range(39)]
    views = many_views("photos", 12, larger=1.25)
    found = predict(model, card(), stored, rows, names, context=Context(), views=views)
    plain = predict(model, card(), stored, rows, names, context=Context())
    np.testing.assert_array_equal(found.logits[0], plain.logits[0])
    np.testing.assert_array_equal(found.features, plain.features)  # type: ignore[arg-type]
    for number, view in enumerate(views):
        images = view(stored(rows, input_size(view, 16)))
        with torch.inference_mode():
            expected = model(card().preprocessing.to_input(torch.from_numpy(images))).numpy()
        np.testing.assert_allclose(found.logits[number], expected, rtol=1e-2, atol=5e-3)


def test_known_features_spare_the_plain_view_alone(model: Classifier):
    views = many_views("photos", 6)
    fresh = predict(model, card(), gather, ROWS, IDS, context=Context(), views=views)
    cached = predict(model, card(), gather, ROWS, IDS, context=Context(), views=views, known_features=fresh.features)
    np.testing.assert_array_equal(fresh.logits, cached.logits)
    turned = predict(
        model, card(), gather, ROWS, IDS, context=Context(), views=views[1:], known_features=fresh.features
    )
    np.testing.assert_array_equal(turned.logits, fresh.logits[1:])
    assert views[0] == IDENTITY


def with_another_head(model: Classifier) -> Classifier:
    model.set_head(np.full((3, 16), 0.5, np.float32), np.arange(3, dtype=np.float32))
    return model


def forbidden(rows: np.ndarray, size: int) -> np.ndarray:
    raise AssertionError("no image is needed")


def test_a_frozen_network_sees_each_view_once(model: Classifier, tmp_path: Path):
    options = {"context": Context(cache=tmp_path), "tta": 4, "store": "images"}
    first = predict(model, card(), gather, ROWS, IDS, **options)
    np.testing.assert_array_equal(first.logits, predict(model, card(), gather, ROWS, IDS, tta=4).logits)
    again = predict(model, card(), forbidden, ROWS, IDS, **options)
    np.testing.assert_array_equal(again.logits, first.logits)
    np.testing.assert_array_equal(again.features, first.features)
    other = predict(with_another_head(model), card(), forbidden, ROWS, IDS, **options)
    np.testing.assert_array_equal(other.logits, predict(model, card(), gather, ROWS, IDS, tta=4).logits)
    fewer = predict(model, card(), forbidden, ROWS, IDS, **{**options, "tta": 2})
    np.testing.assert_array_equal(fewer.logits, other.logits[:2])


@pytest.mark.parametrize("change", ["store", "rows", "policy", "weights", "levels"])
def test_features_of_something_else_are_not_taken(model: Classifier, tmp_path: Path, change: str):
    options = {"context": Context(cache=tmp_path), "tta": 2}
    predict(model, card(), gather, ROWS, IDS, store="images", **options)
    if change == "weights":
        with torch.no_grad():
            next(model.backbone.parameters()).mul_(2)
    rows = ROWS[::-1].copy() if change == "rows" else ROWS
    described = card("symmetric") if change == "policy" else replace(card(), levels=1) if change == "levels" else card()
    found = predict(model, described, gather, rows, IDS, store="others" if change == "store" else "images", **options)
    np.testing.assert_array_equal(found.logits, predict(model, described, gather, rows, IDS, tta=2).logits)
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_a_damaged_file_of_features_is_made_anew(model: Classifier, tmp_path: Path):
    options = {"context": Context(cache=tmp_path), "tta": 2, "store": "images"}
    first = predict(model, card(), gather, ROWS, IDS, **options)
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(b"nothing")
    again = predict(model, card(), gather, ROWS, IDS, **options)
    np.testing.assert_array_equal(again.logits, first.logits)
    np.testing.assert_array_equal(predict(model, card(), forbidden, ROWS, IDS, **options).logits, first.logits)


def test_features_beyond_the_limit_are_not_kept(model: Classifier, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prediction, "_MOST_KEPT", 2 * 2 * 5 * 16 - 1)
    predict(model, card(), gather, ROWS, IDS, context=Context(cache=tmp_path), tta=2, store="images")
    assert not (tmp_path / "features").exists()
