"""The pool of unlabelled images, and the share that it has of a batch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from etude.core.context import Context, Silent
from etude.core.errors import EtudeError
from etude.data.dataset import Dataset, open_dataset
from etude.data.loader import concatenated_rows
from etude.data.scan import scan_images
from etude.data.sources import read_unlabelled
from etude.recipe import load_recipe
from etude.recipe.resolve import labelled_share, mixed_recipe, share_caution, supervised_recipe
from etude.study.run.prepare import Prepared
from etude.study.run.session import Session
from etude.study.unlabelled.pool import Pool, PoolPart, pool_of
from picture_folders import picture


def dataset(folder: Path, numbers: range | list[int]) -> Dataset:
    folder.mkdir()
    for number in numbers:
        picture(number % 2, number, 24).save(folder / f"{number:03d}.png")
    return opened(folder)


def opened(folder: Path) -> Dataset:
    images = read_unlabelled(folder)
    cache = folder.parent / "cache"
    return open_dataset(images, scan_images(images, Silent()), 24, Context(Silent(), print, cache), fit="squash")


class FakeSession:
    """A session that only keeps what is written and said."""

    def __init__(self) -> None:
        self.sections: dict[str, Any] = {}
        self.said: list[str] = []
        self.request = SimpleNamespace(teachers=())
        self.record = SimpleNamespace(get=self.sections.get, set=self.sections.__setitem__)
        self.screen = SimpleNamespace(say=self.said.append)
        self.folder = Path("run")

    def keep_inputs(self, now: Mapping[str, str]) -> None:
        Session.keep_inputs(cast(Session, self), now)


def pool(session: FakeSession, *, method: str = "rounds", use_test: bool = True, **data: Dataset | None) -> Pool | None:
    recipe = load_recipe("default", [f"unlabeled.method={method}", f"unlabeled.use_test={str(use_test).lower()}"])
    given = {"unlabelled": None, "test": None, **data}
    prepared = SimpleNamespace(recipe=recipe, on_device=None, **given)
    return pool_of(cast(Session, session), cast(Prepared, prepared))


def test_every_content_is_in_the_pool_once_and_no_labelled_one(tmp_path: Path):
    labelled = dataset(tmp_path / "labelled", range(6))
    dataset(tmp_path / "more", range(4, 14))  # two of them labelled
    shutil.copy(tmp_path / "more" / "008.png", tmp_path / "more" / "again.png")
    more = opened(tmp_path / "more")
    test = dataset(tmp_path / "test", range(12, 18))  # two of them unlabelled
    session = FakeSession()
    found = pool(session, data=labelled, unlabelled=more, test=test)
    assert found is not None
    assert found.ids == (
        *(f"unlabeled/{k:03d}.png" for k in range(6, 14)),
        *(f"test/{k:03d}.png" for k in range(14, 18)),
    )
    assert session.sections["unlabelled"]["copies"] == 2 + 1 + 2
    assert session.said == [
        "unlabelled images: 8 of --unlabeled and 4 of --test; 5 copies of other images are left out"
    ]
    assert len(pool(FakeSession(), data=labelled, unlabelled=more, test=test, use_test=False) or ()) == 8
    assert pool(FakeSession(), data=labelled, unlabelled=more, test=test, method="off") is None


def test_nothing_but_copies_is_refused(tmp_path: Path):
    labelled = dataset(tmp_path / "labelled", range(6))
    with pytest.raises(EtudeError, match="also among the labelled ones"):
        pool(FakeSession(), data=labelled, unlabelled=labelled)


def test_a_resumed_run_finds_the_same_images_or_refuses(tmp_path: Path):
    labelled, more, less = (
        dataset(tmp_path / name, numbers) for name, numbers in (("a", [0]), ("b", [1, 2]), ("c", [2]))
    )
    session = FakeSession()
    for _ in range(2):
        assert len(pool(session, data=labelled, unlabelled=more) or ()) == 2
    with pytest.raises(EtudeError, match="have changed since run was begun"):
        pool(session, data=labelled, unlabelled=less)


def test_training_rows_are_the_chosen_images_with_what_belongs_to_them(tmp_path: Path):
    one, other = dataset(tmp_path / "a", range(5)), dataset(tmp_path / "b", range(10, 16))
    both = Pool((PoolPart("unlabeled", one, np.array([0, 2, 4])), PoolPart("test", other, np.arange(6))))
    chosen = np.array([1, 2, 3, 8])
    targets = np.eye(4, 3, dtype=np.float32)
    parts = both.training_rows(chosen, 3, targets, np.arange(4, dtype=np.float32))
    assert [len(part) for part in parts] == [2, 2]
    rows = concatenated_rows(*parts)
    expected = np.concatenate([one.build.store.gather([2, 4], 24), other.build.store.gather([0, 5], 24)])
    np.testing.assert_array_equal(rows.gather(rows.rows, 24), expected)
    np.testing.assert_array_equal(rows.targets, targets)
    np.testing.assert_array_equal(rows.weights, [0, 1, 2, 3])
    assert not rows.is_labelled(np.arange(4)).any()
    bare = concatenated_rows(*both.training_rows(chosen, 3))
    assert not bare.dense_targets(np.arange(4)).any()
    assert (bare.weights == 1).all()


@pytest.mark.parametrize(
    ("recipe", "labelled", "unlabelled", "share"),
    [
        ("pseudo-label", 10, 1_000, 0.7),
        ("consistency", 10, 1_000, 0.125),
        ("consistency", 300, 700, 0.3),
        ("consistency", 1_000, 10, 0.7),
    ],
)
def test_labelled_share(recipe: str, labelled: int, unlabelled: int, share: float):
    assert labelled_share(load_recipe(recipe), labelled, unlabelled) == pytest.approx(share)


def test_caution_outside_the_safe_range_of_rounds_only():
    told = {share: share_caution(load_recipe("pseudo-label", [f"unlabeled.labeled_share={share}"])) for share in
            (0.3, 0.65, 0.7, 0.75, 0.9)}  # fmt: skip
    assert [share for share, caution in told.items() if caution] == [0.3, 0.9]
    assert "labeled_share=0.3: 65% to 75% labelled images a batch" in (told[0.3] or "")
    assert share_caution(load_recipe("consistency", ["unlabeled.labeled_share=0.3"])) is None
    assert share_caution(load_recipe("consistency")) is None


def test_a_mixed_training_has_its_own_length_and_batches_only_where_asked():
    recipe = load_recipe("consistency", ["train.batch_size=16"])
    assert mixed_recipe(recipe) == recipe
    asked = ["unlabeled.length=50st", "unlabeled.batch_size=64", "timeline.length=9st"]
    own = mixed_recipe(load_recipe("consistency", asked))
    assert (own.timeline.length, own.train.batch_size) == ("50st", 64)
    alone = supervised_recipe(load_recipe("consistency", asked))
    assert (alone.timeline.length, alone.train.batch_size, alone.unlabeled.method) == ("9st", 32, "off")
