"""One range of values for a data set of deep images: settled from all of them, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etude.core.context import Context, Silent
from etude.core.errors import EtudeError
from etude.data.dataset import Dataset, open_dataset
from etude.data.scan import Scan, scan_images
from etude.data.sources import read_unlabelled
from etude.data.value_range import DeepValues, ValueRange, to_eight_bits, values_of


def settled(*images: np.ndarray) -> ValueRange:
    found = DeepValues.of([values_of(image) for image in images])
    assert found is not None
    return found.settled()[0]


def images(highest: float, kind: str, count: int = 20, lowest: float = 0.0) -> list[np.ndarray]:
    """Return images of 32 x 32 whose values spread from ``lowest`` to ``highest``."""
    rng = np.random.default_rng(3)
    return [(lowest + rng.random((32, 32)) * (highest - lowest)).astype(kind) for _ in range(count)]


@pytest.mark.each(
    ("highest", "kind", "expected"),
    [
        (1000, "u2", 1023),
        (4095, "u2", 4095),
        (2300, "u2", 4095),
        (16000, "i4", 16383),
        (65535, "u2", 65535),
        (300, "u2", 511),
        (200, "u2", 255),
        (1, "u2", 1),
        (2**20 - 1, "u4", 2**20 - 1),
        (0.9, "f4", 1),
        (1.0, "f4", 1),
        (0.2, "f8", 1),
        (255.0, "f4", 255),
        (200.0, "f8", 255),
        (60000.0, "f4", 65535),
    ],
)
def test_the_range_of_one_kind_of_image(highest: float, kind: str, expected: float) -> None:
    assert settled(*images(highest, kind)) == (0, expected)


def test_floating_point_of_no_usual_range_takes_its_own() -> None:
    for highest in (0.004, 3.2, 4000.0, 1e6):
        low, high = settled(*images(highest, "f4"))
        assert low == 0
        assert highest * 0.99 <= high <= highest * 1.01


@pytest.mark.parametrize(("kind", "highest", "hot"), [("f4", 0.8, 1.02), ("f4", 0.8, 7000.0), ("u2", 4000, 65535)])
def test_a_few_hot_pixels_do_not_decide(kind: str, highest: float, hot: float) -> None:
    plain = images(highest, kind)
    dotted = [image.copy() for image in plain]
    for image in dotted[::2]:
        image[0, 0] = hot
    assert settled(*dotted) == settled(*plain)


def test_one_odd_image_of_many_does_not_decide_but_bright_spots_do() -> None:
    odd = np.full((32, 32), 60000, np.uint16)
    assert settled(*images(4000, "u2", count=150), odd) == (0, 4095)
    sparse = [np.zeros((32, 32), np.uint16) for _ in range(20)]
    for image in sparse:
        image[3:5, 3:5] = 4000  # 4 pixels of 1,024, all that there is to see
    assert settled(*sparse) == (0, 4095)


def test_black_images_settle_too() -> None:
    assert settled(np.zeros((8, 8), np.uint16)) == (0, 1)
    assert settled(np.zeros((8, 8), np.float32)) == (0, 1)


def test_values_below_zero_are_refused_with_the_setting_to_give() -> None:
    for kind in ("f4", "i2"):
        with pytest.raises(EtudeError, match=r"from -99\d.*--set data\.range=-\d+\.\.3"):
            settled(*images(3000, kind, lowest=-1000))
    ringing = images(0.9, "f4")
    for image in ringing:
        image[0, 0] = -0.02
    assert settled(*ringing) == (0, 1)


def test_whole_numbers_beside_floating_point_are_refused_unless_they_agree() -> None:
    with pytest.raises(EtudeError, match=r"20 images.*20 floating-point.*data\.range"):
        settled(*images(4000, "u2"), *images(0.9, "f4"))
    assert settled(*images(250, "u2"), *images(250, "f4")) == (0, 255)


def test_two_depths_in_one_set_are_refused_but_dark_images_are_not() -> None:
    with pytest.raises(EtudeError, match=r"20 images.*12 bits.*data\.range=0\.\.65535"):
        settled(*images(4000, "u2"), *images(60000, "u2"))
    assert settled(*images(60, "u2"), *images(60000, "u2")) == (0, 65535)


@pytest.mark.parametrize("kind", [">u2", "<u2", "i4", "u4", "f4", "f8"])
def test_scaling_rounds_clips_and_keeps_both_ends(kind: str) -> None:
    values = np.array([[0, 100, 2047, 2048, 4095, 5000]]).astype(kind)
    expected = np.minimum(255, np.rint(np.array([0, 100, 2047, 2048, 4095, 5000]) * 255 / 4095))
    np.testing.assert_array_equal(to_eight_bits(values, (0, 4095)), expected[None].astype(np.uint8))
    whole = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_eight_bits(whole, (0, 65535)), np.rint(whole / 257))
    signed = np.array([-1000, -2000, 1000, 3000], np.int16)
    np.testing.assert_array_equal(to_eight_bits(signed, (-1000, 3000)), [0, 0, 128, 255])


def write(folder: Path, highest: float, kind: str = "u2", count: int = 6) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images(highest, kind, count)):
        Image.fromarray(image).save(folder / f"{number}.{'png' if kind[0] == 'u' else 'tif'}")
    return folder


def stored(folder: Path, scanned: Scan, cache: Path, warn: Callable[[str], None]) -> Dataset:
    return open_dataset(read_unlabelled(folder), scanned, 32, Context(Silent(), warn, cache), fit="squash")


def test_10_and_12_bits_in_16_are_stored_as_8_bits_would_be(tmp_path: Path) -> None:
    bright: list[np.ndarray] = []
    for bits in (8, 10, 12, 16):
        folder = write(tmp_path / str(bits), 2**bits - 1, "u2" if bits > 8 else "u1")
        said: list[str] = []
        scanned = scan_images(read_unlabelled(folder), Silent()).in_range(None, said.append)
        assert scanned.value_range == (None if bits == 8 else (0, 2**bits - 1))
        assert (str(2**bits - 1) in "".join(said)) == (bits > 8)
        data = stored(folder, scanned, tmp_path / "cache", pytest.fail)
        assert data.build.value_range == scanned.value_range
        bright.append(data.build.store.gather(np.arange(6), 32).astype(int))
    assert all(np.abs(one - bright[0]).max() <= 1 for one in bright)


def test_the_range_is_part_of_the_stores_key_where_images_are_deep(tmp_path: Path) -> None:
    for highest, kind, different in ((4000, "u2", True), (200, "u1", False)):
        folder = write(tmp_path / kind, highest, kind)
        scanned = scan_images(read_unlabelled(folder), Silent())
        keys = {
            stored(
                folder, scanned.in_range(asked, lambda text: None), tmp_path / "cache", lambda text: None
            ).build.store.folder.name
            for asked in ((0.0, 4095.0), (0.0, 65535.0))
        }
        assert len(keys) == (2 if different else 1)


def test_other_images_take_the_training_range_and_what_is_beyond_is_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "test", 60000)
    warned: list[str] = []
    like = scan_images(read_unlabelled(folder), Silent()).like(1, (0, 4095), "test images", Context(warn=warned.append))
    assert like.value_range == (0, 4095)
    assert len(warned) == 1
    assert "6 of 6 test images" in warned[0]
    within = scan_images(read_unlabelled(write(tmp_path / "dark", 900)), Silent()).like(
        1, (0, 4095), "", Context(warn=pytest.fail)
    )
    assert within.value_range == (0, 4095)


def test_images_that_show_nothing_are_warned_of(tmp_path: Path) -> None:
    folder = write(tmp_path / "dark", 4095)
    for name, level in (("black", 3), ("white", 251), ("grey", 100)):
        Image.new("L", (40, 20), level).save(folder / f"{name}.png")
    scanned = scan_images(read_unlabelled(folder), Silent())
    for fit in ("letterbox", "squash"):
        warned: list[str] = []
        for _ in range(2):  # built, then found in the cache
            open_dataset(
                read_unlabelled(folder), scanned.in_range((0, 65535), lambda text: None), 32,
                Context(Silent(), warned.append, tmp_path / "cache"), fit=fit,
            )  # fmt: skip
        assert warned[:3] == warned[3:]
        told = "\n".join(sorted(warned[:3]))
        assert "1 of 9 images are nearly white once decoded: 'white.png'" in told
        assert "1 of 9 images are of one colour once decoded: 'grey.png'" in told
        assert "7 of 9 images are nearly black" in told
        assert "data.range" in told
