"""``@pytest.mark.each``: as ``parametrize``, in one item; what fails is named, the other cases run all the same.

For many quick cases, where an item apiece would cost more than the check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

Case = tuple[str, dict[str, Any]]


def cases_of(marks: Iterable[pytest.Mark]) -> list[Case]:
    """Return the name and the arguments of every case: all combinations of what the marks list."""
    listed = [_listed(*mark.args, **mark.kwargs) for mark in marks]
    combined = [
        (" ".join(name for name, _ in chosen), {key: value for _, given in chosen for key, value in given.items()})
        for chosen in product(*listed)
    ]
    assert combined, "there is no case to check"
    return combined


def _listed(names: str | Sequence[str], values: Iterable[Any], ids: Any = None) -> list[Case]:
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    values = list(values)
    known = (
        [ids(value) for value in values] if callable(ids) else list(ids) if ids is not None else [None] * len(values)
    )
    found: list[Case] = []
    for value, name in zip(values, known, strict=True):
        if isinstance(value, type(pytest.param())):
            given, name = value.values, value.id or name
        else:
            given = (value,) if isinstance(names, str) and len(keys) == 1 else value
        told = ", ".join(f"{key}={_short(one)}" for key, one in zip(keys, given, strict=True))
        found.append((told if name is None else str(name), dict(zip(keys, given, strict=True))))
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_all(test: Callable[..., object], cases: Sequence[Case], fixtures: dict[str, Any]) -> None:
    """Run ``test`` on every case, each with a ``tmp_path`` of its own; fail with all that failed, by name."""
    failed: list[tuple[str, BaseException]] = []
    for number, (name, arguments) in enumerate(cases):
        given = {**fixtures, **arguments}
        if isinstance(folder := fixtures.get("tmp_path"), Path):
            given["tmp_path"] = folder / f"case-{number}"
            given["tmp_path"].mkdir()
        try:
            test(**given)
        except (Exception, pytest.fail.Exception) as error:
            failed.append((name, error))
    if failed:
        told = "\n".join(f"[{name}] {type(error).__name__}: {error}" for name, error in failed)
        raise AssertionError(f"{len(failed)} of {len(cases)} cases failed\n{told}") from failed[0][1]
