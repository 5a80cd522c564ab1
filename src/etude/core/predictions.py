"""``Predictions``: what a model says about N images, as plain numpy; the seam between torch and everything after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.core.arrays import load_arrays, save_arrays
from etude.core.errors import EtudeError, listed

_REQUIRED = ("ids", "classes", "logits")
_OPTIONAL = ("features", "labels")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The logits of V views of N images over C classes. Checked when it is made; its arrays are read-only copies.

    Args:
        ids: N unique image ids.
        classes: C unique class names; column ``c`` of the logits belongs to ``classes[c]``.
        logits: (V, N, C), kept as float32. Any values whose softmax are the class probabilities.
        features: (N, D) float32 or float16 of the backbone, or None.
        labels: (N,) int64 positions in ``classes``, -1 where unknown, or None.

    Raises:
        EtudeError: shapes disagree, an id is repeated, a value is not finite, or there is nothing in it.

    >>> two = Predictions(("a", "b"), ("cat", "dog"), np.array([[[2.0, 0.0], [0.0, 1.0]]]))
    >>> two.predicted().tolist()
    [0, 1]
    >>> two.probabilities().round(2).tolist()
    [[0.88, 0.12], [0.27, 0.73]]
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    logits: NDArray[np.float32]
    features: NDArray[np.float32] | NDArray[np.float16] | None = None
    labels: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        ids, classes = _names("ids", self.ids), _names("classes", self.classes)
        checked: dict[str, Any] = {"ids": ids, "classes": classes, "logits": _logits(self.logits, ids, classes)}
        if self.features is not None:
            checked["features"] = _features(self.features, ids)
        if self.labels is not None:
            checked["labels"] = _labels(self.labels, ids, classes)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.ids)

    def log_probabilities(self) -> NDArray[np.float64]:
        """Return the logarithm of :meth:`probabilities`, (N, C) float64, exact also where they are tiny."""
        total = _log_softmax(self.logits[0])
        for view in self.logits[1:]:
            np.logaddexp(total, _log_softmax(view), out=total)
        return total - np.log(len(self.logits))

    def probabilities(self) -> NDArray[np.float64]:
        """Return the mean over views of the softmax of the logits, (N, C) float64; each row sums to one."""
        return np.exp(self.log_probabilities())

    def predicted(self) -> NDArray[np.int64]:
        """Return the position of each image's most probable class, (N,) int64; the first one on a tie."""
        return np.argmax(self.log_probabilities(), axis=1).astype(np.int64)

    def take(self, indices: ArrayLike) -> Predictions:
        """Return the predictions at ``indices``, (M,) integers or an (N,) mask, in that order."""
        rows: NDArray[np.int64] = np.arange(len(self.ids))[np.asarray(indices)]
        positions = cast("list[int]", rows.tolist())
        return Predictions(
            tuple(self.ids[position] for position in positions),
            self.classes,
            self.logits[:, rows],
            None if self.features is None else self.features[rows],
            None if self.labels is None else self.labels[rows],
        )

    def save(self, path: Path | str) -> None:
        """Write an ``.npz`` of plain arrays (names as unicode), whole or not at all; same content, same bytes."""
        arrays: dict[str, Any] = {"ids": np.array(self.ids), "classes": np.array(self.classes), "logits": self.logits}
        arrays |= {name: getattr(self, name) for name in _OPTIONAL if getattr(self, name) is not None}
        save_arrays(Path(path), arrays)

    @classmethod
    def load(cls, path: Path | str) -> Predictions:
        """Read what :meth:`save` wrote.

        Raises:
            EtudeError: the file is missing, damaged, or holds something else.
        """
        arrays = load_arrays(Path(path), "predictions", _REQUIRED, _OPTIONAL)
        for array in arrays.values():
            array.flags.writeable = False  # so that they are not copied
        for name in ("ids", "classes"):
            if arrays[name].dtype.kind != "U" or arrays[name].ndim != 1:
                raise EtudeError(f"{path}: {name!r} must be a list of texts, not {_shape(arrays[name])}")
        ids, classes = tuple(arrays["ids"].tolist()), tuple(arrays["classes"].tolist())
        try:
            return cls(ids, classes, arrays["logits"], arrays.get("features"), arrays.get("labels"))
        except EtudeError as error:
            raise EtudeError(f"{path}: {error}") from None

    @classmethod
    def from_probabilities(
        cls, ids: Sequence[str], classes: Sequence[str], probs: ArrayLike, labels: NDArray[np.int64] | None = None
    ) -> Predictions:
        """Make one-view predictions from (N, C) probabilities; each row is divided by its sum.

        Raises:
            EtudeError: a value is negative or not finite, or a row is all zero.

        >>> Predictions.from_probabilities(["a"], ["cat", "dog"], [[0.2, 0.6]]).probabilities().round(2).tolist()
        [[0.25, 0.75]]
        """
        values = np.asarray(probs, dtype=np.float64)
        if values.ndim == 2 and values.size and len(values) == len(ids):
            bad = ~np.isfinite(values).all(axis=1) | (values < 0).any(axis=1) | (values.sum(axis=1) <= 0)
            if bad.any():
                first = int(np.argmax(bad))
                raise EtudeError(
                    f"the probabilities of {ids[first]!r} are {values[first].tolist()[:5]}: "
                    "each must be zero or more, and at least one above zero"
                )
            values = values / values.max(axis=1, keepdims=True)  # first, so that huge values do not overflow in the sum
            values /= values.sum(axis=1, keepdims=True)
        # A zero becomes the smallest normal double: its logarithm is finite and its probability still is nothing.
        logits = np.log(np.maximum(values, np.finfo(np.float64).tiny))
        return cls(tuple(ids), tuple(classes), cast("NDArray[np.float32]", logits[None]), labels=labels)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _frozen(values: Any, dtype: Any) -> NDArray[Any]:
    array = np.asarray(values)
    already_ours = array.dtype == dtype and array.base is None and not array.flags.writeable
    if not already_ours:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused as not finite
            array = np.array(array, dtype=dtype)
        array.flags.writeable = False
    return array


