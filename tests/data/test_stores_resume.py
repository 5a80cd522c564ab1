"""A build that is killed, meets a full disk, or has company: nothing is decoded twice, and nothing is mixed up."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.storing import KINDS, build, contents, start, stopped_at, whole_stores, write_images
from etude.core.errors import EtudeError
from etude.data.sources import ImageSet
from etude.data.stores import partial as ingest_module
from etude.data.stores.partial import PartialStore

COUNT, SIDE = 40, 16


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Forty images, of which the third cannot be decoded."""
    found = write_images(tmp_path / "in", COUNT, SIDE)
    found.paths[2].write_bytes(found.paths[2].read_bytes()[:200])
    return found


def raising(error: BaseException) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


def the_partial(cache: Path) -> Path:
    (folder,) = (cache / "stores").glob("*.partial")
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saving", [True, False])
def test_an_interrupted_build_goes_on_to_the_same_store(
    kind: str, saving: bool, images: ImageSet, tmp_path: Path, progress
) -> None:
    whole = build(images, tmp_path / "other", SIDE, kind=kind)
    with stopped_at(25, KeyboardInterrupt(), saving), pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cache", SIDE, kind=kind)
    decoded: list[Path] = []
    read = ingest_module.read_image_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "read_image_file", lambda path: decoded.append(path) or read(path))
        resumed = build(images, tmp_path / "cache", SIDE, kind=kind, progress=progress)
    assert sorted(decoded) == sorted(images.paths[25:])
    assert progress.bars["decode (resumed at 25)"] == [15, 15]
    assert contents(resumed.store.folder) == contents(whole.store.folder)
    assert [file.id for file in resumed.bad] == [images.ids[2]]
    assert resumed.kept.tolist() == whole.kept.tolist()
    assert whole_stores(tmp_path / "cache") == [resumed.store.folder.name]


