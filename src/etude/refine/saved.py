"""Fitted refiners as JSON and plain arrays, to be applied later: no pickle, and nothing in the file is ever called."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from etude.core.arrays import Arrays
from etude.core.errors import EtudeError

# Objects of these rooms only are made again, attribute by attribute; a file cannot name anything else.
_ROOMS = ("etude.refine.", "etude.core.")


def encoded(value: Any, arrays: Arrays) -> Any:
    """Return ``value`` as JSON; its arrays are added to ``arrays``, and stand in the JSON by their names.

    Args:
        value: a refiner or another object of ours, numbers, texts, arrays, and tuples, lists and dicts of such.

    Raises:
        EtudeError: something in it is none of these.

    >>> arrays = {}
    >>> encoded((1, np.array([0.5])), arrays), list(arrays)
    ({'tuple': [1, {'array': 'a0'}]}, ['a0'])
    """
    if isinstance(value, np.generic):
        return encoded(cast("Any", value).item(), arrays)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.ndarray):
        return _kept(cast("np.ndarray[Any, Any]", value), arrays)
    if isinstance(value, Path):
        return str(value)
    return _encoded_parts(value, arrays)


def decoded(tree: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """Return what :func:`encoded` was given.

    Raises:
        EtudeError: the JSON was not made by it.
    """
    if not isinstance(tree, dict):
        return tree
    (kind, content), *rest = cast("dict[str, Any]", tree).items()
    makers: dict[str, Callable[[Any], Any]] = {
        "float": float,
        "array": lambda name: arrays[name],
        "tuple": lambda items: tuple(decoded(item, arrays) for item in items),
        "list": lambda items: [decoded(item, arrays) for item in items],
        "set": lambda items: frozenset(decoded(item, arrays) for item in items),
        "dict": lambda items: {decoded(key, arrays): decoded(item, arrays) for key, item in items},
        "object": lambda name: _made(name, {key: decoded(item, arrays) for key, item in rest[0][1]}),
    }
    if kind not in makers:
        raise EtudeError(f"{kind!r} is no part of a saved refiner: the file was damaged or is another kind of file")
    return makers[kind](content)


def _kept(value: np.ndarray[Any, Any], arrays: Arrays) -> dict[str, str]:
    if value.dtype.kind not in "biufU":
        raise EtudeError(f"an array of type {value.dtype} cannot be saved with a refiner: give numbers or texts")
    name = next((known for known, array in arrays.items() if array is value), f"a{len(arrays)}")
    arrays[name] = value
    return {"array": name}


def _encoded_parts(value: Any, arrays: Arrays) -> dict[str, Any]:
    anything: Any = value  # what isinstance would narrow to a tuple of unknown types
    if isinstance(value, tuple) and not hasattr(anything, "_fields"):
        return {"tuple": [encoded(item, arrays) for item in anything]}
    if isinstance(value, list):
        return {"list": [encoded(item, arrays) for item in anything]}
    if isinstance(value, frozenset):
        return {"set": [encoded(item, arrays) for item in sorted(anything)]}
    if isinstance(value, dict):
        return {"dict": [[encoded(key, arrays), encoded(item, arrays)] for key, item in anything.items()]}
    kind = cast("type[Any]", type(anything))
    name = f"{kind.__module__}:{kind.__qualname__}"
    if not name.startswith(_ROOMS):
        raise EtudeError(f"{name} cannot be saved with a refiner: fit with an option that keeps plain arrays")
    return {"object": name, "parts": [[key, encoded(item, arrays)] for key, item in _parts(anything).items()]}


def _parts(value: Any) -> dict[str, Any]:
    if hasattr(value, "_fields"):  # a named tuple
        return dict(zip(value._fields, value, strict=True))
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return cast("dict[str, Any]", vars(value))


def _made(name: str, parts: dict[str, Any]) -> Any:
    module, _, qualified = name.partition(":")
    if not name.startswith(_ROOMS) or not qualified.isidentifier():
        raise EtudeError(f"a saved refiner may not hold an object of {name!r}: the file did not come from etude")
    try:
        kind: Any = getattr(import_module(module), qualified)
    except (ImportError, AttributeError):
        raise EtudeError(f"this version of etude has no {name!r}: apply the file with the one that wrote it") from None
    if not inspect.isclass(kind):
        raise EtudeError(f"a saved refiner may not hold {name!r}, which is no class: the file did not come from etude")
    if issubclass(kind, tuple):
        anything: Any = tuple
        return anything.__new__(kind, parts.values())
    made = object.__new__(kind)
    for key, value in parts.items():
        object.__setattr__(made, key, value)  # a frozen dataclass lets nobody else
    return made
