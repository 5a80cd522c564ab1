"""Near-duplicates: identical files, images with nearly equal pixels, and rows of features that lie unusually close.

Of pictures, :func:`near_duplicate_images` finds nearly all pairs by their pixels; a network's features move much with
an image's light and frame, so of images that were cropped or re-encoded :func:`near_duplicates` finds only some.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA

from etude.core.errors import EtudeError
from etude.core.processor import blas_threads_for, usable_cores
from etude.data.dataset import Dataset
from etude.refine.neighbours.index import (
    Floats,
    NeighbourIndex,
    Neighbours,
    UnitRows,
    checked_features,
    pair_distances,
    squared_distances,
)

Gather = Callable[[np.ndarray, int], np.ndarray]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""First rows, second rows, similarities."""

SIDE = 32  # pixels on a side at which images are compared
_COARSE = 16
_MARGIN = SIDE // 12  # pixels at the border that a crop or a frame may have changed
_FINE, _WIDE = SIDE / 40, SIDE / 8  # blurs: what is finer is noise of the file, what is wider is light
_NOISE = 8.0  # levels: structure of less contrast than this counts for less
_CLOSE = 0.15  # difference above which no small movement makes two pictures the same
_STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-3)
_SMALL_MOVE = 0.15  # how far from the identity a movement may go; beyond it much can be laid onto much
_TINT = 16.0  # levels of colour, light aside, by which two pictures differ in more than a file's way of storing it
_LEAST_COMMON = 0.4  # of the picture that must be left to compare once one is moved
_AT_ONCE = 4_096
_A_BLOCK = 128

_NEAREST = 4  # neighbours of each image that are compared with it
_FEWEST = 8  # images below which there is no neighbourhood to compare with
_AXES = 128
# Chosen on near-duplicates of digits that were planted with other seeds than those of benchmarks/data_health.py:
_SAME = 0.01  # difference that files of one picture have: JPEG, light, other size, a small crop
_CLOSER = 0.22  # of the usual difference from a neighbour
_HARDLY, _NEARLY_AS_CLOSE = 0.002, 0.4  # the same for pictures that differ less than light and JPEG alone explain
_BOTH = 5e-4  # product of the two: what is a little farther must stand out more
_ROUNDING = 2e-4

_AROUND = 24  # neighbours that say how far from each other unrelated images lie here
_LARGEST_GROUP = 12  # near-duplicates of one image; more are a crowded place
_WIDEST = (
    0.8  # near-duplicates lie within this part of the distance to the next image, also where chance would allow more
)
_EQUAL = 1e-3  # distances that rounding to float16 makes of equal features
_BLOCK = 2**24  # distances held at once: 64 MiB


class NearDuplicate(NamedTuple):
    """Two near-duplicate rows, and the cosine of their centred features."""

    first: int
    second: int
    similarity: float


