from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from etude.core.context import Context
from etude.models.backbones import TinyNet
from etude.models.classifier import Preprocessing
from etude.models.features import cached, extract_features, extract_views, weights_digest

Gather = Callable[[np.ndarray, int], np.ndarray]


@pytest.fixture
def net(lively) -> nn.Module:
    torch.manual_seed(0)
    return lively(TinyNet(3, widths=(4, 8, 16)))


def directly(net: nn.Module, preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net(preprocessing.to_input(torch.from_numpy(images))).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 10, 32])
def test_features_are_those_of_a_direct_pass_in_the_order_asked_for(
    net: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray, gather: Gather, batch_size: int
):
    rows = np.array([7, 0, 3, 3, 9, 1, 2])
    features = extract_features(net, gather, rows, preprocessing, context=Context(), batch_size=batch_size)
    assert (features.shape, features.dtype) == ((7, 16), np.float16)
    np.testing.assert_allclose(features, directly(net, preprocessing, pixels[rows]), rtol=2e-3, atol=1e-3)
    assert len(np.unique(features, axis=0)) == 6


def test_one_batch_is_exactly_a_direct_pass(
    net: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray, gather: Gather
):
    features = extract_features(net, gather, np.arange(10), preprocessing, context=Context())
    np.testing.assert_array_equal(features, directly(net, preprocessing, pixels).astype(np.float16))


def test_bfloat16_is_close(net: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray, gather: Gather):
    rows = np.arange(10)
    exact, rough = (
        extract_features(net, gather, rows, preprocessing, context=Context(), precision=precision).astype(np.float64)
        for precision in ("fp32", "bf16")
    )
    assert 0 < np.linalg.norm(rough - exact) < 0.02 * np.linalg.norm(exact)


def test_a_network_left_in_training_mode_is_frozen_all_the_same(
    net: nn.Module, preprocessing: Preprocessing, gather: Gather
):
    expected = extract_features(net, gather, np.arange(10), preprocessing, context=Context())
    before = weights_digest(net)
    again = extract_features(net.train(), gather, np.arange(10), preprocessing, context=Context())
    np.testing.assert_array_equal(again, expected)
    assert weights_digest(net) == before


def test_no_rows_give_no_features(net: nn.Module, preprocessing: Preprocessing, gather: Gather):
    assert len(extract_features(net, gather, np.arange(0), preprocessing, context=Context())) == 0


def test_progress_counts_every_image(net: nn.Module, preprocessing: Preprocessing, gather: Gather):
    counts: dict[str, list[int]] = {}

    class Counting:
        @contextmanager
        def bar(self, name: str, total: int, unit: str = "images"):
            counts[name] = [total]
            yield lambda count=1: counts[name].append(count)

    extract_features(net, gather, np.arange(10), preprocessing, context=Counting(), batch_size=4, name="look")  # type: ignore[arg-type]
    assert counts == {"look": [10, 4, 4, 2]}


def test_an_error_while_gathering_reaches_the_caller(net: nn.Module, preprocessing: Preprocessing):
    def broken(rows: np.ndarray, size: int) -> np.ndarray:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        extract_features(net, broken, np.arange(3), preprocessing, context=Context())


def test_images_are_asked_for_at_the_size_of_the_preprocessing(net: nn.Module, preprocessing: Preprocessing):
    sizes: list[int] = []

    def gather(rows: np.ndarray, size: int) -> np.ndarray:
        sizes.append(size)
        return np.zeros((len(rows), size, size, 3), np.uint8)

    larger = dataclasses.replace(preprocessing, size=24)
    extract_features(net, gather, np.arange(5), larger, context=Context(), batch_size=2)
    assert sizes == [24, 24, 24]


class Counted:
    """Features that count how often they are computed."""

    def __init__(self, rows: int = 4) -> None:
        self.values = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float16)
        self.times = 0

    def __call__(self) -> np.ndarray:
        self.times += 1
        return self.values


def test_features_in_the_cache_are_used_again(tmp_path: Path):
    path, compute = tmp_path / "cache" / "features.npz", Counted()
    first, from_cache = cached(path, compute, 4)
    assert not from_cache
    again, from_cache = cached(path, compute, 4)
    assert from_cache
    assert compute.times == 1
    np.testing.assert_array_equal(first, compute.values)
    np.testing.assert_array_equal(again, compute.values)
    assert again.dtype == np.float16
    assert [entry.name for entry in path.parent.iterdir()] == ["features.npz"]


@pytest.mark.parametrize("damage", ["empty", "cut short", "cut to a few bytes", "text", "flipped bits", "other array"])
def test_a_damaged_cache_entry_is_made_anew(tmp_path: Path, damage: str):
    path, compute = tmp_path / "features.npz", Counted(4)
    cached(path, compute, 4)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "empty": b"",
        "cut short": whole[:-30],
        "cut to a few bytes": whole[:10],
        "text": b"this is no array at all",
        "flipped bits": whole[:150] + bytes(255 - byte for byte in whole[150:middle]) + whole[middle:],
    }
    if damage == "other array":
        np.savez(path, something=np.zeros(4))
    else:
        path.write_bytes(damaged[damage])
    features, from_cache = cached(path, compute, 4)
    assert not from_cache
    np.testing.assert_array_equal(features, compute.values)
    assert cached(path, compute, 4)[1]
    assert compute.times == 2


