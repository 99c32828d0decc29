# SPDX-License-Identifier: Apache-2.0
"""What stands between the callbacks and the worker."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Thread-safe queue that holds the newest item only, or all of them up to a limit.

    received: items put so far; replaced: those that a newer one, or `clear`, threw away unread;
    refused: those that came while the queue was full.
    """

    def __init__(self) -> None:
        self.received = 0
        self.replaced = 0
        self.refused = 0
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = Condition()

    def put(self, item: T, limit: int | None = None) -> None:
        """Adds an item, without waiting.

        limit None: it replaces what waits; otherwise it is refused where `limit` items wait already.
        """
        with self._changed:
            self.received += 1
            if limit is None:
                self._clear()
            elif len(self._items) >= limit:
                self.refused += 1
                return
            self._items.append(item)
            self._changed.notify()

    def add(self, item: T) -> None:
        """Adds an item beside those that are counted."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def get(self) -> T | None:
        """The oldest item, waiting for one; None once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            return None if self._closed else self._items.popleft()

    def clear(self) -> None:
        """Throws away what waits."""
        with self._changed:
            self._clear()

    def counts(self) -> dict[str, int]:
        """{field of status.ImageCounts: number}."""
        return {
            "frames_received": self.received,
            "frames_replaced": self.replaced,
            "frames_refused": self.refused,
        }

    def close(self) -> None:
        """Wakes the reader for good; what still waits is thrown away."""
        with self._changed:
            self._clear()
            self._closed = True
            self._changed.notify_all()

    def _clear(self) -> None:
        self.replaced += len(self._items)
        self._items.clear()
