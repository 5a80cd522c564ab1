from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from etude.core.errors import EtudeError
from etude.refine.soup import Weights, greedy_soup


def written(folder: Path, *values: object, **more: np.ndarray) -> list[Path]:
    """Checkpoints with one weight ``w`` of the given values each, and the same further arrays."""
    paths: list[Path] = []
    for number, value in enumerate(values):
        paths.append(folder / f"{number}.safetensors")
        save_file({"w": np.atleast_1d(np.asarray(value, np.float32)), **more}, str(paths[-1]))
    return paths


def near(goal: float):
    return lambda weights: -abs(float(weights["w"].mean()) - goal)


def test_a_soup_by_hand(tmp_path: Path):
    # Scores alone: -2, -0.5, -1. Best first: 0.5; with 2 the mean is 1.25, nearer to 1; with -1 it is 0.5, farther.
    soup = greedy_soup(written(tmp_path, -1.0, 0.5, 2.0), near(1.0))
    assert [path.name for path in soup.members] == ["1.safetensors", "2.safetensors"]
    assert soup.weights["w"].tolist() == [1.25]
    assert soup.score == pytest.approx(-0.25)
    assert soup.scores == pytest.approx((-2, -0.5, -1))


def test_one_checkpoint_stays_as_it_is(tmp_path: Path):
    (path,) = written(tmp_path, [0.1, 0.2], steps=np.array([7]))
    soup = greedy_soup([path], near(0))
    np.testing.assert_array_equal(soup.weights["w"], load_file(str(path))["w"])
    assert soup.weights["steps"].tolist() == [7]


def test_equal_scores_take_every_checkpoint_the_earlier_first(tmp_path: Path):
    soup = greedy_soup(written(tmp_path, 3.0, 1.0, 2.0), lambda weights: 0.0)
    assert [path.name for path in soup.members] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert soup.weights["w"].tolist() == [2]


@settings(max_examples=20)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=5), st.floats(-3, 3))
def test_a_soup_is_never_worse_than_the_best_and_is_the_mean_of_its_members(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], goal: float
):
    paths = written(tmp_path_factory.mktemp("soup"), *values)
    soup = greedy_soup(paths, near(goal))
    assert soup.score >= max(soup.scores)
    taken = [values[paths.index(path)] for path in soup.members]
    assert soup.weights["w"][0] == pytest.approx(np.mean(taken), abs=1e-6)


def test_types_are_kept_and_integers_are_those_of_the_best(tmp_path: Path):
    paths: list[Path] = []
    for number, value in enumerate((1.0, 4.0)):
        paths.append(tmp_path / f"{number}.safetensors")
        save_file({"half": np.array([value], np.float16), "steps": np.array([number])}, str(paths[-1]))
    soup = greedy_soup(paths, lambda weights: float(weights["half"][0] > 2))
    assert (soup.weights["half"].dtype, soup.weights["half"].tolist()) == (np.float16, [2.5])
    assert soup.weights["steps"].tolist() == [1]
    soup.save(tmp_path / "out" / "soup.safetensors")
    read = load_file(str(tmp_path / "out" / "soup.safetensors"))
    assert {name: value.tolist() for name, value in read.items()} == {"half": [2.5], "steps": [1]}


def test_each_mixture_is_scored_once(tmp_path: Path):
    seen: list[float] = []

    def score(weights: Weights) -> float:
        seen.append(float(weights["w"][0]))
        return -seen[-1]

    greedy_soup(written(tmp_path, 0.0, 2.0, 4.0), score)
    assert seen == [0, 2, 4, 1, 2]  # each alone, then with the best: neither helps


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"v": np.zeros(1, np.float32)}, r"1\.safetensors lacks 'w' and has 'v' as well against .*0\.safetensors"),
        ({"w": np.zeros(1, np.float32), "v": np.zeros(1, np.float32)}, "has 'v' as well"),
        ({"w": np.zeros(2, np.float32)}, r"'w' has shape \(2,\) in .*1\.safetensors and \(1,\) in"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, other: dict[str, np.ndarray], sentence: str):
    (first,) = written(tmp_path, 1.0)
    save_file(other, str(tmp_path / "1.safetensors"))
    with pytest.raises(EtudeError, match=sentence):
        greedy_soup([first, tmp_path / "1.safetensors"], near(0))


def test_mistakes_are_told_in_one_sentence(tmp_path: Path):
    with pytest.raises(EtudeError, match="at least one checkpoint"):
        greedy_soup([], near(0))
    with pytest.raises(EtudeError, match="does not exist"):
        greedy_soup([tmp_path / "none.safetensors"], near(0))
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(EtudeError, match="is not a readable safetensors file"):
        greedy_soup([tmp_path / "text.safetensors"], near(0))
    with pytest.raises(EtudeError, match="the score with .* is nan"):
        greedy_soup(written(tmp_path, 1.0), lambda weights: float("nan"))


def test_weights_that_numpy_has_no_type_for_are_refused(tmp_path: Path):
    header = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    path = tmp_path / "b.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(EtudeError, match="float16, float32 or float64"):
        greedy_soup([path], near(0))
