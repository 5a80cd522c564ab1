"""Damaged stores: noticed, told, and built again."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from data.storing import KINDS, build, contents, write_images
from etude.data.stores import formats
from etude.data.stores.disk import DamagedStoreError


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty_object(path: Path) -> None:
    path.write_text("{}")


def forget_a_row(path: Path) -> None:
    record = json.loads(path.read_text())
    record["content_hashes"] = record["content_hashes"][:-24]
    path.write_text(json.dumps(record))


def damages(kind: str) -> list[tuple[str, object, str]]:
    files = {"raw": ["pixels.u8"]}.get(kind, ["rows.bin", "ends.i64"])
    told = {
        shorten: "bytes instead of",
        lengthen: "bytes instead of",
        flip: "changed|does not fit",
        Path.unlink: "damaged",
    }
    found = [(name, damage, words) for name in files for damage, words in told.items()]
    record = {empty_object: "damaged", halve: "not valid JSON", forget_a_row: "does not fit", Path.unlink: "not exist"}
    return [*found, *(("store.json", damage, words) for damage, words in record.items())]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_and_the_store_built_again(kind: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 3, 12)
    folder = build(images, tmp_path / "cache", 12, kind=kind).store.folder
    before = contents(folder)
    for name, damage, told in damages(kind):
        damage(folder / name)
        warnings: list[str] = []
        again = build(images, tmp_path / "cache", 12, kind=kind, warn=warnings.append)
        assert not again.reused
        assert len(warnings) == 1
        assert any(words in warnings[0] for words in told.split("|")), (name, damage, warnings)
        assert warnings[0].endswith("it is built again")
        assert contents(folder) == before


@pytest.mark.parametrize("kind", KINDS)
def test_opening_what_is_no_store(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedStoreError, match=r"is damaged .*; delete it and run again"):
        formats.KINDS[kind](tmp_path)
    images = write_images(tmp_path / "in", 2, 12)
    folder = build(images, tmp_path / "cache", 12, kind=kind).store.folder
    for changed in ({"kind": "zip"}, {"kind": "raw" if kind != "raw" else "encoded"}, {"version": 1}):
        record = json.loads((folder / "store.json").read_text())
        (folder / "store.json").write_text(json.dumps({**record, **changed}))
        with pytest.raises(DamagedStoreError) as told:
            formats.KINDS[kind](folder)
        assert pickle.loads(pickle.dumps(told.value)).args == told.value.args
        (folder / "store.json").write_text(json.dumps(record))