def near_duplicates(
    features_a: ArrayLike,
    features_b: ArrayLike | None = None,
    threshold: float | None = None,
    *,
    false_pairs: float = 1.0,
    most: int = 10_000,
) -> list[NearDuplicate]:
    """Return pairs of near-duplicates, the most similar first; of more than ``most``, the most similar.

    Without ``threshold`` the data decide, by each row's own neighbourhood. Let r_1 ≤ r_2 ≤ ... be its distances to the
    others. Where rows are spread evenly around it in d dimensions, (r_m / r_(m+1))^d is the largest of m uniform
    numbers, so the gap behind the m nearest rows has the probability

        P(r_m / r_(m+1) ≤ c) = c^(d m)

    d is estimated at each row from the distances behind the gap, and lowered by its standard error. The m that is least
    likely is taken; its rows are near-duplicates where the probability is at most ``false_pairs`` / N, and the gap at
    least a fifth. Both rows of a pair must find each other. So crowded places (ones among digits) ask for closer pairs
    than empty ones. Rows that are equal up to rounding always count.

    Source: the spacing of nearest neighbours and the estimate of d are those of Levina & Bickel 2004, "Maximum
    likelihood estimation of intrinsic dimension", and Facco et al. 2017 (https://arxiv.org/abs/1803.06992).

    Args:
        features_a: (A, D) floats.
        features_b: (B, D) floats: the pairs are then rows of ``a`` with rows of ``b``; None: rows of ``a`` among
            themselves, the smaller row first.
        threshold: the least similarity from -1 to 1, when it is known: every pair that reaches it is returned.
        false_pairs: unrelated pairs that may be expected to slip in.

    Raises:
        EtudeError: the features, the threshold or ``false_pairs`` cannot be used.

    >>> rows = np.random.default_rng(0).normal(size=(60, 8))
    >>> [(pair.first, pair.second) for pair in near_duplicates(rows, rows[[7, 40]] + 0.01)]
    [(7, 0), (40, 1)]
    >>> near_duplicates(rows)
    []
    """
    table = checked_features(features_a, "the first images")
    size_a = len(table)
    if features_b is not None:
        second = checked_features(features_b, "the second images", table.shape[1], "the first images")
        table = np.concatenate([table, second])
    if threshold is None:
        pairs = _by_neighbourhood(table, false_pairs)
    elif -1 <= threshold <= 1:
        pairs = _above(table, threshold, size_a, most)
    else:
        raise EtudeError(f"the similarity of near-duplicates must be from -1 to 1, not {threshold}")
    first, second, similarity = pairs
    if features_b is not None:
        across = (first < size_a) & (second >= size_a)
        first, second, similarity = first[across], second[across] - size_a, similarity[across]
    order = np.lexsort((second, first, -similarity))[:most]
    return [
        NearDuplicate(int(a), int(b), round(float(cosine), 6))
        for a, b, cosine in zip(first[order], second[order], similarity[order], strict=True)
    ]


def _by_neighbourhood(table: Floats, false_pairs: float) -> Pairs:
    if not false_pairs > 0:
        raise EtudeError(f"false_pairs must be above 0, not {false_pairs}")
    if len(table) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    found = NeighbourIndex(table).among_themselves(min(_AROUND, len(table) - 1))
    count, around = found.positions.shape
    near = cast("NDArray[np.bool_]", np.arange(around) < _groups(found, np.log(false_pairs / count))[:, None])
    rows, others = np.nonzero(near)[0], found.positions[near]
    mutual = np.isin(others * count + rows, rows * count + others) & (rows < others)
    return rows[mutual], others[mutual], 1 - found.distances[near][mutual] ** 2 / 2


def _groups(found: Neighbours, most: float) -> NDArray[np.int64]:
    """Return how many of the nearest rows are near-duplicates, (N,), where log P of the gap is at most ``most``."""
    logs = np.log(np.maximum(found.distances, _EQUAL))
    count, around = logs.shape
    sizes, chance = np.zeros(count, np.int64), np.zeros(count)
    for m in range(1, min(_LARGEST_GROUP, around - 3) + 1):
        behind = around - m - 1  # ratios r_K / r_j that the dimension is estimated from
        spread = (logs[:, -1:] - logs[:, m:-1]).sum(axis=1)
        dimension = behind / np.maximum(spread, 1e-9) * (1 - 1 / np.sqrt(behind))
        gap = logs[:, m] - logs[:, m - 1]
        probability = -np.minimum(dimension, 1e3) * m * gap
        better = (probability < chance) & (probability <= most) & (gap >= -np.log(_WIDEST))
        sizes[better], chance[better] = m, probability[better]
    return np.maximum(sizes, (found.distances <= _EQUAL).sum(axis=1))


