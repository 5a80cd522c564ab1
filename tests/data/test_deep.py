"""Images deeper than 8 bits and TIFF files of many kinds: read right, or named for what they are."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from data.tiffs import tiff
from etude.data.decode import UnreadableImage, decode, read_header

RANGES = {"u": (0.0, 4095.0), "i": (0.0, 4095.0), "f": (0.0, 1.0)}


def gradient(height: int, width: int, bands: int, kind: str) -> np.ndarray:
    """Return (H, W, bands) values over a good part of the range; every band and corner differs."""
    y, x = np.mgrid[0:height, 0:width]
    share = (y[..., None] + 2 * x[..., None] + 3 * np.arange(bands)) / (height + 2 * width + 3 * bands)
    return (share * RANGES[np.dtype(kind).kind][1]).astype(kind)


def grey_levels(values: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(np.float64) * 255 / RANGES[values.dtype.kind][1])


def read(data: bytes, side: int, channels: int, kind: str) -> np.ndarray:
    return decode(data, side, "squash", channels, RANGES[np.dtype(kind).kind]).astype(int)


@pytest.mark.each("bands", [1, 3])
@pytest.mark.each("kind", ["u2", "i2", "u4", "i4", "f4", "f8"])
def test_every_type_of_grey_and_colour_tiff(kind: str, bands: int) -> None:
    values = gradient(8, 8, bands, kind)
    data = tiff(values)
    found = read_header(data)
    assert found[:4] == (8, 8, bands, False)
    assert found.values is not None
    assert found.values.largest == pytest.approx(float(values.max()))
    assert found.values.integer == (kind[0] != "f")
    assert np.abs(read(data, 8, bands, kind) - grey_levels(values)).max() <= 1


@pytest.mark.parametrize("kind", ["u2", "f4"])
def test_a_fourth_band_is_transparency_only_where_the_file_says_so(kind: str) -> None:
    values = gradient(8, 8, 4, kind)
    values[..., 3] = 0
    for extra in ((), (0,)):  # near-infrared, say
        assert read_header(tiff(values, extra)).spare
        assert np.abs(read(tiff(values, extra), 8, 3, kind) - grey_levels(values[..., :3])).max() <= 1
    for extra in ((1,), (2,)):
        assert not read_header(tiff(values, extra)).spare
        if extra == (2,):
            assert (read(tiff(values, extra), 8, 3, kind) == 255).all()


def test_a_fourth_band_of_8_bits_does_not_wash_out_either() -> None:
    values = np.full((8, 8, 4), (200, 100, 50, 30), np.uint8)
    for extra in ((), (0,)):
        assert read_header(tiff(values, extra))[:4] == (8, 8, 3, True)
        assert (decode(tiff(values, extra), 8, "squash", 3) == (200, 100, 50)).all()
    on_white = decode(tiff(values, (2,)), 8, "squash", 3)[0, 0].astype(int)
    assert np.abs(on_white - np.rint([255 - 55 * 30 / 255, 255 - 155 * 30 / 255, 255 - 205 * 30 / 255])).max() <= 1
    grey = np.full((8, 8, 2), (90, 7), np.uint8)
    assert read_header(tiff(grey, (0,)))[2:4] == (1, True)
    assert (decode(tiff(grey, (0,)), 8, "squash", 1) == 90).all()


@pytest.mark.parametrize(
    ("pixels", "tags", "named"),
    [
        (np.zeros((8, 8, 5), np.uint8), {"extra": (0, 0)}, "5 bands; etude reads 1, 3 or 4"),
        (np.zeros((8, 8, 8), np.uint16), {"extra": (0,) * 5}, "8 bands"),
        (np.zeros((8, 8, 2), np.uint16), {"extra": (0,)}, "2 bands of 16-bit whole numbers"),
        (np.zeros((8, 8), np.float16), {}, "1 band of 16-bit floating-point"),
        (np.zeros((8, 8, 3), np.float32), {"planar": 2}, "3 bands in separate planes of 32-bit floating-point"),
        (np.zeros((8, 8, 4), np.uint16), {"photometric": 5}, "4 CMYK bands of 16-bit"),
    ],
)
def test_what_is_not_read_is_named(pixels: np.ndarray, tags: dict[str, object], named: str) -> None:
    with pytest.raises(UnreadableImage, match=named):
        read_header(tiff(pixels, **tags))  # type: ignore[arg-type]


@pytest.mark.each("kind", ["u2", "f4"])
@pytest.mark.each("bands", [1, 3])
@pytest.mark.each("orientation", range(1, 9))
def test_deep_tiff_comes_upright(orientation: int, bands: int, kind: str) -> None:
    values = gradient(6, 9, bands, kind)
    data = tiff(values, orientation=orientation)
    eight = Image.fromarray(grey_levels(values).astype(np.uint8).squeeze())
    wide = 9 if orientation < 5 else 6
    assert read_header(data)[:2] == (wide, 15 - wide)
    upright = decode(tiff(np.asarray(eight), orientation=orientation), 18, "letterbox", bands).astype(int)
    assert np.abs(decode(data, 18, "letterbox", bands, RANGES[values.dtype.kind]) - upright).max() <= 1


def test_deep_colours_in_png() -> None:
    values = gradient(8, 8, 4, "u2")
    data = cv2.imencode(".png", values[..., 2::-1])[1].tobytes()
    assert read_header(data).values is not None
    assert np.abs(read(data, 8, 3, "u2") - grey_levels(values[..., :3])).max() <= 1
    values[..., 3] = 0
    assert (read(cv2.imencode(".png", values)[1].tobytes(), 8, 3, "u2") == 255).all()


def test_values_that_are_no_numbers_are_named() -> None:
    for wrong in (np.nan, np.inf, -np.inf):
        values = np.zeros((8, 8), np.float32)
        values[3, 3] = wrong
        with pytest.raises(UnreadableImage, match="NaN or infinite"):
            read_header(tiff(values))


def test_damaged_deep_files_give_a_reason() -> None:
    data = tiff(gradient(8, 8, 3, "f4"))
    with pytest.raises(UnreadableImage, match="32-bit floating-point|truncated|damaged"):
        read_header(data[: len(data) - 40])
    noise = np.random.default_rng(0).integers(0, 65536, (32, 32, 3), dtype=np.uint16)
    png = cv2.imencode(".png", noise)[1].tobytes()
    with pytest.raises(UnreadableImage):
        decode(png[: len(png) // 2], 8, "squash", 3, (0.0, 65535.0))


def test_ranges_that_files_declare_are_kept() -> None:
    """PGM says which value is white; Pillow scales by it."""
    values = gradient(8, 8, 1, "u2")[..., 0]
    data = b"P5 8 8 4095\n" + values.astype(">u2").tobytes()
    found = decode(data, 8, "squash", 1, (0.0, 65535.0)).astype(int)[..., 0]
    assert np.abs(found - grey_levels(values)).max() <= 1


def test_a_deep_image_without_a_range_is_no_guess() -> None:
    buffer = BytesIO()
    Image.fromarray(gradient(8, 8, 1, "u2")[..., 0]).save(buffer, "PNG")
    with pytest.raises(UnreadableImage, match=r"data\.range"):
        decode(buffer.getvalue(), 8, "squash", 1)


def test_a_transparent_value_of_deep_grey_is_read_as_any_other() -> None:
    """Pillow and GDAL write it for "no data"."""
    values = gradient(8, 8, 1, "u2")[..., 0]
    file = BytesIO()
    Image.fromarray(values).save(file, format="PNG", transparency=0)
    assert read_header(file.getvalue())[:3] == (8, 8, 1)
    np.testing.assert_allclose(read(file.getvalue(), 8, 1, "u2")[..., 0], grey_levels(values), atol=1)
