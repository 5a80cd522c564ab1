from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etude.core.context import Silent
from etude.data.scan import FileFacts, name_of, read_facts


def test_headers_tell_size_kind_and_camera(tmp_path: Path):
    picture = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Model 1"
    picture.save(tmp_path / "a.jpg", exif=exif)
    picture.convert("L").save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    found = read_facts([tmp_path / name for name in ("a.jpg", "b.png", "c.png", "d.png")], Silent())
    assert found[0] == FileFacts((tmp_path / "a.jpg").stat().st_size, 30, 20, "JPEG RGB", "Maker Model 1")
    assert found[1] == FileFacts((tmp_path / "b.png").stat().st_size, 30, 20, "PNG L", "")
    assert [one.readable for one in found] == [True, True, False, False]


@pytest.mark.parametrize(
    ("image_id", "label", "name"),
    [
        ("cat/a.png", "cat", "a"),
        ("cat/a.b.png", "cat", "a.b"),
        ("cat", "cat", "cat"),
        ("a.png", None, "a"),
        ("x/cat/1.png", "cat", "x/1"),
        ("cat.d/1", "cat", "cat.d/1"),
        ("cat/.png", "cat", ".png"),
    ],
)
def test_a_name_is_the_id_without_its_class_and_ending(image_id: str, label: str | None, name: str):
    assert name_of(image_id, label) == name
