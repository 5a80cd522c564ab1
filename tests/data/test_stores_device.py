"""Images in a device's memory: the CPU stands in for the GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.storing import build, smooth, write_images
from etude.data.stores.device import DeviceStore, fits_on_device, resized_on_device
from etude.functional.augment_tensor import area_weights


def test_a_device_store_gathers_tensors(tmp_path: Path, progress) -> None:
    raw = build(write_images(tmp_path / "in", 5, 12), tmp_path / "cache", 12, kind="raw").store
    store = DeviceStore(raw, "cpu", progress)
    assert progress.bars["copy to cpu"] == [5, 5]
    for rows in ([3, 1], np.array([3, 1]), torch.tensor([3, 1])):
        for size in (12, 7, 20):
            tensor = store.gather_tensor(rows, size)
            assert tensor.dtype == torch.uint8
            assert tensor.is_contiguous()
            np.testing.assert_array_equal(tensor.numpy(), store.gather([3, 1], size))


def test_a_device_store_resizes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = build(write_images(tmp_path / "in", 5, 12), tmp_path / "cache", 12, kind="raw").store
    expected = DeviceStore(raw, "cpu").gather(range(5), 7)
    monkeypatch.setattr("etude.data.stores.device._RESIZED_AT_ONCE", 1)
    monkeypatch.setattr("etude.data.stores.device._COPIED_AT_ONCE", 900)
    np.testing.assert_array_equal(DeviceStore(raw, "cpu").gather(range(5), 7), expected)


def test_autocast_does_not_blur_resizing() -> None:
    images = torch.from_numpy(np.stack([smooth(0, 40, 3)]))
    expected = resized_on_device(images, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resized_on_device(images, 17), expected)


def test_what_fits_on_a_device(tmp_path: Path) -> None:
    store = build(write_images(tmp_path / "in", 4, 10), tmp_path / "cache", 10, kind="raw").store
    assert fits_on_device(store, "cpu", free=3000) == (True, "the images (1.2 kB) fit in 40% of the 3.0 kB free on cpu")
    fits, told = fits_on_device(store, "cpu", free=2999)
    assert not fits
    assert told == "the images (1.2 kB) stay on disk: they would take more than 40% of the 3.0 kB free on cpu"
    assert fits_on_device(store, "cpu")[0], "1.2 kB, and the machine is asked"
    assert fits_on_device(store, "meta") == (
        False, "the images stay on disk: meta does not tell how much memory it has free",
    )  # fmt: skip


@given(st.integers(1, 64), st.integers(1, 64))
def test_areas_are_shared_out_whole(source: int, target: int) -> None:
    weights = area_weights(max(source, target), min(source, target))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(0), min(source, target) / max(source, target), rtol=1e-4)
    assert (weights >= 0).all()
