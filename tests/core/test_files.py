"""Files that are whole or absent, and JSON that keeps every name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import EtudeError
from etude.core.files import read_json, replacing, write_json

NAMES = st.binary(max_size=12).map(os.fsdecode)  # whatever bytes a file may be called
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
def test_json_comes_back_as_it_was_whatever_the_names(value: object, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_a_byte_that_is_not_utf8_is_an_escape_and_all_else_stays_readable(tmp_path: Path):
    path = tmp_path / "names.json"
    write_json(path, {"Käfer\udcff": ["\\udcff", "😀", "\n"]})
    assert path.read_bytes() == '{\n  "Käfer\\udcff": [\n    "\\\\udcff",\n    "😀",\n    "\\n"\n  ]\n}\n'.encode()
    assert read_json(path) == {"Käfer\udcff": ["\\udcff", "😀", "\n"]}


def test_other_json_is_written_as_json_writes_it(tmp_path: Path):
    path, value = tmp_path / "value.json", {"a": [1, 2.5, None, True], "ü": {}}
    write_json(path, value)
    assert path.read_text(encoding="utf-8") == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path, value: object):
    path = tmp_path / "value.json"
    write_json(path, "old")
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert read_json(path) == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["value.json"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("content", "told"), [(None, "does not exist"), (b"{", "JSON"), (b"\xff", "JSON")])
def test_what_is_no_json_is_told_in_one_sentence(tmp_path: Path, content: bytes | None, told: str):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EtudeError, match=told):
        read_json(path)
