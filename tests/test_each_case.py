"""``@pytest.mark.each`` runs every case and names those that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from each_case import cases_of, check_all


@pytest.mark.each("number", [1, pytest.param(2, id="two")])
@pytest.mark.each(("word", "length"), [("a", 1), ("bc", 2)], ids=["one letter", "two letters"])
def test_a_case_has_its_arguments_and_a_folder_of_its_own(
    number: int, word: str, length: int, tmp_path: Path, request: pytest.FixtureRequest
):
    assert (number in (1, 2), len(word)) == (True, length)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "made").touch()
    assert request.node.name.endswith("[4 cases]")


def test_cases_are_all_combinations():
    cases = cases_of(test_a_case_has_its_arguments_and_a_folder_of_its_own.pytestmark)
    assert [name for name, _ in cases] == [
        "one letter number=1", "one letter two", "two letters number=1", "two letters two",
    ]  # fmt: skip
    assert [given["word"] + str(given["number"]) for _, given in cases] == ["a1", "a2", "bc1", "bc2"]


def test_what_fails_is_named_and_the_rest_is_run():
    seen: list[int] = []

    def check(number: int) -> None:
        seen.append(number)
        assert number != 2
        if number == 3:
            pytest.fail("three")
        if number == 4:
            raise KeyError(number)

    cases = cases_of([pytest.mark.each("number", range(1, 6)).mark])
    with pytest.raises(AssertionError) as told:
        check_all(check, cases, {})
    assert seen == [1, 2, 3, 4, 5]
    assert "3 of 5 cases failed" in str(told.value)
    assert all(f"[number={number}]" in str(told.value) for number in (2, 3, 4))
    assert "[number=1]" not in str(told.value)


def test_no_cases_are_a_failure():
    with pytest.raises(AssertionError, match="no case"):
        cases_of([pytest.mark.each("number", []).mark])
