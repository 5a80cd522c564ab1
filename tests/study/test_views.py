"""Stage 1 on augmented views of the training images, as a user asks for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from etude.study.run.frozen import FrozenFeatures
from picture_folders import write_classes

QUICK = ("--recipe", "quick", "--set", "model.feature_size=64")


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def stages_of(folder: Path) -> list[str]:
    return [stage["name"] for stage in record_of(folder)["stages"]]


def view_files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache" / "features").glob("*-*.npz")}


def test_more_views_compute_the_new_ones_only(etude, tmp_path):
    train = write_classes(tmp_path / "train")
    asked = ("--set", "augment.policy=photos")
    ended = etude("fit", train, *QUICK, *asked, "--set", "head.views=2", "--out", "two")
    assert ended.code == 0, ended.err
    first = view_files(tmp_path)
    assert etude("fit", train, *QUICK, *asked, "--set", "head.views=4", "--out", "four").code == 0
    assert len(first) == 1
    assert first < view_files(tmp_path)
    assert len(view_files(tmp_path)) == 3
    stages = stages_of(tmp_path / "four")
    assert stages.index("features") < stages.index("views") < stages.index("head")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("two", "four")]
    assert weights[0] != weights[1]


def test_an_automatic_policy_is_settled_before_the_views(etude, tmp_path):
    train = write_classes(tmp_path / "train")
    ended = etude("fit", train, *QUICK, "--set", "head.views=2", "--set", "predict.tta=1", "--out", "run")
    assert ended.code == 0, ended.err
    stages = stages_of(tmp_path / "run")
    assert stages.index("symmetry") < stages.index("head")
    settled = record_of(tmp_path / "run")["augmentation"]["policy"]
    assert ("views" in stages) == (settled != "none")


def test_views_without_augmentation_are_told_to_be_idle(etude, tmp_path):
    train = write_classes(tmp_path / "train")
    ended = etude("fit", train, *QUICK, "--set", "head.views=3", "--set", "augment.policy=none", "--out", "run")
    assert ended.code == 0, ended.err
    (warning,) = [each["text"] for each in record_of(tmp_path / "run")["warnings"] if "head.views" in each["text"]]
    assert "head.views=3 is left at 1" in warning
    assert "views" not in stages_of(tmp_path / "run")


def test_folds_share_the_views(etude, tmp_path):
    train = write_classes(tmp_path / "train")
    asked = ("--set", "augment.policy=photos", "--set", "head.views=2")
    ended = etude("fit", train, *QUICK, *asked, "--folds", "2", "--out", "run")
    assert ended.code == 0, ended.err
    assert len(view_files(tmp_path)) == 1
    assert stages_of(tmp_path / "run").count("views") == 1


def test_views_of_rows_belong_to_their_images():
    values = np.arange(40, dtype=np.float16).reshape(10, 4)
    rows = np.array([1, 2, 5, 7, 9])
    features = FrozenFeatures(
        frozen=None,  # type: ignore[arg-type]
        preprocessing=None,  # type: ignore[arg-type]
        values=values,
        reused=False,
        augmented=(rows, np.stack([values[rows] + 100, values[rows] + 200])),
    )
    asked = np.array([7, 1, 9])
    found = features.views_of(asked)
    assert found.shape == (3, 3, 4)
    for view in range(3):
        np.testing.assert_array_equal(found[view], values[asked] + 100 * view)


def test_views_of_an_edited_transform_are_not_those_of_the_cache(etude, tmp_path):
    train, name = write_classes(tmp_path / "train"), f"changes_{tmp_path.name}"

    def weights(code: str, out: str, cache: str) -> bytes:
        (tmp_path / f"{name}.py").write_text(f"def change(image):\n    return {code}\n")
        sys.modules.pop(name, None)
        asked = ("--set", "head.views=2", "--set", f"augment.transform={name}:change", "--set", "augment.policy=none")
        ended = etude("fit", train, *QUICK, *asked, "--out", out, "--cache", cache)
        assert ended.code == 0, ended.err
        return (tmp_path / out / "model.safetensors").read_bytes()

    before = weights("255 - image", "before", "warm")
    warm, cold = weights("image // 4", "edited", "warm"), weights("image // 4", "fresh", "cold")
    assert warm == cold != before
