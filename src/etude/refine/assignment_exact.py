"""The exact half of an assignment: move the fewest nats' worth of images until every class count is within its bounds.

Images that are not where they should be travel along cheapest chains of moves (class to class to class), found by
Dijkstra's algorithm over the classes. Each keeps the assignment optimal for the counts reached so far, so the last one
is optimal: successive shortest paths for minimum-cost flow (Ahuja, Magnanti & Orlin 1993, "Network Flows", 9.7).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

# Two values that differ by less are the same: it covers what float64 loses on differences of float32 numbers.
TIE = 1e-9


class Flow:
    """N images in C classes, and a last node for the room that classes have between their bounds.

    Args:
        log_p: (N, C) float32.
        labels: (N,) a class for each image that maximises log_p + offsets, up to TIE.
        offsets: (C,).
        low, high: (C,) integers; between the sums of both lies N.

    Attributes:
        labels: (N,) the classes now.
        offsets: (C + 1,) prices of the classes and of the last node, for which every image is in a best class.
    """

    def __init__(
        self, log_p: NDArray[np.float32], labels: Indices, offsets: Array, low: Indices, high: Indices
    ) -> None:
        classes = int(log_p.shape[1])
        self.log_p, self.labels, self.low, self.high = log_p, labels.copy(), low, high
        self.offsets = np.append(offsets, 0.0)
        counts = np.bincount(labels, minlength=classes)
        wanted = np.where(offsets > 0, low, np.where(offsets < 0, high, np.clip(counts, low, high)))
        self._used = wanted.astype(np.int64)  # what each class counts as having; the rest is its surplus
        self._surplus = np.append(counts - self._used, self._used.sum() - len(labels))
        grouped = np.argsort(labels, kind="stable")
        self._members = np.split(grouped, np.cumsum(counts)[:-1])
        # The cheapest move from class to class, before prices, and the image that makes it.
        self._cost = np.full((classes, classes), np.inf)
        self._mover = np.full((classes, classes), -1, np.int64)
        everywhere = np.arange(classes, dtype=np.int64)
        for c in range(classes):
            self._find_movers(c, everywhere)

    def settle(self) -> None:
        """Move images until no class has a surplus or a lack."""
        while (self._surplus > 0).any():
            path = self._cheapest_path()
            steps = list(pairwise(path))
            amount = min(int(self._surplus[path[0]]), -int(self._surplus[path[-1]]))
            moves = [self._movable(a, b) for a, b in steps]
            amount = min(amount, *(len(move) if isinstance(move, np.ndarray) else move for move in moves))
            for (a, b), move in zip(steps, moves, strict=True):
                self._take(a, b, amount, move)
            self._surplus[path[0]] -= amount
            self._surplus[path[-1]] += amount

    def _cheapest_path(self) -> list[int]:
        """The nodes from a surplus to the lack that is cheapest to reach; prices are raised by the way so far."""
        distance = np.where(self._surplus > 0, 0.0, np.inf)
        before = np.full(len(distance), -1)
        waiting = distance.copy()  # distance, and infinity once a node is done
        while True:
            node = int(np.argmin(waiting))
            if self._surplus[node] < 0:
                break
            waiting[node] = np.inf
            way = distance[node] + self._reduced(node)
            shorter = way < distance
            distance[shorter], waiting[shorter], before[shorter] = way[shorter], way[shorter], node
        self.offsets += np.minimum(distance, distance[node])
        path = [node]
        while before[path[-1]] >= 0:
            path.append(int(before[path[-1]]))
        return path[::-1]

    def _reduced(self, node: int) -> Array:
        """What moves from ``node`` to all nodes cost on top of the prices: zero or more, infinite without one."""
        room = len(self._used)
        cost = np.full(room + 1, np.inf)
        if node == room:
            cost[:room] = np.where(self._used > self.low, 0.0, np.inf)
        else:
            cost[:room] = self._cost[node]
            cost[room] = 0.0 if self._used[node] < self.high[node] else np.inf
        return np.maximum(cost + self.offsets[node] - self.offsets, 0.0)

    def _movable(self, a: int, b: int) -> Indices | int:
        """The images that can go from ``a`` to ``b`` at the same least cost, or how much room there is."""
        room = len(self._used)
        if a == room:
            return int(self._used[b] - self.low[b])
        if b == room:
            return int(self.high[a] - self._used[a])
        members = self._members[a]
        cost = self.log_p[members, a].astype(np.float64) - self.log_p[members, b]
        return members[cost <= self._cost[a, b] + TIE / 10]

    def _take(self, a: int, b: int, amount: int, move: Indices | int) -> None:
        if not isinstance(move, np.ndarray):
            if a == len(self._used):
                self._used[b] -= amount
            else:
                self._used[a] += amount
            return
        images = move[:amount]  # members are in order, so ties go by position
        self.labels[images] = b
        self._members[a] = np.setdiff1d(self._members[a], images, assume_unique=True)
        self._members[b] = np.union1d(self._members[b], images)
        self._find_movers(a, np.flatnonzero(np.isin(self._mover[a], images)))
        self._offer(b, images, np.arange(len(self._used)))

    def _find_movers(self, c: int, to: Indices) -> None:
        """Find again the cheapest moves from class ``c`` to the classes ``to``."""
        self._cost[c, to], self._mover[c, to] = np.inf, -1
        if len(self._members[c]) and len(to):
            self._offer(c, self._members[c], to)

    def _offer(self, c: int, images: Indices, to: Indices) -> None:
        """Let ``images`` of class ``c``, in order, compete for its cheapest moves to the classes ``to``."""
        cost = self.log_p[images, c].astype(np.float64)[:, None] - self.log_p[np.ix_(images, to)]
        first = cost.argmin(axis=0)
        least, mover = cost[first, np.arange(len(to))], images[first]
        known = self._cost[c, to]
        better = (least < known) | ((least == known) & (mover < self._mover[c, to]))
        better &= to != c
        self._cost[c, to[better]], self._mover[c, to[better]] = least[better], mover[better]
