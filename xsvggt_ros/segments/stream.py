# SPDX-License-Identifier: Apache-2.0
"""Streams without end: a chain of segments, each with a fresh cache, whose first frames are a map.

A segment's poses are as good as the network is near the segment's first frame, its keyframe, and then made exact by
what images show. When the camera leaves that view, a next segment begins: at a keyframe seen before, if one is in view,
or else at an image of its own. It is filled while the present one serves; images that both took in tell how they join.
`Frame.T_first_cam` goes on from segment to segment and never jumps; `Frame.segment` says where the map has it, which
places seen again correct.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from xsvggt_ros.allowance import beside, divided, scaled
from xsvggt_ros.cache import KVCache
from xsvggt_ros.config import CacheConfig, LoopConfig, SegmentConfig, StreamConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array
from xsvggt_ros.memory import MIB, OutOfMemory, memory_for
from xsvggt_ros.model import StreamVGGT
from xsvggt_ros.segments.builder import Builder
from xsvggt_ros.segments.chain import Chain, Motion
from xsvggt_ros.segments.map import Map
from xsvggt_ros.segments.map_files import load, save
from xsvggt_ros.segments.refine import Refiner
from xsvggt_ros.segments.ruler import Ruler
from xsvggt_ros.status import StepStatus
from xsvggt_ros.stream import GeometryStream, NotFinite, _Waiting

CACHES = 3  # of the segment that serves, of the one to come, and of the ruler
MEASURING = 0.4  # of segment.work, with each image: by default an answer takes five
LONG = 100  # images in the ruler, after which it begins anew where the map knows the unit: in the end it drifts too
PAUSE = 30  # images, after a segment could not be filled


class SegmentedStream(GeometryStream):
    """A GeometryStream whose drift does not grow with its length, where `segment.enabled` says so.

    Three caches of a third of the budget each: one serves, one is filled for the segment to come, and the ruler's takes
    in some of the images, to compare the segments' units. Without segments it is a GeometryStream, of one cache.

    `refine`: whether pose and depth, with segments or without, are refined by what images show; from the next one on.
    """

    def __init__(self, config: StreamConfig | None = None, model: StreamVGGT | None = None) -> None:
        config = config or StreamConfig()
        self._segment, self._loop = config.segment, config.loop
        self.until = math.inf  # time.monotonic() from which on the segment to come has to wait for the next image
        self.motion: Motion = lambda a, b: None  # what a join goes by whose images do not agree
        self.describes = config.segment.enabled
        self._chain: Chain | None = None
        self._next: GeometryStream | None = None  # the segment to come, and
        self._builder: Builder | None = None  # what fills it
        self._ruler: Ruler | None = None
        self.refine = config.refine
        self._refiner: Refiner | None = None  # of the frames of the cache that serves
        self._index = 0  # of the next frame of the world
        self._rest = 0  # index before which no segment begins
        self._loaded: Map | None = None  # for the world to come
        super().__init__(config, model)

    # --- settings ---------------------------------------------------------------------------------

    def reset(self, reason: str = "") -> None:
        super().reset(reason)
        self._chain = self._refiner = None
        self._index = self._rest = 0
        self._drop()

    def reconfigure_all(self, cache: CacheConfig, segment: SegmentConfig, loop: LoopConfig) -> None:
        """Other settings from the next image on, all together. A segment that is being filled begins anew.

        Raises ValueError or OutOfMemory, as `reconfigure` does; nothing else has changed then.
        """
        self.check_all(replace(self.config, cache=cache, segment=segment, loop=loop))
        before = self._segment, self._loop
        self._drop()
        self._segment, self._loop = segment, loop
        self.describes = segment.enabled
        switched = f"segments are {'on' if segment.enabled else 'off'}"
        event = switched if segment.enabled != before[0].enabled else "settings of cache and segments changed"
        try:
            with memory_for("no memory for so many keyframes; lower loop.keyframes"):
                if self._chain:
                    self._chain.resize(loop.keyframes)
            self._switch(cache, self._fraction, event)
        except OutOfMemory:
            self._segment, self._loop = before
            self.describes = self._segment.enabled
            raise
        self._halved = ""
        self._unstick()

    def check(self, cache: CacheConfig) -> None:
        self.check_all(replace(self.config, cache=cache, segment=self._segment, loop=self._loop))

    def check_all(self, config: StreamConfig) -> None:
        """As `check`, of cache, segments and loops together."""
        cache = config.cache
        keyframes = self._map_nbytes(config.segment, config.loop) / MIB
        if cache.budget_mib and cache.budget_mib <= keyframes:
            raise ValueError(
                f"keyframes take {keyframes:.2f} MiB, all that cache.budget_mib allows: raise it above that, or lower "
                "loop.keyframes"
            )
        caches = caches_of(config.segment)
        self._check_memory(divided(cache, caches), caches, int(keyframes * MIB))

    def reconfigure(self, cache: CacheConfig) -> None:
        self._drop()
        super().reconfigure(cache)

    def limit(self, fraction: float) -> None:
        if fraction != self._fraction:
            self._drop()
        super().limit(fraction)

    def _ceiling(self) -> CacheConfig:
        cache = beside(self._cache_config, self._map_nbytes(self._segment, self._loop) / MIB)
        return scaled(divided(cache, caches_of(self._segment)), self._fraction)

    def _map_nbytes(self, segment: SegmentConfig, loop: LoopConfig) -> int:
        """Of the keyframes that there is room for, or will be. Any thread may ask."""
        chain, cache = self._chain, self._cache
        if chain:
            return Map.nbytes_of(loop.keyframes, *chain.map.size)
        if not segment.enabled:
            return 0
        rows, columns = (cache.shape if cache else self._usual_shape()).grid
        patch = self.model.config.patch_size
        return Map.nbytes_of(loop.keyframes, rows * patch, columns * patch)

    def most_nbytes(self) -> int:
        """Of caches and keyframes together, at most."""
        shape = self._cache.shape if self._cache else self._usual_shape()
        cache = self._new_cache(shape, self._ceiling(), torch.device("meta"))
        return caches_of(self._segment) * cache.nbytes + self._map_nbytes(self._segment, self._loop)

    def summary(self) -> str:
        text = super().summary()
        if not self._segment.enabled:
            return text
        what = f"; segments: {CACHES} such caches and {self._loop.keyframes} keyframes"
        return text + f"{what}, {self.most_nbytes() / MIB:.1f} MiB at most"

    def _why_eager(self, cache: KVCache) -> str:
        return "segments change their caches" if self._segment.enabled else super()._why_eager(cache)

    # --- maps of earlier streams --------------------------------------------------------------------

    def save_map(self, folder: Path) -> str:
        """Writes the keyframes and how they lie; returns what was written.

        Raises ValueError if there are none, OSError if the folder cannot be written.
        """
        if not self._chain or not self._chain.map.keyframes:
            raise ValueError("there are no keyframes yet: set segment.enabled, and send images")
        save(self._chain.map, folder, self._fingerprint())
        return f"{len(self._chain.map.keyframes)} keyframes are in {folder}"

    def load_map(self, folder: Path) -> str:
        """The next world begins with the keyframes of a folder, and finds its place among them when it sees one.

        Raises ValueError for what is no map or of another model, and without segments or loops.
        """
        if not self._segment.enabled:
            raise ValueError("a map is used by streams of segments only: set segment.enabled")
        if not self._loop.enabled:
            raise ValueError("no place is looked for while loop.enabled is false: set it")
        self._loaded = load(folder, self._fingerprint())
        return f"{len(self._loaded.keyframes)} keyframes of {folder}: the next world looks for its place among them"

    def _fingerprint(self) -> str:
        """Of the encoder, which descriptors depend on."""
        encoder = self.model.aggregator.patch_embed
        digest = hashlib.sha256()
        for weight in encoder.parameters():
            rounded = weight.to("cpu", torch.bfloat16).contiguous()  # the same in any compute type
            digest.update(rounded.flatten().view(torch.uint8).numpy().tobytes())
        for name, codes in encoder.named_buffers():  # integers of weights: which ones is the processor's matter
            digest.update(f"{name} {list(codes.shape)}".encode())
        return digest.hexdigest()

    # --- images -----------------------------------------------------------------------------------

    def _take_in(self, images: list[_Waiting]) -> list[Frame]:
        if self._segment.enabled and self._chain and (self._continuity.paused or self._chain.carried):
            self._chain.interrupt()
            self._drop()
            self._forget_past()
        frames = [self._refined(frame) for frame in super()._take_in(images)]
        frames = [replace(frame, index=self._index + i) for i, frame in enumerate(frames)]
        if self._segment.enabled or self._chain:
            frames = [self._followed(frame) for frame in frames]
        self._index += len(frames)
        return frames

    def _refined(self, frame: Frame) -> Frame:
        """The frame as its image shows it to be, unless that is not asked for."""
        if self._refiner is None or frame.status.frame == 0:  # of its cache
            self._refiner = Refiner(frame) if self.refine else None
            return frame
        started = time.perf_counter()
        frame = self._refiner(frame, self.refine)
        if not self.refine:
            return frame
        self.status = replace(_later(frame.status, "refine", started), refined_points=self._refiner.points)
        return replace(frame, status=self.status)

    def _followed(self, frame: Frame) -> Frame:
        """The frame in the axes and the unit of the world, once the segment to come has got its share of work."""
        started = time.perf_counter()
        if self._chain is None:
            self._chain = self._new_chain(frame)
        chain = self._chain
        if frame.status.frame == 0:  # of its cache
            chain.begin(frame)
        placed = chain.placed(frame)
        if self._segment.enabled:
            chain.look(frame, self._segment)
            self._prepare(chain, frame)
            self._measure(chain, frame)
        return self._with_status(placed, chain, started)

    def _new_chain(self, frame: Frame) -> Chain:
        size = frame.depth.shape
        loaded, self._loaded = self._loaded, None
        if loaded and loaded.size == size:
            return Chain(loaded.resized(self._loop.keyframes, set()), frame.index, self._moved)
        chain = Chain(Map(self._loop.keyframes, *size), frame.index, self._moved)
        if loaded:
            chain.say("the loaded map is not used: its images are {1}x{0}, these {3}x{2}".format(*loaded.size, *size))
        return chain

    def _moved(self, a: int, b: int) -> Array | None:
        return self.motion(a, b)

    def _with_status(self, frame: Frame, chain: Chain, started: float) -> Frame:
        status = _later(frame.status, "segments", started)
        event = "; ".join(filter(None, [status.event, *chain.events()]))
        others = [each._cache for each in self._beside() if each._cache]
        self.status = replace(
            status,
            frame=frame.index,
            event=event,
            cache_bytes=status.cache_bytes + sum(cache.nbytes for cache in others),
            scratch_bytes=status.scratch_bytes + sum(cache.scratch_nbytes for cache in others),
            segments=chain.status if self._segment.enabled else chain.status.held,
        )
        return replace(frame, status=self.status)

    # --- the segment to come ----------------------------------------------------------------------

    def _prepare(self, chain: Chain, frame: Frame) -> None:
        """Works on the segment to come, if it is time for one, and lets it take over when it is ready."""
        if chain.carried:
            return
        try:
            if self._builder and self._next and self._take_over(chain, self._builder, self._next, frame):
                return
            if self._builder is None and frame.index >= self._rest and chain.ends(frame, self._segment):
                self._build(chain.seen_before(frame, self._loop))
            if self._builder:
                self._builder.advance(frame, self._segment.work, self.until)
        except (OutOfMemory, NotFinite) as error:
            self._drop()
            self._rest = frame.index + PAUSE
            chain.say(f"the present segment goes on: {error}")

    def _measure(self, chain: Chain, frame: Frame) -> None:
        """Works on what the unit of the present segment is."""
        try:
            if frame.status.frame == 0 and chain.anchor is not None:  # of its cache
                self._measure_from(chain.anchor, frame)
            ruler = self._ruler
            if ruler is None:
                return
            if not ruler.busy:
                ruler.look(frame)
            if units := ruler.advance(MEASURING * self._segment.work, self.until):
                chain.measured(ruler.key, units)
        except (OutOfMemory, NotFinite) as error:
            self._give_up_measuring(chain, error)

    def _give_up_measuring(self, chain: Chain, error: Exception) -> None:
        self._ruler = None
        chain.say(f"units of segments go by their joins alone until the next begins: {error}")

    def _build(self, key: int | None) -> None:
        if self._next is None:
            self._next = self._another()
            self._next.describes = True
        assert self._chain
        self._next.reset()
        self._next.allocate(*self._chain.map.size)
        image = None if key is None else self._chain.map.image(key)
        parts, config = self.model.part_count, self._segment
        self._builder = Builder(self._next.step_parts, key, image, parts, config.shared, self.refine)

    def _another(self) -> GeometryStream:
        """A stream beside this one; its steps are done in parts."""
        off = replace(self._segment, enabled=False)
        config = replace(self.config, cache=self._ceiling(), segment=off, track_groups=0, track_grid=0, compile="none")
        try:
            return GeometryStream(config, self.model)
        except ValueError as error:  # of a cache for which there is no memory now
            raise OutOfMemory(str(error)) from error

    def _measure_from(self, key: int, first: Frame) -> None:
        """The unit of the segment that begins with this frame, at the keyframe of that key, is held from now on."""
        stream = self._ruler.stream if self._ruler else self._another()
        self._ruler = None  # first: what it is at work on holds a cache
        self._ruler = Ruler(stream, key, first)

    def _beside(self) -> list[GeometryStream]:
        """The other streams."""
        return [each for each in (self._next, self._ruler.stream if self._ruler else None) if each]

    def _take_over(self, chain: Chain, builder: Builder, stream: GeometryStream, frame: Frame) -> bool:
        """Whether the segment to come serves from now on. One that cannot be trusted makes way for one at an own image.

        Where a keyframe turns out to be of another place this is said as early as possible: until a segment joins, the
        present one gets worse with each image.
        """
        first, shared = builder.first, builder.shared
        if first is None or not shared:
            return False
        if builder.ready:
            refused = not chain.take_over(builder.key, first, shared, frame, self._loop)
        else:
            refused = len(shared) == 1 and chain.rules_out(builder.key, first, shared[0][1], self._loop)
        if refused:
            self._build(None)
        elif builder.ready:
            self._serve(chain, builder, first, stream)
        return builder.ready and not refused

    def _serve(self, chain: Chain, builder: Builder, first: Frame, stream: GeometryStream) -> None:
        self._builder = None
        self.adopt(stream)
        stream.allocate(*chain.map.size)  # so that the bytes held are always the same
        if self.refine and builder.refiner and self._refiner:
            builder.refiner.goes_on(self._refiner, chain.T_segment_now, chain.units)
        self._refiner = builder.refiner
        assert chain.anchor is not None
        try:
            ruler, known = self._ruler, builder.key is not None  # by the map
            if ruler is None or ruler.key not in chain.map.keyframes or (known and ruler.looks >= LONG):
                self._measure_from(chain.anchor, first)
            elif ruler.busy:
                ruler.goes_on(chain.units)
            else:  # here, as the frame at hand is of the segment before
                ruler.look(builder.shared[-1][1])
        except OutOfMemory as error:
            self._give_up_measuring(chain, error)

    def _drop(self) -> None:
        """Gives up the segment to come, and the ruler, which others will replace."""
        self._builder = self._next = self._ruler = None

    def _goes_by_depth(self, cache: KVCache) -> bool:
        return self._segment.enabled or self.refine or super()._goes_by_depth(cache)

    def _begins_anew(self) -> bool:
        """After a pause: the world stands, though its present segment has no first frame yet."""
        if self._chain is None or self._T_first_model is not None:
            return False
        self._cache = None
        return True

    def _make_do(self, error: BaseException) -> str:
        self._drop()
        return super()._make_do(error)


def _later(status: StepStatus, stage: str, started: float) -> StepStatus:
    """With a stage more, that began then (time.perf_counter())."""
    seconds = time.perf_counter() - started
    return replace(status, seconds=status.seconds | {stage: seconds, "step": status.seconds["step"] + seconds})


def caches_of(segment: SegmentConfig) -> int:
    """How many caches share the budget."""
    return CACHES if segment.enabled else 1
