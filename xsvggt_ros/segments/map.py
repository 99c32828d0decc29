# SPDX-License-Identifier: Apache-2.0
"""Keyframes: the first frames of segments, where they are, and what was measured between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.descriptor import CELLS, SIZE, centre, coded, decoded, likeness
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array
from xsvggt_ros.segments.graph import Relations, optimise
from xsvggt_ros.similarity import Similarity


@dataclass
class Keyframe:
    """Where its numbers are, and where it is itself."""

    slot: int
    S_map_key: Similarity  # map <- its camera, in the unit of the segment that it starts
    used: int  # when it last began a segment, in segments


@dataclass
class Slots:
    """What is kept of each keyframe, allocated once."""

    images: NDArray[np.uint8]  # [N, h, w, 3], RGB, as the network sees them
    codes: NDArray[np.int8]  # [N, cells, SIZE], of descriptors, and
    units: NDArray[np.float32]  # [N, cells], see descriptor.coded
    intrinsics: Array  # [N, 3, 3]
    likeness: NDArray[np.float32]  # [N, N], of two keyframes, as it was when the younger came

    @classmethod
    def of(cls, count: int, height: int, width: int) -> Slots:
        cells = CELLS[0] * CELLS[1]
        return cls(
            np.zeros((count, height, width, 3), np.uint8),
            np.zeros((count, cells, SIZE), np.int8),
            np.zeros((count, cells), np.float32),
            np.zeros((count, 3, 3)),
            np.zeros((count, count), np.float32),
        )

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.images, self.codes, self.units, self.intrinsics, self.likeness))

    def put(self, slot: int, image: NDArray[np.uint8], descriptor: NDArray, intrinsics: Array) -> None:
        self.images[slot], self.intrinsics[slot] = image, intrinsics
        self.codes[slot], self.units[slot] = coded(descriptor)

    def descriptors(self, slots: list[int]) -> NDArray[np.float32]:
        """[slots, cells, SIZE]."""
        return decoded(self.codes[slots], self.units[slots])


class Map:
    """At most `capacity` keyframes, at least 3, of images [h, w]; the least missed makes room for a new one.

    Keyframes have keys, the older the smaller. Those related to each other, directly or not, are one component; what
    the map's axes and unit are the oldest of a component says.
    """

    def __init__(self, capacity: int, height: int, width: int) -> None:
        self.slots = Slots.of(capacity, height, width)
        self.keyframes: dict[int, Keyframe] = {}
        self.relations = Relations()
        self.next_key = 0
        self._time = 0

    @property
    def capacity(self) -> int:
        return len(self.slots.images)

    @property
    def size(self) -> tuple[int, int]:
        """Of the images, (h, w)."""
        _, height, width, _ = self.slots.images.shape
        return height, width

    @property
    def nbytes(self) -> int:
        """Of all slots, whether they are in use or not."""
        return self.slots.nbytes

    @classmethod
    def nbytes_of(cls, capacity: int, height: int, width: int) -> int:
        """Of such a map, without making it."""
        of_each = 3 * height * width + CELLS[0] * CELLS[1] * (SIZE + 4) + 9 * 8 + capacity * 4
        return capacity * of_each

    @property
    def mean(self) -> Array:
        """What the descriptors of all keyframes have in common, [SIZE]."""
        used = [keyframe.slot for keyframe in self.keyframes.values()]
        return self.slots.descriptors(used).mean((0, 1), dtype=np.float64)

    def image(self, key: int) -> tuple[NDArray[np.uint8], Array]:
        """The keyframe's image, as the network saw it, and its intrinsics."""
        slot = self.keyframes[key].slot
        return self.slots.images[slot].copy(), self.slots.intrinsics[slot].copy()

    def S_map_key(self, key: int) -> Similarity:
        return self.keyframes[key].S_map_key

    def add(self, frame: Frame, S_map_key: Similarity, keep: set[int]) -> int:
        """Remembers a frame; returns its key. `keep` are keys that do not make room for it."""
        while len(self.keyframes) >= self.capacity:
            self.remove(self._least_missed(keep))
        free = set(range(self.capacity)) - {keyframe.slot for keyframe in self.keyframes.values()}
        slot, key = min(free), self.next_key
        self.next_key += 1
        assert frame.descriptor is not None
        self.slots.put(slot, frame.image, frame.descriptor, frame.intrinsics)
        self.keyframes[key] = Keyframe(slot, S_map_key, self._time)
        self.compare(key)
        return key

    def compare(self, key: int) -> None:
        """Notes how alike a keyframe is to the others."""
        slots = [keyframe.slot for keyframe in self.keyframes.values()]
        mine = self.keyframes[key].slot
        found = self._likeness(self.slots.descriptors([mine])[0])
        self.slots.likeness[mine, slots] = self.slots.likeness[slots, mine] = found
        self.slots.likeness[mine, mine] = -1  # not to itself

    def use(self, key: int) -> None:
        """A segment begins at the keyframe."""
        self._time += 1
        self.keyframes[key].used = self._time

    def alike(self, frame: Frame, besides: int | None) -> list[tuple[float, int]]:
        """(likeness, key) of all but one, the most alike first."""
        if not self.keyframes:
            return []
        assert frame.descriptor is not None
        found = zip(self._likeness(frame.descriptor).tolist(), self.keyframes, strict=True)
        return sorted(((like, key) for like, key in found if key != besides), reverse=True)

    def _likeness(self, descriptor: NDArray) -> NDArray[np.float32]:
        """Of a descriptor to all keyframes, in their order."""
        slots, mean = [keyframe.slot for keyframe in self.keyframes.values()], self.mean
        return likeness(centre(descriptor, mean), centre(self.slots.descriptors(slots), mean))

    def relate(self, a: int, b: int, S_a_b: Similarity) -> None:
        """Takes in how two keyframes lie to each other.

        Where they belonged to two components, the one that is younger moves to the other's place.
        """
        mine, other = self.relations.component(a), self.relations.component(b)
        if b not in mine:
            moves, S_new_old = mine, self.S_map_key(b) @ (self.S_map_key(a) @ S_a_b).inverse()
            if min(mine) < min(other):
                moves, S_new_old = other, S_new_old.inverse()
            for key in moves:
                self.keyframes[key].S_map_key = S_new_old @ self.S_map_key(key)
        self.relations.add(a, b, S_a_b)

    def move(self, a: int, b: int, S_map_b: Similarity) -> None:
        """Takes in where b is for sure, of which only a relation to a is known."""
        self.keyframes[b].S_map_key = S_map_b
        self.relations.replace(a, b, self.S_map_key(a).inverse() @ S_map_b)

    def correct(self, key: int) -> None:
        """Brings the component of a keyframe into agreement with what was measured."""
        poses = {each: keyframe.S_map_key for each, keyframe in self.keyframes.items()}
        for each, S_map_key in optimise(poses, self.relations, min(self.relations.component(key))).items():
            self.keyframes[each].S_map_key = S_map_key

    def remove(self, key: int) -> None:
        self.relations.remove(key)
        del self.keyframes[key]

    def resized(self, capacity: int, keep: set[int]) -> Map:
        """The same keyframes, as many as there is room for, in a map of another capacity."""
        while len(self.keyframes) > capacity:
            self.remove(self._least_missed(keep))
        _, height, width, _ = self.slots.images.shape
        new = Map(capacity, height, width)
        for slot, (key, keyframe) in enumerate(sorted(self.keyframes.items())):
            old = keyframe.slot
            descriptor = self.slots.descriptors([old])[0]
            new.slots.put(slot, self.slots.images[old], descriptor, self.slots.intrinsics[old])
            new.keyframes[key] = Keyframe(slot, keyframe.S_map_key, keyframe.used)
            new.compare(key)
        new.relations, new.next_key, new._time = self.relations, self.next_key, self._time
        return new

    def _least_missed(self, keep: set[int]) -> int:
        """Of the half used longest ago the one most like another keyframe; never the oldest, which holds the axes."""
        keep = keep | {min(self.keyframes)}
        old = sorted((key for key in self.keyframes if key not in keep), key=lambda key: self.keyframes[key].used)
        old = old[: max(1, len(old) // 2)]
        there = [keyframe.slot for keyframe in self.keyframes.values()]
        return max(old, key=lambda key: self.slots.likeness[self.keyframes[key].slot, there].max())
