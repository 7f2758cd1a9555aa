"""Counts over tapes of any length, in memory that does not grow. Pure."""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_STEP = math.log(1.05)


class Distribution:
    """Count, mean, extremes and quantiles of positive numbers; quantiles within 5 %."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.least, self.most = math.inf, 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Take a number."""
        value = max(value, 1e-9)
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        self._buckets[math.floor(math.log(value) / _STEP)] += 1

    def quantile(self, share: float) -> float:
        """The number below which that share of all lies."""
        left = share * self.count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                middle = math.exp((bucket + 0.5) * _STEP)
                return min(max(middle, self.least), self.most)
        return 0.0

    def row(self) -> dict[str, Any]:
        """As numbers for a report."""
        mean = self.total / self.count if self.count else 0.0
        quantiles = {"p50": self.quantile(0.5), "p95": self.quantile(0.95)}
        return {"count": self.count, "mean": mean, **quantiles, "max": self.most}


class Recent(Generic[K, V]):
    """A table that forgets what was put into it longest ago.

    Args:
        most: entries.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        """What was put, if it is still there."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> V | None:
        """Put, as the newest; gives what had to go for it."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) <= self._most:
            return None
        return self._entries.popitem(last=False)[1]

    def pop(self, key: K) -> V | None:
        """Take out."""
        return self._entries.pop(key, None)

    def values(self) -> list[V]:
        """All that is there, the oldest first."""
        return list(self._entries.values())
