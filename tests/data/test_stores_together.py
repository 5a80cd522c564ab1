"""Two runs that want the same images decoded, and file systems that cannot keep them apart."""

from __future__ import annotations

import errno
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.storing import build, start, stopped_at, whole_stores, write_images
from etude.core import files
from etude.core.errors import EtudeError
from etude.data.sources import ImageSet
from etude.data.stores import partial as ingest_module
from etude.data.stores.build import StoreBuild
from etude.data.stores.partial import PartialStore

COUNT, SIDE = 40, 16


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return write_images(tmp_path / "in", COUNT, SIDE)


ONE_OF_TWO = """
import time
from pathlib import Path
from data.storing import build
from etude.data.sources import read_unlabelled
from etude.data.stores import partial as ingest
read = ingest.read_image_file
def slow(path):
    time.sleep(0.02)
    return read(path)
ingest.read_image_file = slow
told = []
built = build(read_unlabelled({folder!r}), Path({cache!r}), 16, kind="auto", warn=told.append, threads=1)
assert len(built.store) == 40
print(built.reused, len(told), *(sentence[:37] for sentence in told))
"""


def test_two_processes_decode_once(images: ImageSet, tmp_path: Path) -> None:
    script = ONE_OF_TWO.format(folder=str(tmp_path / "in"), cache=str(tmp_path / "cache"))
    runs = [start(script) for _ in range(2)]
    said = sorted(run.communicate(timeout=60)[0].strip() for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert said[0] == "False 0"
    assert said[1].startswith("True")
    assert len(whole_stores(tmp_path / "cache")) == 1


def test_the_second_run_says_that_it_waits(images: ImageSet, tmp_path: Path) -> None:
    first_begun, go_on = threading.Event(), threading.Event()
    built: dict[str, StoreBuild] = {}
    told: list[str] = []
    append = PartialStore.append

    def held_up(store: PartialStore, *row: Any) -> None:
        first_begun.set()
        assert go_on.wait(30)
        append(store, *row)

    def second_warned(sentence: str) -> None:
        told.append(sentence)
        go_on.set()  # not before the second has found the lock taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialStore, "append", held_up)
        first = threading.Thread(target=lambda: built.update(first=build(images, tmp_path / "cache", SIDE)))
        first.start()
        assert first_begun.wait(30)
        built["second"] = build(images, tmp_path / "cache", SIDE, warn=second_warned)
        first.join()
    assert len(told) == 1
    assert told[0].startswith("another run decodes the same images (it holds ")
    assert (built["first"].reused, built["second"].reused) == (False, True)
    np.testing.assert_array_equal(built["first"].store.gather([0], SIDE), built["second"].store.gather([0], SIDE))


def test_a_lock_left_by_a_killed_run_does_not_block(images: ImageSet, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = build(images, cache, SIDE, kind="raw").store.folder
    lock = folder.with_suffix(".lock")
    holder = start(
        f"from filelock import FileLock\nFileLock({str(lock)!r}).acquire()\nprint('held', flush=True)\ninput()"
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    (folder / "store.json").unlink()
    warnings: list[str] = []
    assert not build(images, cache, SIDE, kind="raw", warn=warnings.append).reused
    assert len(warnings) == 1
    assert warnings[0].endswith("it is built again"), "and nothing about waiting"


def without_locks(patch: pytest.MonkeyPatch, code: int = errno.ENOLCK) -> None:
    def lacking(handle: int, *, blocking: bool) -> bool:
        raise OSError(code, "No locks available")

    patch.setattr(files, "lock_descriptor", lacking)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(
    code: int, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, code)
    warnings: list[str] = []
    with stopped_at(25, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cache", SIDE, kind="raw", warn=warnings.append)
    assert len(warnings) == 1
    assert "is on a file system without locks" in warnings[0]
    assert whole_stores(tmp_path / "cache") == [], "nobody could tell whose the partial work is"
    built = build(images, tmp_path / "cache", SIDE, kind="raw", warn=warnings.append)
    assert not built.reused
    assert len(warnings) == 2


def test_without_locks_the_first_store_stays(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    both = threading.Barrier(2, timeout=30)
    appear = ingest_module._appear

    def together(work: Path, folder: Path) -> None:
        both.wait()  # now both have a whole store and neither has moved it into place
        appear(work, folder)

    monkeypatch.setattr(ingest_module, "_appear", together)
    built: list[StoreBuild] = []
    told: list[str] = []
    runs = [
        threading.Thread(target=lambda: built.append(build(images, tmp_path / "cache", SIDE, warn=told.append)))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(built) == len(told) == 2
    assert whole_stores(tmp_path / "cache") == [built[0].store.folder.name]
    np.testing.assert_array_equal(built[0].store.gather(range(COUNT), SIDE), built[1].store.gather(range(COUNT), SIDE))


def test_a_lock_that_cannot_be_made_is_one_sentence(images: ImageSet, tmp_path: Path) -> None:
    stores = tmp_path / "cache" / "stores"
    folder = build(images, tmp_path / "cache", SIDE, kind="raw").store.folder
    (folder / "store.json").unlink()
    folder.with_suffix(".lock").unlink()
    folder.with_suffix(".lock").mkdir()
    with pytest.raises(EtudeError, match=f"{stores}.* cannot be written"):
        build(images, tmp_path / "cache", SIDE, kind="raw")
