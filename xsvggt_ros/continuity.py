# SPDX-License-Identifier: Apache-2.0
"""Whether an image goes on where the last one left off, is left out, or starts a new world."""

from __future__ import annotations

STRAYS = 3  # images of another size, one after the other, that are no strays but another mode of the camera

Size = tuple[int, ...]  # shape of an image, [H, W, 3]


class Late(ValueError):
    """An image that comes when one of its time or a newer one has been taken in."""


class Continuity:
    """Follows the sizes and stamps (nanoseconds) of the images that one stream takes in.

    max_lateness: seconds that an image may lie behind the newest without time having restarted.
    max_gap: seconds between two images that are worth a word; 0: none are.
    """

    def __init__(self, max_lateness: float, max_gap: float) -> None:
        self._max_lateness, self._max_gap = max_lateness, max_gap
        self._newest_ns: int | None = None  # stamp of the last image
        self._before_gap_ns: int | None = None  # of the one before it, if there was a gap between them
        self.forget_world()

    @property
    def paused(self) -> bool:
        """Whether there was a gap before the newest image."""
        return self._before_gap_ns is not None

    def forget_world(self) -> None:
        """The next image may be of any size. Time goes on."""
        self._size: Size = ()
        self._strays: list[Size] = []  # of the last images, which were all of another size
        self._first_ns: int | None = None

    def why_new_world(self, size: Size, stamp_ns: int | None) -> str:
        """Why a world starts with the image; empty: it does not.

        Raises Late for an image that comes too late, ValueError for a stray of another size.
        """
        reasons = [self._other_size(size), "" if stamp_ns is None else self._restart(stamp_ns)]
        return "; ".join(filter(None, reasons))

    def accept(self, size: Size, stamp_ns: int | None) -> str:
        """The image is the newest; returns what its stamp has to say, mostly nothing."""
        self._size = size
        self._strays.clear()
        self._before_gap_ns = None
        if stamp_ns is None:
            return ""
        before_ns, self._newest_ns = self._newest_ns, stamp_ns
        if self._first_ns is None or before_ns is None:
            self._first_ns = stamp_ns
            return ""
        if stamp_ns < before_ns:
            return "the stamp of the image before was of another time"
        seconds = (stamp_ns - before_ns) * 1e-9
        if not 0 < self._max_gap < seconds:
            return ""
        self._before_gap_ns = before_ns
        return f"{seconds:.3f} s passed without an image"

    def _other_size(self, size: Size) -> str:
        if not self._size or size == self._size:
            self._strays.clear()
            return ""
        self._strays = [*(other for other in self._strays if other == size), size]
        change = "image size changed from {1}x{0} to {3}x{2}".format(*self._size[:2], *size)
        if len(self._strays) < STRAYS:
            raise ValueError(f"{change}; {STRAYS} such images in a row start a new world")
        return change

    def _restart(self, stamp_ns: int) -> str:
        if self._newest_ns is None or stamp_ns > self._newest_ns:
            return ""
        behind = (self._newest_ns - stamp_ns) * 1e-9  # seconds
        if not behind:
            unset = "; the driver must set header.stamp" if not stamp_ns else ""
            raise Late(f"its stamp, {stamp_ns} ns, is that of the image before it{unset}")
        if self._before_gap_ns is not None and 0 < (stamp_ns - self._before_gap_ns) * 1e-9 <= self._max_gap:
            return ""  # it goes on where the one before the gap left off: that with the newest stamp was astray
        # A recording in a loop shows its first stamp again, however short it is.
        if behind > self._max_lateness or stamp_ns == self._first_ns:
            return f"the stamp went back by {behind:.3f} s"
        raise Late(
            f"it is {behind:.3f} s older than the image before it; only one that is older by more than max_lateness, "
            f"{self._max_lateness} s, starts a new world"
        )