def test_features_of_another_number_of_rows_are_made_anew(tmp_path: Path):
    path = tmp_path / "features.npz"
    cached(path, Counted(4), 4)
    features, from_cache = cached(path, Counted(6), 6)
    assert (len(features), from_cache) == (6, False)
    assert cached(path, Counted(6), 6)[1]


class Pixels(nn.Module):
    """A network whose features are its input's channels, at the size it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen += len(image)
        return (image * self.scale).flatten(1)


def moved(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
    """Shifts each image by its own number of rows; samples each second pixel of larger ones."""
    every = images.shape[1] // size
    shifts = rng.integers(0, round(8 * strength), len(images))
    return np.stack([np.roll(image[::every, ::every], by, 0) for image, by in zip(images, shifts, strict=True)])


def stored(rows: np.ndarray, size: int) -> np.ndarray:
    """Images of 100 rows that tell their row in every pixel, at any size."""
    base = np.arange(size * size * 3).reshape(size, size, 3) * 7
    return ((base + 31 * rows[:, None, None, None]) % 256).astype(np.uint8)


def views(net: nn.Module, preprocessing: Preprocessing, cache: Path, **options: object) -> np.ndarray:
    settings = {"augment": moved, "policy": "moved", "views": 3, "data": "images"}
    context = Context(cache=cache, seed=options.pop("seed", 0))  # type: ignore[arg-type]
    return extract_views(net, stored, np.arange(90), preprocessing, context=context, **{**settings, **options})  # type: ignore[arg-type]


def test_the_first_view_is_plain_and_the_others_differ(preprocessing: Preprocessing, tmp_path: Path):
    found = views(Pixels(), preprocessing, tmp_path)
    assert (found.shape, found.dtype) == ((3, 90, 16 * 16 * 3), np.float16)
    plain = extract_features(Pixels(), stored, np.arange(90), preprocessing, context=Context())
    np.testing.assert_array_equal(found[0], plain)
    assert (found[1] != found[0]).any(1).mean() > 0.5
    assert (found[2] != found[1]).any(1).mean() > 0.5
    np.testing.assert_array_equal(np.sort(found[1], axis=1), np.sort(found[0], axis=1))  # moved, nothing else


def test_views_do_not_depend_on_the_batch_size(preprocessing: Preprocessing, tmp_path: Path):
    found = [views(Pixels(), preprocessing, tmp_path / str(size), batch_size=size) for size in (1, 32, 50, 64, 128)]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    assert (views(Pixels(), preprocessing, tmp_path / "seed", seed=1)[1] != found[0][1]).any()


def test_more_views_take_up_those_that_are_there(preprocessing: Preprocessing, tmp_path: Path):
    first, again = Pixels(), Pixels()
    two = views(first, preprocessing, tmp_path, views=2)
    five = views(again, preprocessing, tmp_path, views=5)
    assert (first.seen, again.seen) == (2 * 90, 3 * 90)
    np.testing.assert_array_equal(five[:2], two)
    for changed in ({"policy": "other"}, {"seed": 1}, {"data": "others"}, {"source_size": lambda size: 2 * size}):
        other = Pixels()
        views(other, preprocessing, tmp_path, views=2, **changed)
        assert other.seen == 2 * 90, changed


def test_a_plain_view_that_is_known_is_not_computed(preprocessing: Preprocessing, tmp_path: Path):
    net, plain = Pixels(), np.zeros((90, 768), np.float16)
    found = views(net, preprocessing, tmp_path, plain=plain)
    assert net.seen == 2 * 90
    np.testing.assert_array_equal(found[0], plain)


def test_views_are_sampled_from_the_source_size(preprocessing: Preprocessing, tmp_path: Path):
    asked: list[tuple[int, int]] = []

    def augment(images: np.ndarray, strength: float, rng: np.random.Generator, size: int) -> np.ndarray:
        asked.append((images.shape[1], size))
        assert strength == 1.0
        return moved(images, strength, rng, size)

    views(Pixels(), preprocessing, tmp_path, views=2, augment=augment, source_size=lambda size: 2 * size)
    assert set(asked) == {(32, 16)}


def test_the_digest_sees_every_value_and_name():
    torch.manual_seed(0)
    net = TinyNet(3, widths=(4, 8, 16))
    digest = weights_digest(net)
    assert weights_digest(net.to(memory_format=torch.channels_last)) == digest  # type: ignore[call-overload]
    net.blocks[2].norm2.running_var[3] += 1e-6
    assert weights_digest(net) != digest
    linear = nn.Linear(2, 2)
    renamed = nn.Module()
    renamed.register_parameter("weights", linear.weight)
    renamed.register_parameter("bias", linear.bias)
    assert weights_digest(renamed) != weights_digest(linear)