def _shape(array: NDArray[Any]) -> str:
    return f"an array of shape {array.shape} and type {array.dtype}"


def _names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise EtudeError(f"{what} must be a sequence of texts, not {names!r:.80}")
    names = tuple(str(name) for name in names)
    if not names:
        raise EtudeError(f"predictions need at least one entry in {what}, and got none")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise EtudeError(f"{what} must be unique; more than once: {listed(repeated)}")
    if broken := [name for name in names if not _is_writable(name)]:
        raise EtudeError(f"{what} may not hold NUL or half of a surrogate pair, and {listed(broken)} do: rename them")
    return names


def _is_writable(name: str) -> bool:
    """Whether ``name`` is the same when read from a file: numpy cuts NULs off the end of a text."""
    try:
        name.encode("utf-8", "surrogateescape")  # a file name that is not UTF-8 passes: it has bytes to go back to
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _refuse_unless_finite(array: NDArray[Any], what: str, ids: tuple[str, ...]) -> None:
    """Raise an error that names the first id with a value that is not finite; ``array`` is (..., N, K)."""
    finite = np.isfinite(array).all(axis=tuple(axis for axis in range(array.ndim) if axis != array.ndim - 2))
    if not finite.all():
        count, first = int((~finite).sum()), ids[int(np.argmin(finite))]
        raise EtudeError(
            f"the {what} of {first!r} hold NaN or infinity ({count:,} of {len(ids):,} images do): "
            "the model diverged or its input was damaged; check that image, or train with a lower learning rate"
        )


def _logits(values: Any, ids: tuple[str, ...], classes: tuple[str, ...]) -> NDArray[np.float32]:
    array = np.asarray(values)
    expected = (len(ids), len(classes))
    if array.dtype.kind not in "fiu" or array.ndim != 3 or array.shape[1:] != expected or not len(array):
        raise EtudeError(
            f"logits must be numbers of shape (views, {expected[0]}, {expected[1]}), as there are "
            f"{expected[0]:,} ids and {expected[1]:,} classes, not {_shape(array)}"
        )
    frozen = _frozen(array, np.float32)
    _refuse_unless_finite(frozen, "logits", ids)
    return frozen


def _features(values: Any, ids: tuple[str, ...]) -> NDArray[Any]:
    array = np.asarray(values)
    floats = array.dtype.name in ("float32", "float16")
    if not floats or array.ndim != 2 or len(array) != len(ids) or not array.shape[1]:
        raise EtudeError(
            f"features must be float32 or float16 of shape ({len(ids)}, D), one row an id, not {_shape(array)}"
        )
    frozen = _frozen(array, array.dtype)
    _refuse_unless_finite(frozen, "features", ids)
    return frozen


def _labels(values: Any, ids: tuple[str, ...], classes: tuple[str, ...]) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.shape != (len(ids),):
        raise EtudeError(f"labels must be {len(ids):,} integers, one an id, not {_shape(array)}")
    outside = (array < -1) | (array >= len(classes))
    if outside.any():
        first = int(np.argmax(outside))
        raise EtudeError(
            f"the label of {ids[first]!r} is {int(array[first])}: "
            f"labels are positions from 0 to {len(classes) - 1} in the classes, or -1 where unknown"
        )
    return _frozen(array, np.int64)
