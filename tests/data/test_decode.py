"""Every kind of image decodes to the same pixels; every broken one gives a reason."""

from __future__ import annotations

import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from etude.data import decode as decode_module
from etude.data.decode import PADDING, UnreadableImage, decode, read_header, read_image_file

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(width: int = 64, height: int = 48) -> Image.Image:
    """A smooth picture whose four corners differ, so that any turn shows."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / (width - 1), y * 255 / (height - 1), np.full((height, width), 60.0)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def close(actual: np.ndarray, expected: np.ndarray, within: float) -> bool:
    return bool(np.abs(actual.astype(int) - expected.astype(int)).mean() <= within)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes_to_nearly_the_same_pixels(kind: str) -> None:
    data = encoded(photograph(), kind)
    pixels = decode(data, 32, "squash", 3)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert close(pixels, decode(encoded(photograph(), "PNG"), 32, "squash", 3), within=8 if kind == "GIF" else 2)
    assert read_header(data)[:3] == (64, 48, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_grey_images_have_one_channel(kind: str) -> None:
    data = encoded(photograph().convert("L"), kind)
    assert read_header(data).channels == (3 if kind == "WEBP" else 1)  # WebP stores grey as colours
    assert decode(data, 16, "crop", 1).shape == (16, 16, 1)
    colours = decode(data, 16, "crop", 3)
    assert close(colours[..., 0], colours[..., 2], within=1)


def test_same_size_changes_no_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    for fit in ("squash", "crop", "letterbox"):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(noise), "PNG"), 28, fit, 1)[..., 0], noise)


def test_transparency_is_drawn_on_white() -> None:
    hidden_black = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (decode(encoded(hidden_black, "PNG"), 8, "squash", 3) == 255).all()
    half_red = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert close(decode(encoded(half_red, "PNG"), 8, "squash", 3), np.array([255, 127, 127]), within=1)
    grey = Image.new("LA", (8, 8), (0, 0))
    assert read_header(encoded(grey, "PNG")).channels == 1
    assert (decode(encoded(grey, "PNG"), 8, "squash", 1) == 255).all()
    keyed = Image.new("L", (8, 8), 7)
    assert (decode(encoded(keyed, "PNG", transparency=7), 8, "squash", 1) == 255).all()


def test_palette_images() -> None:
    coloured = photograph().quantize(64)
    assert coloured.mode == "P"
    assert read_header(encoded(coloured, "PNG")).channels == 3
    expected = np.asarray(coloured.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    assert close(decode(encoded(coloured, "PNG"), 32, "squash", 3), expected, within=1)
    grey = photograph().convert("L").convert("P", palette=Image.Palette.ADAPTIVE)
    assert read_header(encoded(grey, "PNG")).channels == 1
    clear = Image.new("P", (8, 8), 0)
    clear.putpalette([0, 0, 0] * 256)
    assert (decode(encoded(clear, "PNG", transparency=0), 8, "squash", 3) == 255).all()


def test_one_bit_images() -> None:
    data = encoded(Image.new("1", (8, 8), 1), "PNG")
    assert read_header(data).channels == 1
    assert (decode(data, 8, "squash", 1) == 255).all()


def test_cmyk_is_converted() -> None:
    cmyk = photograph().convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        pixels = decode(encoded(cmyk, kind), 32, "squash", 3)
        assert close(pixels, decode(encoded(photograph(), "PNG"), 32, "squash", 3), within=4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_by_the_range_given(kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    data = encoded(Image.fromarray(values), kind)
    assert read_header(data).channels == 1
    for high in (65535.0, 4095.0):
        expected = np.minimum(255, np.rint(values * (255 / high))).astype(int)
        assert np.abs(decode(data, 64, "squash", 1, (0.0, high))[..., 0] - expected).max() <= 1


@pytest.mark.each("fit", ["squash", "crop", "letterbox"])
@pytest.mark.each("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.each("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int, fit: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = photograph().transpose(UNDO[orientation]) if orientation in UNDO else photograph()
    data = encoded(turned, kind, exif=exif)
    assert read_header(data)[:2] == (64, 48)
    assert close(decode(data, 24, fit, 3), decode(encoded(photograph(), "PNG"), 24, fit, 3), within=2)


@pytest.mark.each("fit", ["squash", "crop", "letterbox"])
@pytest.mark.each("size", [(9, 6), (6, 9), (10, 7), (10, 6), (300, 201)])
@pytest.mark.each("kind", ["PNG", "JPEG", "TIFF"])
def test_orientation_is_as_if_the_image_were_turned_first(kind: str, size: tuple[int, int], fit: str) -> None:
    """Borders of odd width stand where they would without EXIF; in small PNG and TIFF files no byte differs."""
    noise = np.random.default_rng(5).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    small = size[0] < 20
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC) if small else photograph(*size)
    side = 10 if small else 24
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture, kind, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
        expected = decode(encoded(upright, "PNG"), side, fit, 3).astype(int)
        differing = np.abs(decode(data, side, fit, 3) - expected)
        assert differing.max() <= (1 if small and kind != "JPEG" else 40), orientation
        # A border that is off by one pixel differs by much in a whole row.
        assert differing.mean(axis=(1, 2)).max() < 6, orientation


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert close(decode(data, 8, "squash", 3), np.array([255, 0, 0]), within=4)


def test_jpeg_is_decoded_scaled_but_never_below_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    drafted: list[tuple[int, int]] = []
    flattened = decode_module._flattened

    def remember(image: Image.Image, mode: str) -> Image.Image:
        drafted.append(image.size)
        return flattened(image, mode)

    monkeypatch.setattr(decode_module, "_flattened", remember)
    data = encoded(photograph(800, 400), "JPEG")
    for fit, size in (("squash", 100), ("crop", 101), ("letterbox", 100), ("squash", 500)):
        decode(data, size, fit, 3)
    assert drafted == [(200, 100), (400, 200), (100, 50), (800, 400)]


def test_scaled_decoding_and_reduction_stay_close_to_plain_resizing() -> None:
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    large = coarse.resize((800, 600), Image.Resampling.BICUBIC)
    for kind in ("JPEG", "PNG"):
        data = encoded(large, kind)
        plain = Image.open(BytesIO(data)).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
        assert close(decode(data, 96, "squash", 3), np.asarray(plain), within=3)


def test_resizing_does_not_alias() -> None:
    stripes = np.zeros((256, 256), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels = decode(encoded(Image.fromarray(stripes), "PNG"), 32, "squash", 1)
    assert np.abs(pixels.astype(int) - 127).max() <= 2


def test_crop_keeps_the_centre_and_letterbox_everything() -> None:
    wide = np.zeros((20, 60), dtype=np.uint8)
    wide[:, 20:40] = 200
    data = encoded(Image.fromarray(wide), "PNG")
    assert (decode(data, 20, "crop", 1) == 200).all()
    boxed = decode(data, 60, "letterbox", 1)[..., 0]
    np.testing.assert_array_equal(boxed[20:40], wide)
    assert (boxed[:20] == PADDING).all()
    assert (boxed[40:] == PADDING).all()
    assert (decode(data, 60, "letterbox", 3)[0] == PADDING).all()


def test_extreme_shapes() -> None:
    data = encoded(Image.new("RGB", (1000, 1), "white"), "PNG")
    for fit in ("squash", "crop", "letterbox"):
        assert decode(data, 32, fit, 3).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"just some text in a file named .jpg", "not an image"),
        (b"\xff\xd8\xff\xe0", "damaged or cut off"),
        (b"\x89PNG\r\n\x1a\n", "damaged|truncated|cut off"),
        (b"\x00" * 100, "not an image"),
    ],
)
def test_files_that_are_no_images(data: bytes, reason: str) -> None:
    for read in (read_header, lambda data: decode(data, 8, "squash", 3)):
        with pytest.raises(UnreadableImage, match=reason):
            read(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(UnreadableImage, match=r"truncated|damaged"):
        decode(data[: len(data) // 2], 32, "squash", 3)


def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photograph(), "PNG")
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(UnreadableImage, match=r"too large \(64 x 48 pixels"):
        read_header(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="too large"):
        decode(data, 8, "squash", 3)


def webp_header(kind: bytes, width: int, height: int) -> bytes:
    """Return the beginning of a WebP file of that size, as an attacker writes it."""
    if kind == b"VP8X":
        body = b"\0" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + (width - 1 + (height - 1) * 2**14).to_bytes(4, "little")
    else:
        body = b"\0\0\0\x9d\x01\x2a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"RIFF" + (12 + len(body)).to_bytes(4, "little") + b"WEBP" + kind + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("kind", [b"VP8X", b"VP8L", b"VP8 "])
def test_a_huge_webp_is_refused_before_pillow_opens_it(kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", pytest.fail)
    with pytest.raises(UnreadableImage, match=r"too large \(16383 x 16382 pixels"):
        read_header(webp_header(kind, 16383, 16382))


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
def test_the_size_in_a_webp_header_is_that_of_the_image(options: dict[str, object]) -> None:
    assert decode_module._webp_size(encoded(photograph(), "WEBP", **options)) == (64, 48)


def test_large_images_need_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "_LARGE_PIXELS", 1000)
    for free, data, fits in (
        (64 * 48 * 20, encoded(photograph(), "PNG"), True),
        (64 * 48 * 20 - 1, encoded(photograph(), "PNG"), False),
        (64 * 48 * 20 - 1, encoded(photograph(), "JPEG"), True),  # decoded at a smaller scale
        (64 * 48 * 20, encoded(photograph().convert("F"), "TIFF"), False),
        (None, encoded(photograph(), "PNG"), True),
    ):
        monkeypatch.setattr(decode_module, "free_memory", lambda free=free: free)
        if fits:
            assert read_header(data).width == 64
            assert decode(data, 8, "squash", 3, (0.0, 255.0)).shape == (8, 8, 3)
        else:
            with pytest.raises(UnreadableImage, match=r"free memory \(64 x 48 pixels"):
                read_header(data)


def test_damaged_exif_counts_as_upright() -> None:
    data = encoded(photograph(), "JPEG", exif=b"Exif\0\0garbage that is no EXIF")
    assert read_header(data)[:2] == (64, 48)
    assert decode(data, 8, "squash", 3).shape == (8, 8, 3)


@given(kind=st.sampled_from(FORMATS), position=st.integers(0, 5000), value=st.integers(0, 255))
def test_a_damaged_byte_gives_pixels_or_a_reason(kind: str, position: int, value: int) -> None:
    data = bytearray(encoded(photograph(), kind))
    data[position % len(data)] = value
    for read in (lambda data: read_header(data).width, lambda data: decode(data, 8, "crop", 3).size):
        with suppress(UnreadableImage):
            assert read(bytes(data)) > 0


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    for name, reason in {
        "empty.png": r"empty file \(zero bytes\)",
        "folder.png": "not a regular file",
        "pipe.png": "not a regular file",
        "gone.png": "file not found",
        "broken.png": "file not found",
        "empty.png/inner.png": "file not found",
        "circle.png": "symbolic links",
        "nul\0.png": "not a possible file name",
    }.items():
        with pytest.raises(UnreadableImage, match=reason):
            read_image_file(tmp_path / name)
    (tmp_path / "some.png").write_bytes(b"12345")
    assert read_image_file(tmp_path / "some.png") == b"12345"
    monkeypatch.setattr(decode_module, "MAX_FILE_BYTES", 4)
    with pytest.raises(UnreadableImage, match="too large"):
        read_image_file(tmp_path / "some.png")


def test_forbidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def refuse(path: object) -> bytes:
        raise PermissionError(13, "Permission denied")  # root, who runs the tests in containers, is never refused

    monkeypatch.setattr(type(tmp_path), "read_bytes", refuse)
    with pytest.raises(UnreadableImage, match="permission denied"):
        read_image_file(tmp_path / "a.png")