def _above(table: Floats, threshold: float, size_a: int, most: int) -> Pairs:
    """Return the pairs that reach the threshold: rows of ``a`` with the rest; all with all where there is none."""
    rows = UnitRows.of(table, table.mean(axis=0, dtype=np.float64))
    start_of_others = size_a if size_a < len(table) else 0
    others = rows.take(slice(start_of_others, None))
    radius = float(np.sqrt(max(0.0, 2 - 2 * threshold)))
    kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    step = max(1, _BLOCK // len(table))
    for start in range(0, size_a, step):
        squared = squared_distances(rows.take(slice(start, min(start + step, size_a))), others)
        own = np.arange(start, start + len(squared))
        squared[np.arange(start_of_others, len(table)) <= own[:, None]] = np.inf  # each pair once, none with itself
        close = np.flatnonzero(squared <= radius**2 + 1e-4)
        if len(close) > most:
            close = np.sort(close[np.argpartition(squared.ravel()[close], most)[:most]])
        first, second = np.divmod(close, len(others.values))
        first, second = first + start, second + start_of_others
        far = pair_distances(rows.values, rows.values, first, second)
        near = far <= radius
        first, second = np.concatenate((kept[0], first[near])), np.concatenate((kept[1], second[near]))
        similarity = np.concatenate((kept[2], 1 - far[near] ** 2 / 2))
        order = np.lexsort((second, first, -similarity))[:most]
        kept = first[order], second[order], similarity[order]
    return kept


def reliefs(pictures: np.ndarray) -> np.ndarray:
    """Return (N, S, S) float32, structure without light and contrast, of (N, S, S, channels) uint8 pictures."""
    found = np.empty(pictures.shape[:3], np.float32)

    def fill(place: int) -> None:
        grey = cv2.GaussianBlur(pictures[place].mean(axis=2, dtype=np.float32), (0, 0), _FINE)
        above = grey - cv2.GaussianBlur(grey, (0, 0), _WIDE)
        found[place] = above / (np.sqrt(cv2.GaussianBlur(above * above, (0, 0), _WIDE)) + _NOISE)

    _for_each(fill, np.arange(len(pictures)))
    return found


def coarse(relief: np.ndarray) -> np.ndarray:
    """Return (N, 256) float32: reliefs so blurred that small movements hardly change them, to find neighbours by."""
    rows = [
        cv2.resize(cv2.GaussianBlur(one, (0, 0), SIDE / 24), (_COARSE, _COARSE), interpolation=cv2.INTER_AREA)
        for one in relief
    ]
    return np.array(rows, np.float32).reshape(len(relief), _COARSE**2)


def differences(pictures: np.ndarray, relief: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return 1 - the correlation of the reliefs of each pair, (P,) from 0 to 2; 1 where the colours are others.

    Close ones are laid onto each other by an affine movement (Evangelidis & Psarakis 2008, enhanced correlation).
    """
    found = _plain(relief, first, second)
    found[_other_tints(pictures, first, second)] = 1.0

    def lay(pair: int) -> None:
        found[pair] = min(found[pair], _moved(relief[first[pair]], relief[second[pair]]))

    _for_each(lay, np.flatnonzero(found <= _CLOSE))
    return found


def _for_each(work: Callable[[int], None], places: np.ndarray) -> None:
    """Do ``work`` at each place, in threads; many places at once, as handing one over costs as much as some of them."""

    def do(start: int) -> None:
        for place in places[start : start + _A_BLOCK].tolist():
            work(place)

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="etude-pairs") as pool:
        list(pool.map(do, range(0, len(places), _A_BLOCK)))


def _plain(relief: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    inner = relief[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].reshape(len(relief), -1)
    inner = inner - inner.mean(axis=1, keepdims=True)
    inner /= np.maximum(np.linalg.norm(inner, axis=1, keepdims=True), 1e-6)
    found = np.empty(len(first))
    for start in range(0, len(first), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found[part] = 1 - np.einsum("pd,pd->p", inner[first[part]], inner[second[part]])
    return found


def _other_tints(pictures: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    count, side, _, channels = pictures.shape
    if channels == 1:
        return np.zeros(len(first), bool)
    field = side // 4
    fields = pictures.reshape(count, 4, field, 4, field, channels).mean(axis=(2, 4), dtype=np.float32)
    tint = (fields - fields.mean(axis=3, keepdims=True)).reshape(count, -1)
    distance = np.abs(tint[first] - tint[second]).mean(axis=1)
    return distance > _TINT


def _moved(first: np.ndarray, second: np.ndarray) -> float:
    """Return the difference once ``second`` is moved onto ``first``; 2 where no small movement is found."""
    inside = np.zeros(first.shape, np.uint8)
    inside[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = 1
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        cv2.findTransformECC(first, second, warp, cv2.MOTION_AFFINE, _STEPS, inside, 1)
    except cv2.error:  # it does not converge: the pictures have little in common
        return 2.0
    if np.abs(warp - np.eye(2, 3))[:, :2].max() > _SMALL_MOVE:
        return 2.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid = cv2.warpAffine(second, warp, first.shape[::-1], flags=flags)
    covered = cv2.warpAffine(np.ones_like(first), warp, first.shape[::-1], flags=flags) > 0.99
    common = covered & (inside > 0)
    if common.mean() < _LEAST_COMMON:
        return 2.0
    x, y = first[common] - first[common].mean(), laid[common] - laid[common].mean()
    length = float(np.sqrt((x @ x) * (y @ y)))
    return 1 - float(x @ y) / length if length > 0 else 2.0


class Image(NamedTuple):
    """An image that is examined; ``split`` is train, valid, test, or fold 1 and so on."""

    id: str
    split: str
    content: str  # hash of the file's bytes
    label: str | None  # None where unknown


@dataclass(frozen=True, slots=True)
class Images:
    """The N images that are examined, of one set or of two; ``gather(places, size)`` returns their pixels."""

    rows: tuple[Image, ...]
    gather: Gather

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, data: Dataset, rows: np.ndarray, splits: Sequence[str]) -> Images:
        images, contents = data.images, data.build.content_hashes
        labels = [None] * len(data) if images.labels is None else [images.classes[label] for label in images.labels]
        known = tuple(Image(images.ids[row], splits[row], contents[row], labels[row]) for row in map(int, rows))
        return cls(known, lambda places, size: data.build.store.gather(rows[places], size))

    def followed_by(self, other: Images) -> Images:
        count = len(self)

        def gather(places: np.ndarray, size: int) -> np.ndarray:
            parts = [self.gather(places[places < count], size), other.gather(places[places >= count] - count, size)]
            pixels = np.empty((len(places), *parts[0].shape[1:]), np.uint8)
            pixels[places < count], pixels[places >= count] = parts
            return pixels

        return Images((*self.rows, *other.rows), gather)


def near_duplicate_images(everything: Images, drawn: Images) -> list[dict[str, Any]]:
    """Return near-duplicates: identical files of two labels, those across splits, of two labels, by similarity."""
    found = [
        _pair(everything, a, b, 1.0, exact=True) for a, b in same_files([image.content for image in everything.rows])
    ]
    found += [_pair(drawn, a, b, similarity, exact=False) for a, b, similarity in _near_by_pixels(drawn)]

    def order(pair: dict[str, Any]) -> tuple[Any, ...]:
        mistaken, across = is_contradiction(pair), is_across(pair)
        return not (mistaken and pair["exact"]), not across, not mistaken, -pair["similarity"], pair["a"]

    return sorted(found, key=order)


def same_files(hashes: Sequence[str]) -> list[tuple[int, int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for row, content in enumerate(hashes):
        places[content].append(row)
    return sorted((rows[0], other) for rows in places.values() for other in rows[1:])


def is_across(pair: dict[str, Any]) -> bool:
    return pair["splits"][0] != pair["splits"][1]


def is_contradiction(pair: dict[str, Any]) -> bool:
    return None not in pair["labels"] and pair["labels"][0] != pair["labels"][1]


def duplicated_images(pairs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the ids of validation and test images that are, also by way of others, near-duplicates of training."""
    places: dict[tuple[str, str], int] = {}  # a test image may have the name of another
    ends = [
        [places.setdefault(end, len(places)) for end in zip((pair["a"], pair["b"]), pair["splits"], strict=True)]
        for pair in pairs
    ]
    first, second = np.array(ends, np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(pairs), bool), (first, second)), shape=(len(places), len(places)))
    groups: list[int] = connected_components(links, directed=False)[1].tolist()
    splits: dict[int, set[str]] = defaultdict(set)
    for group, (_, split) in zip(groups, places, strict=True):
        splits[group].add(split)
    found: dict[str, list[str]] = {"validation": [], "test": []}
    for group, (name, split) in zip(groups, places, strict=True):
        if split != "train" and splits[group] - {split, "valid", "test"}:
            found["test" if split == "test" else "validation"].append(name)
    return found