KILLED = """
import os, signal
from pathlib import Path
from data.storing import build
from etude.data.sources import read_unlabelled
from etude.data.stores import partial as ingest
from etude.data.stores.partial import PartialStore
append, ingest.SAVE_SECONDS = PartialStore.append, 0.0
def appended(store, *row):
    append(store, *row)
    if store.done >= 17:
        for file in store._files.values():
            file.flush()  # rows beyond the last record, as the system may have written them
        os.kill(os.getpid(), signal.SIGKILL)
PartialStore.append = appended
build(read_unlabelled({folder!r}), Path({cache!r}), 16, kind={kind!r})
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_leaves_work_that_is_taken_up(kind: str, images: ImageSet, tmp_path: Path, progress) -> None:
    whole = build(images, tmp_path / "other", SIDE, kind=kind)
    killed = start(KILLED.format(folder=str(tmp_path / "in"), cache=str(tmp_path / "cache"), kind=kind))
    assert killed.wait(60) == -signal.SIGKILL
    data = the_partial(tmp_path / "cache") / whole.store.file_names[0]
    assert data.stat().st_size > json.loads((data.parent / "progress.json").read_text())["files"][data.name]["bytes"]
    resumed = build(images, tmp_path / "cache", SIDE, kind=kind, progress=progress)
    assert progress.bars["decode (resumed at 16)"] == [24, 24]
    assert contents(resumed.store.folder) == contents(whole.store.folder)


def test_a_kill_between_the_last_row_and_the_move(images: ImageSet, tmp_path: Path, progress) -> None:
    whole = build(images, tmp_path / "other", SIDE, kind="raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_appear", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build(images, tmp_path / "cache", SIDE, kind="raw")
    resumed = build(images, tmp_path / "cache", SIDE, kind="raw", progress=progress)
    assert progress.bars["decode (resumed at 40)"] == [0, 0]
    assert contents(resumed.store.folder) == contents(whole.store.folder)


def test_auto_goes_on_with_the_kind_that_was_begun(images: ImageSet, tmp_path: Path) -> None:
    with stopped_at(25, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cache", SIDE, kind="encoded")
    resumed = build(images, tmp_path / "cache", SIDE, kind="auto")
    assert resumed.kind == "encoded"
    assert resumed.kind_reason.endswith("as an earlier run began")


def test_auto_leaves_work_whose_store_would_be_too_large(images: ImageSet, tmp_path: Path) -> None:
    with stopped_at(25, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cache", 64, kind="raw")
    resumed = build(images, tmp_path / "cache", 64, kind="auto", limit=COUNT * 64 * 64 * 3 - 1)
    assert resumed.kind in ("blosc2", "encoded")
    assert whole_stores(tmp_path / "cache") == [resumed.store.folder.name], "the raw work was removed"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["data", "short", "gone", "record"])
def test_damaged_work_is_told_and_begun_anew(
    kind: str, damage: str, images: ImageSet, tmp_path: Path, progress
) -> None:
    whole = build(images, tmp_path / "other", SIDE, kind=kind)
    with stopped_at(25, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cache", SIDE, kind=kind)
    folder = the_partial(tmp_path / "cache")
    name = whole.store.file_names[-1]
    {
        "data": lambda: flip(folder / name),
        "short": lambda: os.truncate(folder / name, 10),
        "gone": lambda: (folder / name).unlink(),
        "record": lambda: (folder / "progress.json").write_text("{}"),
    }[damage]()
    warnings: list[str] = []
    again = build(images, tmp_path / "cache", SIDE, kind=kind, warn=warnings.append, progress=progress)
    assert warnings == [f"the partial image store {folder} is damaged: decoding begins anew"]
    assert progress.bars["decode"] == [COUNT, COUNT]
    assert contents(again.store.folder) == contents(whole.store.folder)


@contextmanager
def largest_file(count: int) -> Iterator[None]:
    """Let no file grow beyond ``count`` bytes, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_too_small_shows_before_decoding(images: ImageSet, tmp_path: Path) -> None:
    with largest_file(20_000), pytest.raises(EtudeError, match=r"the disk is full: .*stores.* could not be written"):
        build(images, tmp_path / "cache", SIDE, kind="raw")
    assert whole_stores(tmp_path / "cache") == []
    assert not build(images, tmp_path / "cache", SIDE, kind="raw").reused


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up_keeps_what_was_done(
    kind: str, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress
) -> None:
    whole = build(images, tmp_path / "other", SIDE, kind=kind)
    monkeypatch.delattr(os, "posix_fallocate")  # as on systems that cannot reserve
    monkeypatch.setattr(ingest_module, "SAVE_SECONDS", 0.0)
    room = (whole.store.folder / whole.store.file_names[0]).stat().st_size // 2
    with largest_file(room), pytest.raises(EtudeError, match=r"the disk is full: .*what was finished before is kept"):
        build(images, tmp_path / "cache", SIDE, kind=kind)
    done = json.loads((the_partial(tmp_path / "cache") / "progress.json").read_text())["done"]
    assert COUNT // 4 < done < COUNT
    resumed = build(images, tmp_path / "cache", SIDE, kind=kind, progress=progress)
    assert progress.bars[f"decode (resumed at {done})"] == [COUNT - done] * 2
    assert contents(resumed.store.folder) == contents(whole.store.folder)


def test_a_full_disk_while_reserving_keeps_earlier_work(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_at(25, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cache", SIDE, kind="raw")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", raising(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(EtudeError, match="the disk is full"):
            build(images, tmp_path / "cache", SIDE, kind="raw")
    assert (the_partial(tmp_path / "cache") / "pixels.u8").stat().st_size == 24 * SIDE * SIDE * 3
    assert len(build(images, tmp_path / "cache", SIDE, kind="raw").store) == COUNT - 1


def test_saving_is_by_the_clock(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(ingest_module, "SAVE_SECONDS", 10.0)
    monkeypatch.setattr("etude.data.stores.build.alone", lambda *_: unlocked())  # the lock has a clock of its own
    saves: list[int] = []
    save = PartialStore.save
    monkeypatch.setattr(PartialStore, "save", lambda store: saves.append(store.done) or save(store))
    build(images, tmp_path / "cache", SIDE, kind="raw")
    assert 3 <= len(saves) <= 5
    assert saves[-1] == COUNT


@contextmanager
def unlocked() -> Iterator[bool]:
    yield True
