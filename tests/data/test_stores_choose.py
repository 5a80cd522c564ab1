"""Which kind of store is chosen, and the sentence that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.storing import build, flat, smooth, write_images
from etude.core.context import Context, Silent
from etude.core.errors import EtudeError
from etude.core.text import file_size
from etude.data.scan import scan_images
from etude.data.sources import ImageSet
from etude.data.stores import choose
from etude.data.stores.choose import Room, choose_kind
from etude.data.stores.formats import Blosc2Store, bytes_per_second
from etude.data.stores.partial import Decoding

COUNT, SIDE = 20, 32
RAW = COUNT * SIDE * SIDE * 3
PLENTY = 10**9


@pytest.fixture
def photos(tmp_path: Path) -> ImageSet:
    return write_images(tmp_path / "photos", COUNT, SIDE, draw=smooth)


@pytest.fixture
def drawings(tmp_path: Path) -> ImageSet:
    return write_images(tmp_path / "drawings", COUNT, SIDE, draw=flat)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is quick, however busy the machine is, and these few images count as many."""
    monkeypatch.setattr(choose, "bytes_per_second", lambda chunks, shape: 1e9)
    monkeypatch.setattr(choose, "SMALL", 0)


def decoding(images: ImageSet) -> Decoding:
    return Decoding(images, scan_images(images, Silent()), SIDE, "squash", Context(), threads=1)


def chosen(images: ImageSet, *, asked: str = "auto", free: int = PLENTY, limit: int | None = None) -> tuple[str, str]:
    return choose_kind(decoding(images), asked, Room(free, limit, Path("/cache/stores")))


def test_photos_stay_raw(photos: ImageSet) -> None:
    kind, told = chosen(photos)
    assert kind == "raw"
    assert told.startswith("raw: 61 kB, and a sample compresses only 1.")
    assert told.endswith("x")


def test_drawings_are_compressed(drawings: ImageSet) -> None:
    kind, told = chosen(drawings)
    assert kind == "blosc2"
    assert "since raw would take 61 kB and a sample compresses " in told


def test_compression_that_reads_slowly_is_not_taken(drawings: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "bytes_per_second", lambda chunks, shape: 4_999 * 128 * 128 * 3)
    kind, told = chosen(drawings)
    assert kind == "raw"
    assert told.endswith("x but reads at only 4,999 images/s of 128 px")
    assert chosen(drawings, limit=RAW - 1)[0] == "blosc2", "better than JPEG all the same"


def test_for_few_bytes_nothing_is_measured(drawings: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "SMALL", RAW)
    monkeypatch.setattr(choose, "sample_rows", None)
    assert chosen(drawings) == ("raw", "raw: 61 kB")
    monkeypatch.setattr(choose, "SMALL", RAW - 1)
    monkeypatch.setattr(choose, "sample_rows", lambda *words: [])
    assert chosen(drawings)[1].startswith("raw: 61 kB, and no sampled image")


def test_without_blosc2_nothing_is_measured(drawings: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "has_blosc2", lambda: False)
    monkeypatch.setattr(choose, "sample_rows", None)
    assert chosen(drawings) == ("raw", "raw: 61 kB")


@pytest.mark.parametrize(
    ("limit", "free", "kind"),
    [
        (RAW, PLENTY, "raw"),
        (RAW - 1, PLENTY, "encoded"),
        (None, 2 * RAW, "raw"),
        (None, 2 * RAW - 1, "encoded"),
        (PLENTY, RAW - 1, "encoded"),
    ],
)
def test_the_limit_is_the_users_or_half_of_the_free_space(
    photos: ImageSet, limit: int | None, free: int, kind: str
) -> None:
    got, told = chosen(photos, limit=limit, free=free)
    assert got == kind
    if kind == "encoded":
        assert " kB, since raw would take 61 kB of at most " in told


def test_what_does_not_fit_raw_is_compressed_where_that_fits(
    drawings: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, told = chosen(drawings, limit=RAW // 2)
    assert kind == "blosc2"
    assert told.endswith("since raw would take 61 kB of at most 31 kB")
    monkeypatch.setattr(choose, "has_blosc2", lambda: False)
    assert chosen(drawings, limit=RAW // 2)[0] == "encoded"


@pytest.mark.parametrize("asked", ["auto", "raw", "blosc2", "encoded"])
def test_what_does_not_fit_at_all_is_refused_with_numbers(photos: ImageSet, asked: str) -> None:
    with pytest.raises(EtudeError) as told:
        chosen(photos, asked=asked, limit=2000)
    sentence = str(told.value)
    assert sentence.startswith("20 images of 32 px take 61 kB as raw, ")
    assert " as blosc2, " in sentence
    assert " as encoded, but the limit in /cache/stores is 2.0 kB: raise data.cache_limit, " in sentence


def test_a_full_disk_is_refused_with_numbers(photos: ImageSet) -> None:
    with pytest.raises(EtudeError, match=r"but the free disk space to be used in .* is 1.0 kB"):
        chosen(photos, free=2000)


def test_what_is_asked_for_is_taken(photos: ImageSet, drawings: ImageSet) -> None:
    assert chosen(drawings, asked="raw") == ("raw", "raw: 61 kB, as asked for")
    assert chosen(photos, asked="blosc2") == ("blosc2", "blosc2, as asked for")
    assert chosen(photos, asked="encoded") == ("encoded", "encoded, as asked for")
    assert chosen(photos, asked="raw", free=RAW)[0] == "raw", "the user may fill the disk"
    kind, told = chosen(photos, asked="encoded", limit=RAW - 1)
    assert kind == "encoded"
    assert told.endswith(" kB, as asked for"), "measured, since raw would not fit"


def test_no_sampled_image_can_be_decoded(photos: ImageSet) -> None:
    for path in photos.paths:
        path.write_bytes(path.read_bytes()[:100])
    assert chosen(photos) == ("raw", "raw: 61 kB, and no sampled image can be decoded")


def test_few_images_are_sampled(photos: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counting(work, most):
        counts.append(most)
        return sample(work, most)

    sample = choose.sample_rows
    monkeypatch.setattr(choose, "sample_rows", counting)
    chosen(photos)
    many = photos.take(list(range(COUNT)) * 500)
    chosen(many)
    assert counts == [16, 64]


def test_the_estimate_is_near(
    drawings: ImageSet, photos: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_LEAST_SAMPLED", COUNT)
    for images, kind in ((drawings, "blosc2"), (photos, "encoded"), (photos, "blosc2")):
        built = build(images, tmp_path / "cache" / images.root.name, SIDE, kind=kind)
        expected = choose.Sizes(decoding(images)).expected(type(built.store))
        assert expected == built.store.record.total_bytes


def test_reading_is_timed() -> None:
    row = flat(1, SIDE, 3)
    speed = bytes_per_second([Blosc2Store.encode(row)] * 4, row.shape)
    assert 1e5 < speed < 1e12


def test_amounts_in_words() -> None:
    told = {
        999: "999 B",
        1000: "1.0 kB",
        9_940: "9.9 kB",
        9_960: "10 kB",
        999_600: "1.0 MB",
        5 * 10**15: "5,000 TB",
    }
    assert {count: file_size(count) for count in told} == told