def _near_by_pixels(images: Images) -> list[tuple[int, int, float]]:
    """Return pairs (place, place, similarity) that hardly differ, and far less than either from other neighbours."""
    places = np.sort(np.unique([image.content for image in images.rows], return_index=True)[1])
    if len(places) < _FEWEST:
        return []
    pictures = images.gather(places, SIDE)
    relief = reliefs(pictures)
    # With as many axes as rows, whitening would put all rows equally far from each other.
    first, second = _candidates(_whitened(coarse(relief), min(_AXES, len(places) // _FEWEST)))
    found = differences(pictures, relief, first, second)
    around = _usual_difference(first, second, found, len(places))
    least = np.minimum(around[first], around[second])
    ratio = (found + _ROUNDING) / (least + _ROUNDING)
    stands_out = (ratio <= _CLOSER) & (found * ratio <= _BOTH)
    kept = (found <= _SAME) & (stands_out | ((found <= _HARDLY) & (ratio <= _NEARLY_AS_CLOSE)))
    pairs = zip(places[first[kept]].tolist(), places[second[kept]].tolist(), found[kept].tolist(), strict=True)
    return [(a, b, round(1 - difference, 4)) for a, b, difference in pairs]


def _whitened(rows: np.ndarray, most: int) -> NDArray[np.float32]:
    """Return float32 scores on the first ``most`` principal axes, each of unit variance."""
    with blas_threads_for(rows.size * rows.shape[1]), np.errstate(invalid="ignore"):  # shares of no variance
        axes = PCA(min(most, *rows.shape), svd_solver="covariance_eigh").fit(rows.astype(np.float64))
        scores, variances = axes.transform(rows), np.maximum(axes.explained_variance_, 1e-30)
    kept = variances > 1e-9 * variances[0]
    return np.asarray(scores[:, kept] / np.sqrt(variances[kept]), np.float32)


def _candidates(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = len(rows)
    near = NeighbourIndex(rows).among_themselves(min(_NEAREST, count - 1)).positions
    own, other = np.repeat(np.arange(count), near.shape[1]), near.ravel()
    keys = np.unique(np.minimum(own, other) * count + np.maximum(own, other))
    return np.divmod(keys, count)


def _usual_difference(first: np.ndarray, second: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """Return the median difference of each image from the neighbours that it was compared with, (N,)."""
    rows, values = np.concatenate([first, second]), np.concatenate([found, found])
    order = np.lexsort((values, rows))
    starts = np.searchsorted(rows[order], np.arange(count + 1))
    return values[order][(starts[:-1] + starts[1:]) // 2]


def _pair(images: Images, a: int, b: int, similarity: float, *, exact: bool) -> dict[str, Any]:
    one, other = images.rows[a], images.rows[b]
    splits, labels = [one.split, other.split], [one.label, other.label]
    return {"a": one.id, "b": other.id, "similarity": similarity, "splits": splits, "labels": labels, "exact": exact}
