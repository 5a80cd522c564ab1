"""Names, paths and hashes in one block of memory behave as the lists they stand for."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.storing import write_images
from etude.core.context import Context, Silent
from etude.core.files import digest_of
from etude.data.compact import DIGEST_BYTES, Digests, Paths, Texts
from etude.data.dataset import concatenated_sets, open_dataset
from etude.data.scan import scan_images
from etude.data.sources import read_labelled, read_unlabelled
from etude.data.split import group_labels
from etude.data.stores.disk import StoreRecord

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates too, as names of files have them


@given(st.lists(ANY_TEXT, max_size=12), st.data())
def test_texts_are_the_texts_they_were_made_of(texts: list[str], data: st.DataObject):
    compact = Texts(texts)
    assert list(compact) == texts
    assert len(compact) == len(texts)
    assert compact == texts == compact
    assert compact == tuple(texts)
    assert compact == Texts(texts)
    assert compact != [*texts, ""]
    assert compact != Texts([*texts, ""])
    assert pickle.loads(pickle.dumps(compact)) == compact
    assert list(compact[1::2]) == texts[1::2]
    if texts:
        places = data.draw(st.lists(st.integers(-len(texts), len(texts) - 1)))
        assert [compact[place] for place in places] == [texts[place] for place in places]
        assert list(compact.take(np.abs(places).astype(int) % len(texts))) == [
            texts[abs(place) % len(texts)] for place in places
        ]
    with pytest.raises(IndexError):
        compact[len(texts)]


def test_the_same_letters_cut_elsewhere_are_other_texts():
    assert Texts(["ab", "c"]) != Texts(["a", "bc"])
    assert Texts(["a"]) != "a"
    assert repr(Texts(["a", "b", "c", "d"])) == "Texts(['a', 'b', 'c'], ...)"


def test_paths_are_named_from_their_folder_or_absolute(tmp_path: Path):
    paths = Paths(tmp_path, Texts(["a/1.png", str(tmp_path.parent / "2.png"), "\udcff.png"]))
    assert list(paths) == [tmp_path / "a" / "1.png", tmp_path.parent / "2.png", tmp_path / "\udcff.png"]
    assert list(paths[1:]) == list(paths)[1:]


@given(st.lists(st.binary(max_size=3), max_size=10))
def test_digests_are_the_hashes_they_were_made_of(contents: list[bytes]):
    hashes = [digest_of(content) for content in contents]
    compact = Digests.from_hex("".join(hashes))
    assert list(compact) == hashes
    assert compact == Digests.from_hex(compact.hex())
    assert list(compact[::2]) == hashes[::2]
    assert list(compact.take(np.arange(len(hashes))[::-1])) == hashes[::-1]
    equal = compact.keys()[:, None] == compact.keys()
    assert equal.tolist() == [[one == other for other in hashes] for one in hashes]


def test_hashes_that_end_in_zeros_stay_apart():
    values = np.zeros((3, DIGEST_BYTES), np.uint8)
    values[1, -2], values[2, 0] = 1, 1
    compact = Digests(values)
    assert len(np.unique(compact.keys())) == 3
    assert compact[0] == "00" * DIGEST_BYTES


@pytest.mark.parametrize("text", ["ab", "xy" * DIGEST_BYTES])
def test_a_damaged_list_of_hashes_is_refused(text: str):
    with pytest.raises(ValueError):  # noqa: PT011  (each way of being damaged has its own words)
        Digests.from_hex(text)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 3))
def test_splits_are_those_of_a_list_of_hashes(numbers: list[int], seed: int):
    """Runs that were begun before compact hashes are resumed with the splits that they have."""
    hashes = [digest_of(str(number)) for number in numbers]
    labels = np.arange(len(numbers)) % 2
    of_list, of_digests, of_array = (
        group_labels(labels, groups, np.random.default_rng(seed))
        for groups in (hashes, Digests.from_hex("".join(hashes)), np.array(numbers))
    )
    for other in (of_digests, of_array):
        assert [one.tolist() for one in other.lone] == [one.tolist() for one in of_list.lone]
        assert [one.tolist() for one in other.together] == [one.tolist() for one in of_list.together]


def test_stores_of_earlier_versions_list_their_hashes(tmp_path: Path):
    images = write_images(tmp_path / "in", 3, 12)
    context = Context(Silent(), print, tmp_path / "cache")
    folder = open_dataset(images, scan_images(images, Silent()), 12, context, fit="squash").build.store.folder
    record, path = StoreRecord.of(folder), folder / "store.json"
    assert list(record.content_hashes) == list(scan_images(images, Silent()).content_hashes)
    listed = ", ".join(f'"{content}"' for content in record.content_hashes)
    path.write_text(path.read_text().replace(f'"{record.content_hashes.hex()}"', f"[{listed}]"))
    assert StoreRecord.of(folder) == record


def test_names_of_files_are_kept_once(tmp_path: Path):
    images = read_unlabelled(write_images(tmp_path / "in", 5).root)
    assert images.paths.names is images.ids
    some = images.take([3, 1])
    assert some.paths.names is some.ids
    assert list(some.paths) == [tmp_path / "in" / "0003.png", tmp_path / "in" / "0001.png"]


def test_sets_from_two_folders_are_found_after_they_are_joined(tmp_path: Path):
    sets = []
    for folder in ("train", "valid"):
        for label in ("a", "b"):
            write_images(tmp_path / folder / label, 2)
        sets.append(read_labelled(tmp_path / folder))
    both = concatenated_sets(*sets)
    assert list(both.ids[4:]) == ["valid/a/0000.png", "valid/a/0001.png", "valid/b/0000.png", "valid/b/0001.png"]
    assert list(both.paths) == [*sets[0].paths, *sets[1].paths]
    assert all(path.is_file() for path in both.take([0, 7]).paths)


def test_an_image_costs_few_bytes_besides_its_name(tmp_path: Path):
    """120,000 names of 12 letters: as tuples of str and Path they would take 80 MB."""
    count = 120_000
    tracemalloc.start()
    ids = Texts(f"a/{number:06d}.png" for number in range(count))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / count < 12 + 8 + 1
    assert peak / count < 64
    assert sys.getsizeof(Paths(tmp_path, ids)) < 200
