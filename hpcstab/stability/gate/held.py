"""Batches that can come again: after a refusal the steps behind it run on the batches that they had."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class HeldBatches(Generic[T]):
    """An iterator that remembers its last ``size`` items and can go back by them."""

    def __init__(self, source: Iterator[T], size: int) -> None:
        self._source = source
        self._given: deque[T] = deque(maxlen=size)
        self._again: deque[T] = deque()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._again.popleft() if self._again else next(self._source)
        self._given.append(item)
        return item

    def go_back(self, num_items: int) -> None:
        """The last ``num_items`` come again, in their order."""
        for _ in range(num_items):
            self._again.appendleft(self._given.pop())
