"""What every store promises, whatever it keeps its images in."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.storing import KINDS, build, write_images
from etude.core.errors import EtudeError
from etude.data.sources import ImageSet
from etude.data.stores import formats as blosc
from etude.data.stores.device import DeviceStore
from etude.data.stores.disk import DamagedStoreError, Store, checked_rows
from etude.data.stores.formats import RawStore

COUNT, SIZE = 9, 48
SIZES = (SIZE, 32, 24, 11, 60)
# Largest mean and single difference from the raw store's pixels, of 255.
TOLERANCES = {"raw": (0, 0), "blosc2": (0, 0), "encoded": (4, 32), "device": (1, 1)}


@dataclass(frozen=True)
class Case:
    """A store, the raw store of the same images, and how both came about."""

    kind: str
    store: Store
    raw: Store
    images: ImageSet
    cache: Path


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def channels(request) -> int:
    return request.param


@pytest.fixture(scope="module", params=[*KINDS, "device"])
def case(request, channels: int, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("contract")
    images = write_images(folder / "in", COUNT, SIZE, channels)
    raw = build(images, folder / "cache", SIZE, kind="raw").store
    if request.param == "device":
        return Case("device", DeviceStore(raw, "cpu"), raw, images, folder / "cache")
    store = build(images, folder / "cache", SIZE, kind=request.param).store
    return Case(request.param, store, raw, images, folder / "cache")


def test_its_description(case: Case, channels: int) -> None:
    store = case.store
    assert (len(store), store.size, store.channels, store.kind) == (COUNT, SIZE, channels, case.kind)
    assert (store.folder / "store.json").is_file()


@pytest.mark.each("size", SIZES)
def test_rows_in_any_order_and_repeated(case: Case, channels: int, size: int) -> None:
    one_by_one = [case.store.gather([row], size)[0] for row in range(COUNT)]
    for rows in ([5, 0, 5], np.array([8, 7], np.int32), range(COUNT), []):
        gathered = case.store.gather(rows, size)
        assert gathered.shape == (len(rows), size, size, channels)
        assert gathered.dtype == np.uint8
        assert gathered.flags.c_contiguous
        for pixels, row in zip(gathered, rows, strict=True):
            np.testing.assert_array_equal(pixels, one_by_one[row])


@pytest.mark.each("size", SIZES)
def test_pixels_are_those_of_the_raw_store(case: Case, size: int) -> None:
    rows = np.arange(COUNT)
    difference = np.abs(case.store.gather(rows, size).astype(int) - case.raw.gather(rows, size))
    mean, single = (0, 0) if case.kind == "device" and size == SIZE else TOLERANCES[case.kind]
    assert difference.mean() <= mean
    assert difference.max() <= single


def test_what_is_gathered_is_the_callers_own(case: Case) -> None:
    before = case.store.gather([1], SIZE)
    case.store.gather([1], SIZE)[:] = 0
    np.testing.assert_array_equal(case.store.gather([1], SIZE), before)


@pytest.mark.each("rows", [[COUNT], [0, -1], [1.0], [[1]], np.ones(COUNT, bool)], ids=str)
@pytest.mark.each("size", [SIZE, 20])
def test_rows_that_are_not_there(case: Case, rows, size: int) -> None:
    with pytest.raises(IndexError):
        case.store.gather(rows, size)


def test_the_size_at_which_it_is_cheapest_to_read(case: Case) -> None:
    for size, encoded in {1: 6, 6: 6, 7: 12, 12: 12, 13: 24, 24: 24, 25: 48, 48: 48, 60: 48}.items():
        source = case.store.source_size(size)
        assert source == (encoded if case.kind == "encoded" else SIZE)
        assert source >= min(size, SIZE)


def test_it_travels_as_its_path(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pickle.dumps(case.store)
    assert len(packed) < 700
    monkeypatch.chdir("/")
    again = pickle.loads(packed)
    assert again.kind == case.kind
    assert again.folder == case.store.folder
    np.testing.assert_array_equal(again.gather([1, 3], 20), case.store.gather([1, 3], 20))


def test_threads_gather_at_once(case: Case) -> None:
    rows = [np.random.default_rng(seed).integers(0, COUNT, 40) for seed in range(4)]
    expected = [case.store.gather(chosen, SIZE) for chosen in rows]
    gathered: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda at=at: gathered.update({at: case.store.gather(rows[at], SIZE)}))
        for at in range(len(rows))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, pixels in enumerate(expected):
        np.testing.assert_array_equal(gathered[at], pixels)


def test_a_reopened_store_is_the_built_one(case: Case) -> None:
    kept = case.raw if case.kind == "device" else case.store
    reopened = blosc.KINDS[kept.kind](case.store.folder)
    np.testing.assert_array_equal(reopened.gather(range(COUNT), SIZE), kept.gather(range(COUNT), SIZE))
    again = build(case.images, case.cache, SIZE, kind=reopened.kind)
    assert again.reused
    assert again.kind == again.store.kind == reopened.kind
    assert again.kind_reason.endswith("already there")


@pytest.mark.parametrize("kind", ["blosc2", "encoded"])
def test_a_row_that_is_damaged_after_it_was_checked(kind: str, tmp_path: Path) -> None:
    store = build(write_images(tmp_path / "in", 2, 12), tmp_path / "cache", 12, kind=kind).store
    with (store.folder / "rows.bin").open("r+b") as file:
        file.write(b"\xff" * 40)
    with pytest.raises(DamagedStoreError, match="row 0"):
        store.gather([1, 0], 12)


def test_without_blosc2_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    images = write_images(tmp_path / "in", 2, 12)
    blosc.blosc2_module.cache_clear()
    monkeypatch.setattr(blosc.importlib, "import_module", missing)
    with pytest.raises(EtudeError, match=r'pip install "etude\[blosc2\]"'):
        build(images, tmp_path / "cache", 12, kind="blosc2")
    assert not (tmp_path / "cache" / "stores").exists()


def test_colours_keep_their_order_as_jpeg(tmp_path: Path) -> None:
    def red(number: int, side: int, channels: int) -> np.ndarray:
        return np.broadcast_to(np.array([230, 120, 10], np.uint8), (side, side, channels)).copy()

    store = build(write_images(tmp_path / "in", 1, 32, draw=red), tmp_path / "cache", 32, kind="encoded").store
    for size in (32, 16, 8):
        assert np.abs(store.gather([0], size).astype(int) - [230, 120, 10]).max() <= 3


def test_a_side_that_two_does_not_divide_is_decoded_whole(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 2, 45)
    raw, encoded = (build(images, tmp_path / "cache", 45, kind=kind).store for kind in ("raw", "encoded"))
    assert encoded.source_size(8) == 45
    assert np.abs(encoded.gather([0, 1], 23).astype(int) - raw.gather([0, 1], 23)).max() <= 8


def test_raw_pixels_are_resized_as_opencv_does(tmp_path: Path) -> None:
    store = build(write_images(tmp_path / "in", 2, 16), tmp_path / "cache", 16, kind="raw").store
    whole = store.gather([0], 16)[0]
    for size, method in ((8, cv2.INTER_AREA), (11, cv2.INTER_AREA), (24, cv2.INTER_CUBIC)):
        expected = cv2.resize(whole, (size, size), interpolation=method)
        np.testing.assert_array_equal(store.gather([0], size)[0], expected)


@given(st.lists(st.integers(-3, 12)), st.integers(1, 9))
def test_rows_are_checked(rows: list[int], count: int) -> None:
    if all(0 <= row < count for row in rows):
        assert checked_rows(rows, count).tolist() == rows
    else:
        with pytest.raises(IndexError):
            checked_rows(rows, count)


def test_the_raw_store_has_no_other_kind(tmp_path: Path) -> None:
    folder = build(write_images(tmp_path / "in", 2, 12), tmp_path / "cache", 12, kind="encoded").store.folder
    with pytest.raises(DamagedStoreError, match="not those of a raw store"):
        RawStore(folder)
