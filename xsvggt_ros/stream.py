# SPDX-License-Identifier: Apache-2.0
"""The stream: one image in, one frame of geometry out, under the cache's budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xsvggt_ros import geometry
from xsvggt_ros.allowance import for_views, halved, scaled, tokens_of
from xsvggt_ros.cache import CacheShape, KVCache
from xsvggt_ros.cache.policies import Geometry
from xsvggt_ros.camera import check_camera_matrix
from xsvggt_ros.config import CacheConfig, StreamConfig
from xsvggt_ros.continuity import Continuity
from xsvggt_ros.descriptor import describe
from xsvggt_ros.frame import Frame
from xsvggt_ros.fusing import Fusing, as_written, compiled
from xsvggt_ros.intake import Intake
from xsvggt_ros.memory import MIB, OutOfMemory, give_back, memory_for, memory_in_reach
from xsvggt_ros.model import StreamVGGT, load_model
from xsvggt_ros.model.camera_head import ITERATIONS
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.model.streamvggt import Predictions
from xsvggt_ros.parts import Parts, whole
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.settings import values
from xsvggt_ros.status import StepStatus
from xsvggt_ros.step_graph import ASKED, StepGraph, why_no_graph
from xsvggt_ros.tracks import PointTracker, map_nbytes
from xsvggt_ros.transfer import held, seen, to_host
from xsvggt_ros.views import MOST, Views

FAILURES = 3  # steps in a row whose numbers are not finite, at which a new world starts
LESS = "free memory, or lower the cache's budget, track_groups or image_width for good"


class NotFinite(ValueError):
    """The model's numbers for the images of a step are not finite."""


@dataclass(frozen=True)
class _Waiting:
    """An image that is taken in with the others of its chunk."""

    held: NDArray[np.uint8]  # of it, see transfer.held
    resize: Resize  # how it becomes what the network sees
    intrinsics: NDArray[np.float64] | None  # [3, 3] of that, where they are known
    event: str  # what its stamp has to say
    seconds: float  # that making it took


class GeometryStream:
    """Camera images, one after the other, to poses, depth and points in the first camera's frame, by the network alone.

    What the settings say of refining, segments and loops is for a SegmentedStream. Raises ValueError or
    FileNotFoundError, with the remedy, for settings that cannot work.
    """

    _cache_type: type[KVCache] = KVCache
    describes = False  # whether frames have a descriptor
    dense = True  # whether depth is asked for; else frames have it where something in the stream goes by it

    def __init__(self, config: StreamConfig | None = None, model: StreamVGGT | None = None):
        self.config = config or StreamConfig()
        self.model = model or load_model(self.config)
        self.width = self.config.image_width or self.model.config.image_size
        parameter = self.model.aggregator.camera_token
        self.device, self.dtype = parameter.device, parameter.dtype
        self.status = StepStatus()
        self._cache_config = self.config.cache  # as configured, or as halved since
        self._fraction = 1.0  # of it that is in force
        self._halved = ""  # why it was, if so
        self._continuity = Continuity(self.config.max_lateness, self.config.max_gap)
        head = self.model.track_head
        self._tracker = head and PointTracker(head, self.config.track_groups, self.config.track_grid)
        why_not = why_no_graph(self.config.compile, self.device)
        self._graph = StepGraph(self.model, why_not, asked=self.config.compile in ASKED)
        self._fused: Fusing = compiled if self.config.compile == "compile" else as_written
        self.reset()
        self.check(self.config.cache)

    def summary(self) -> str:
        """What runs, and what the cache can hold, in one line. The number of tokens follows from the images: 4:3."""
        weights = self.config.weights or "the package's own weights, which know synthetic rooms only"
        cache = self._new_cache(self._usual_shape(), self._ceiling(), torch.device("meta"))
        per_frame = cache.shape.tokens_per_frame
        held = "all frames, in memory that grows"
        if cache.budget:
            frames, mib = cache.budget / per_frame, cache.nbytes / MIB
            held = f"{cache.budget} tokens per layer = {frames:.1f} frames = {mib:.1f} MiB"
            held += ", as views of the scene come" * cache.config.adaptive
        bits, passes = self.config.weight_bits, self.config.camera_iterations
        less = f", weights of {bits} bits" * (bits < 16) + f", {passes} camera iterations" * (passes < ITERATIONS)
        return (
            f"{self.config.model} with {weights}, on {self.device}, {self.dtype}{less}, "
            f"attention by {self.model.kernel.__name__}; an image of 4:3 is {per_frame} tokens, "
            f"and the cache ({cache.config.policy}) keeps {held}{self._launched(cache)}"
        )

    def _launched(self, cache: KVCache) -> str:
        if self._graph.why_not:
            return ""
        reason = self._why_eager(cache)
        return f"; no CUDA graph: {reason}" if reason else "; a step is one CUDA graph once the cache is full"

    def _why_eager(self, cache: KVCache) -> str:
        """Why steps with such a cache never become one graph; empty: they do."""
        return cache.why_unsteady

    @property
    def waiting(self) -> int:
        """How many images wait until their chunk is full."""
        return len(self._waiting)

    # --- settings -----------------------------------------------------------------------------------

    @property
    def shortage(self) -> str:
        """Why the cache is smaller than configured, since memory ran out; empty: it is not."""
        return self._halved or self._stuck

    def reset(self, reason: str = "") -> None:
        """Forgets the past: the next image starts a new world. The reason appears in its status.

        Images that wait for their chunk are forgotten too: `flush` takes them in first.
        """
        self._forget_past()
        self._continuity.forget_world()
        if self._tracker:
            self._tracker.forget()
        self._waiting: list[_Waiting] = []
        self._unstick()
        self._event = reason

    def _forget_past(self) -> None:
        self._graph.drop()
        self._cache: KVCache | None = None
        self._T_first_model: NDArray[np.float64] | None = None  # until the first frame is complete
        self._failures = 0  # steps in a row whose numbers were not finite
        self._views = Views()
        self._intake = Intake()
        self._count = 0  # frames

    def _unstick(self) -> None:
        """There may be memory again for an adaptive cache to grow."""
        self._stuck = ""  # why it does not, if so
        self._stuck_at = MOST  # views that it has grown for

    def check(self, cache: CacheConfig) -> None:
        """Raises ValueError for a cache that is larger than the memory in reach.

        It is measured for images like those that come or, before the first, for one of 4:3. Any thread may ask.
        """
        self._check_memory(cache, 1, 0)

    def _check_memory(self, cache: CacheConfig, count: int, more: int) -> None:
        """As `check`, of so many such caches and so many bytes more."""
        there = self._cache
        asked = self._new_cache(there.shape if there else self._usual_shape(), cache, torch.device("meta"))
        needed = count * (asked.nbytes + asked.scratch_nbytes) + asked.shape.beside_nbytes + more
        reach = memory_in_reach(self.device, there.filled_nbytes + there.scratch_nbytes if there else 0)
        if needed > reach:
            raise ValueError(
                f"a cache of these settings takes {needed / MIB:.0f} MiB, and {self.device} has room for "
                f"{reach / MIB:.0f} MiB; lower cache.{_largest_setting(asked)}"
            )

    @property
    def cache_config(self) -> CacheConfig:
        """The cache's settings, as last given or as halved since; `dataclasses.replace` of them changes some only."""
        return self._cache_config

    def reconfigure(self, cache: CacheConfig) -> None:
        """Other policy, budget or bits from the next step on; the stream goes on, and a `limit` stays.

        Raises ValueError, as `check` does, where there can never be the memory for it, and for another chunk while
        images wait. Raises OutOfMemory if there is not the memory for it now. Nothing has changed then, but where
        others took the memory in the middle of the change: then a new world starts, with the settings as before.
        """
        if self._waiting and cache.chunk != self._cache_config.chunk:
            raise ValueError(f"{self.waiting} images wait for the rest of their chunk: call flush before chunk changes")
        self.check(cache)
        self._switch(cache, self._fraction, f"cache settings changed: {_changes(self._cache_config, cache)}")
        self._halved = ""
        self._unstick()

    def limit(self, fraction: float) -> None:
        """Holds the cache to a fraction of its budget, above 0 to 1, from the next step on; 1 ends that.

        The least that the policy works with stays; policy full has no budget to hold it to.
        Raises ValueError for another fraction, OutOfMemory, as `reconfigure` does, if there is not the memory for it.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"the fraction of the cache's budget must be above 0 and at most 1, got {fraction}")
        if fraction != self._fraction:
            self._switch(self._cache_config, fraction, f"cache held to {fraction:.0%} of its budget")

    @torch.inference_mode()
    def _switch(self, cache: CacheConfig, fraction: float, event: str) -> None:
        before = self._cache_config, self._fraction
        self._cache_config, self._fraction = cache, fraction
        try:
            if self._cache and self._fit(self._cache):
                self._event = event
        except OutOfMemory:
            self._cache_config, self._fraction = before
            if self._cache and self._cache.lost:
                self.reset("memory ended while the cache's settings changed")
            raise

    def _fit(self, cache: KVCache) -> bool:
        """Brings into the cache what is in force by now; whether that is anything new."""
        config = self._in_force(cache.shape)
        if news := config != cache.config:
            self._graph.drop()  # first: it holds memory
            cache.reconfigure(config)
        return news

    def _adapt(self, cache: KVCache) -> None:
        """Lets an adaptive cache grow with its scene, as far as there is memory."""
        try:
            self._fit(cache)
        except OutOfMemory:
            if cache.lost:
                raise
            self._stuck_at = ((cache.budget or 0) - cache.floor) // cache.shape.tokens_per_frame
            self._stuck = f"out of memory: the cache stays at {cache.budget} tokens per layer; {LESS}"

    def _ceiling(self) -> CacheConfig:
        """The most that may be in force."""
        return scaled(self._cache_config, self._fraction)

    def _in_force(self, shape: CacheShape) -> CacheConfig:
        return for_views(self._ceiling(), min(self._views.count, self._stuck_at), shape)

    # --- images -------------------------------------------------------------------------------------

    def step(
        self,
        image: NDArray[np.uint8],
        intrinsics: NDArray[np.float64] | None = None,
        stamp_ns: int | None = None,
    ) -> Frame:
        """As `take`, where every image has its frame at once. Raises ValueError for chunks of several too."""
        if self._cache_config.chunk > 1:
            raise ValueError(
                f"the frames of {self._cache_config.chunk} images come together: call take and flush instead of step, "
                "or set cache.chunk to 1"
            )
        (frame,) = self.take(image, intrinsics, stamp_ns)
        return frame

    @torch.inference_mode()
    def take(
        self,
        image: NDArray[np.uint8],
        intrinsics: NDArray[np.float64] | None = None,
        stamp_ns: int | None = None,
    ) -> list[Frame]:
        """The next image, uint8 [H, W, 3] RGB; intrinsics [3, 3] are its camera matrix, if known.

        Returns the frames of its chunk, in order, if that is full now, else none. A new world starts, and the status
        says so, at the third image in a row that has another size, and at a stamp (nanoseconds) that lies further back
        than `max_lateness`, or is that of the world's first image again; what waits is taken in before.

        Raises ValueError for a wrong shape or type, intrinsics that are no camera's, an image too small, the first two
        of another size, and, as continuity.Late, for another stamp that is not after the last; the stream stays as it
        was. Raises what `flush` does: all images but those still `waiting` are lost then.
        """
        started = time.perf_counter()
        resize = self.resize(image)
        known = None if intrinsics is None else resize.intrinsics(_camera_matrix(intrinsics, *image.shape[:2]))
        reason = self._continuity.why_new_world(image.shape, stamp_ns)
        frames = []
        try:
            if reason:
                frames = self.flush()
        finally:  # whatever becomes of the world before
            if reason:
                self.reset(reason)
            gap = self._continuity.accept(image.shape, stamp_ns)
            kept = held(image, resize, self.device)
            self._waiting.append(_Waiting(kept, resize, known, gap, time.perf_counter() - started))
        return frames if self.waiting < self._cache_config.chunk else frames + self.flush()

    @torch.inference_mode()
    def flush(self) -> list[Frame]:
        """Takes in what waits, as a chunk that is full. Returns the frames, in order; none if nothing waits.

        Raises NotFinite where the model's numbers are not finite: those images are left out, and the stream goes on;
        a new world starts only at a world's first images, and at the third such chunk in a row.
        Raises OutOfMemory for a cache configured for more memory than there is; the stream stays as it was. Raises it
        too if memory runs out later; the stream goes on with half the cache or, where even that finds no memory and at
        a world's first images, in a new world. `shortage` says so until the cache is reconfigured.
        """
        images, self._waiting = self._waiting, []
        if not images:
            return []
        with memory_for(self._make_do):
            return self._take_in(images)

    def step_parts(self, image: NDArray[np.uint8], intrinsics: NDArray[np.float64]) -> Parts[Frame]:
        """`step` of an image as the network sees it, [h, w, 3], without a stamp, in parts; for chunks of one."""
        height, width = image.shape[:2]
        as_it_is = Resize(1.0, 1.0, width, height, height, 0)
        kept = held(image, as_it_is, self.device)
        (frame,) = yield from self._taking_in([_Waiting(kept, as_it_is, intrinsics, "", 0.0)])
        return frame

    def adopt(self, other: GeometryStream) -> None:
        """Goes on with the past of another stream of the same model and size of images, which has none then.

        What is waiting, told, followed or limited stays as it is here.
        """
        self._cache, self._T_first_model, self._views = other._cache, other._T_first_model, other._views
        self._intake, self._count = other._intake, other._count
        if self._cache:
            self._cache.fused = self._fused
        other._forget_past()

    def _take_in(self, images: list[_Waiting]) -> list[Frame]:
        return whole(self._taking_in(images))

    def _taking_in(self, images: list[_Waiting]) -> Parts[list[Frame]]:
        """`_take_in`, in parts."""
        timer = StageTimer(self.device)
        shown = seen([(image.held, image.resize) for image in images], self.device)  # [S, h, w, 3]
        pixels = shown.permute(0, 3, 1, 2) / 255
        timer("preprocess")
        cache = self._cache or self.allocate(*shown.shape[1:3])
        self._adapt(cache)
        cache.taking_in = self._intake.due(cache.config)
        dense = self.dense or self._goes_by_depth(cache)
        predictions = yield from self._predict(pixels, cache, dense, timer)
        status = replace(self.status, dense=dense)
        T_first_model, frames = self._frames(predictions, shown, cache, images, status)
        self._check_finite(frames)
        if self._tracker and predictions.track_maps is not None:
            tracks = self._tracker.update(predictions.track_maps[0])
            frames = [replace(frame, tracks=found) for frame, found in zip(frames, tracks, strict=True)]
            timer("tracks")
        cache.end_frames(len(frames))
        cache.learn(Geometry(predictions.depth[0], predictions.depth_confidence[0], predictions.pose[0]))
        for frame in frames:
            self._views.add(frame)
            self._intake.add(frame, cache.taking_in)
        self._count += len(frames)
        status = replace(self._status_of(cache, _share(timer.seconds(), images)), dense=dense)
        self._T_first_model, self._failures = T_first_model, 0
        return self._told(frames, images, status)

    def _goes_by_depth(self, cache: KVCache) -> bool:
        """Whether something in the stream needs to know the depth of the frames to come."""
        anew = cache.taking_in and (cache.config.intake == "moved" or self._count == 0)
        return anew or cache.config.adaptive or cache.policy.goes_by_depth

    def _predict(self, pixels: torch.Tensor, cache: KVCache, dense: bool, timer: StageTimer) -> Parts[Predictions]:
        """The model's step, as a graph where there is one, else in parts; pixels [S, 3, h, w]."""
        done = self._graph.step(pixels, cache, dense, self._why_eager(cache))
        self._event = "; ".join(filter(None, [self._event, self._graph.news()]))
        if done is None:
            return (yield from self.model.step_parts(pixels, cache, timer, dense))
        predictions, marks = done
        timer.marks += marks
        return predictions

    def allocate(self, height: int, width: int) -> KVCache:
        """Makes the cache for images as the network sees them, of that size; a step does so where there is none."""
        shape = self._shape(height, width)
        self._cache = self._new_cache(shape, self._in_force(shape), self.device)
        return self._cache

    def _frames(
        self,
        predictions: Predictions,
        shown: torch.Tensor,
        cache: KVCache,
        images: list[_Waiting],
        status: StepStatus,
    ) -> tuple[NDArray[np.float64], list[Frame]]:
        """First camera <- the model's world, and the frames, whose status is not wholly known yet.

        shown: the images as the network saw them, uint8 [S, h, w, 3].
        """
        of_model = (predictions.pose, predictions.depth, predictions.depth_confidence, predictions.points)
        asked = [shown, *(x[0].float() for x in of_model if x is not None)]
        seen_there, encoded, depth, confidence, *others = to_host(asked)  # each of S frames
        seen_there.flags.writeable = False
        poses = [geometry.decode_pose(pose, *depth.shape[1:]) for pose in encoded]
        T_first_model = poses[0][0] if self._T_first_model is None else self._T_first_model
        grid = self.model.grid(predictions.depth)
        descriptors: Any = describe(cache.patches, grid) if self.describes else [None] * len(images)
        points: list[Any] = [None] * len(images)
        if others:
            points = [geometry.transform(T_first_model, p) for p in others[0]]
        frames = [
            Frame(
                index=self._count + i,
                T_first_cam=T_first_model @ geometry.inverse(T_cam_model),
                intrinsics=predicted if image.intrinsics is None else image.intrinsics,
                depth=depth[i],
                confidence=confidence[i],
                image=seen_there[i],
                status=status,
                predicted_points=points[i],
                resize=image.resize,
                descriptor=descriptors[i],
            )
            for i, (image, (T_cam_model, predicted)) in enumerate(zip(images, poses, strict=True))
        ]
        return T_first_model, frames

    def _told(self, frames: list[Frame], images: list[_Waiting], status: StepStatus) -> list[Frame]:
        """The frames, each with the status of their step and what there is to say about itself."""
        told = []
        for frame, image in zip(frames, images, strict=True):
            event = "; ".join(filter(None, [self._event, image.event]))
            self._event = ""
            self.status = replace(status, frame=frame.index, event=event)
            told.append(replace(frame, status=self.status))
        return told

    # --- steps that fail ----------------------------------------------------------------------------

    def _check_finite(self, frames: list[Frame]) -> None:
        """Leaves out what would make numbers of none out of every later one.

        Keys that are none are seen here too: each new token attends to all of them.
        """
        found = [x for frame in frames for x in (frame.T_first_cam, frame.intrinsics, frame.predicted_points)]
        found += [x for frame in frames if frame.status.dense for x in (frame.depth, frame.confidence)]
        if all(x is None or np.isfinite(x).all() for x in found):
            return
        self._failures += 1
        what = f"the model's numbers for {'an image' if len(frames) == 1 else f'a chunk of {len(frames)} images'}"
        if self._failures < FAILURES and (self._begins_anew() or self._abandon_frames()):
            self._event, done = f"{what} were not finite: left out", "the stream goes on without"
        else:
            self.reset(f"{what} were not finite")
            done = "a new world starts"
        raise NotFinite(f"{what} are not finite in {self.dtype}: {done}; if that comes again, set dtype to float32")

    def _make_do(self, error: BaseException) -> str:
        """After a step that ran out of memory: goes on with less, and says with what."""
        if self._cache is None and not self._halved and isinstance(error, OutOfMemory):
            return str(error)  # the settings ask for more than there is: they are the user's to change
        self._graph.drop()
        give_back()  # memory kept for the sizes of before
        if self._T_first_model is None:  # a world without its first frame is none
            self._cache = None
        before = self._cache_config
        self._cache_config = halved(before, self._cache)
        if self._begins_anew():
            done = "the segment begins with the next image"
        elif self._abandon_frames() and self._cache is not None:
            done = f"{self._cache.config.policy} goes on with {self._cache.budget} tokens per layer"
        else:
            self.reset()
            done = "a new world starts" + ", with half the cache budget" * (self._cache_config != before)
        self._event = self._halved = f"out of memory: {done}; {LESS}"
        return self._halved

    def _begins_anew(self) -> bool:
        """Whether the next image may be the first in place of the one at hand: here that would be a new world."""
        return False

    def _abandon_frames(self) -> bool:
        """Makes the cache forget the frames at hand; whether something is left to go on with."""
        if self._cache is None or self._cache.lost or self._T_first_model is None:
            return False
        try:
            self._cache.abandon_frames(self._in_force(self._cache.shape))
        except OutOfMemory:
            return False
        return self._cache.tokens > 0

    # --- points -------------------------------------------------------------------------------------

    def track(self, pixels: NDArray[np.float32]) -> NDArray[np.int64]:
        """Follows points from the newest frame on, [N, 2] pixels (x, y) of its `image`; returns their ids [N].

        That is the network's: pixels of the image that came in are `frame.resize.to_input(pixels)` there. Frames then
        say where the points are (`Frame.tracks`), until a new world starts or none of them is seen for long.
        Raises ValueError where `track_groups` is 0 or that many are followed already, before the first frame, and for
        points outside the image.
        """
        if not self._tracker:
            raise ValueError("points are followed only where track_groups is above 0: set it at the start")
        return self._tracker.follow(pixels)

    # --- sizes --------------------------------------------------------------------------------------

    def resize(self, image: NDArray[np.uint8]) -> Resize:
        """How an image, uint8 [H, W, 3], becomes the network's input. Raises ValueError for what is none."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"an image must be a uint8 array [H, W, 3], got {got}")
        return Resize.of(image.shape[0], image.shape[1], self.width, self.model.config.patch_size)

    def _shape(self, height: int, width: int) -> CacheShape:
        """Of the cache for network inputs of that size (pixels)."""
        camera_dtype = self.model.camera_head.empty_pose_tokens.dtype
        iterations = self.config.camera_iterations
        shape = cache_shape(self.model.config, height, width, self.dtype, camera_dtype, iterations)
        maps = map_nbytes(self.model.config, height, width, self.dtype) if self._tracker else 0
        return replace(shape, beside_nbytes=(1 + self.config.track_groups) * maps)

    def _usual_shape(self) -> CacheShape:
        """As long as none has come: of images of 4:3."""
        resize = Resize.of(3 * self.width, 4 * self.width, self.width, self.model.config.patch_size)
        return self._shape(resize.height, resize.width)

    def _new_cache(self, shape: CacheShape, config: CacheConfig, device: torch.device) -> KVCache:
        return self._cache_type(shape, config, device, self.model.kernel, self.model.camera_kernel, self._fused)

    def _status_of(self, cache: KVCache, seconds: dict[str, float]) -> StepStatus:
        """After a step of so many seconds for each of its frames."""
        count, adaptive = self._views.count, cache.config.adaptive and cache.budget
        return StepStatus(
            policy=cache.config.policy,
            tokens=cache.tokens,
            budget_tokens=cache.budget or 0,
            ceiling_tokens=tokens_of(self._ceiling(), cache.shape),
            budget_reason=f"{count} view{'s' * (count != 1)} of the scene" if adaptive else "",
            floor_tokens=cache.floor,
            budget_raised=cache.budget_raised,
            evicted_tokens=cache.evicted,
            taken_in=cache.taking_in,
            frames_taken_in=cache.frames,
            reencoded_tokens=cache.reencoded,
            quantizer=cache.config.quantizer,
            key_bits=cache.config.key_bits,
            value_bits=cache.config.value_bits,
            cache_bytes=cache.nbytes,
            scratch_bytes=cache.scratch_nbytes,
            track_bytes=self._tracker.nbytes if self._tracker else 0,
            camera_frames=cache.camera.frames,
            seconds=seconds,
        )


def cache_shape(
    model: ModelConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    camera_dtype: torch.dtype,
    iterations: int = ITERATIONS,
) -> CacheShape:
    """Of the cache for a model and network inputs of that size (pixels).

    The model computes in `dtype`, its camera head in `camera_dtype`, and in so many iterations.
    """
    return CacheShape(
        layers=model.depth,
        heads=model.heads,
        head_dim=model.width // model.heads,
        tokens_per_frame=model.tokens_per_frame(height, width),
        specials=model.specials,
        grid=(height // model.patch_size, width // model.patch_size),
        camera_blocks=model.camera.depth,
        camera_heads=model.camera.heads,
        camera_head_dim=2 * model.width // model.camera.heads,
        camera_iterations=iterations,
        dtype=dtype,
        camera_dtype=camera_dtype,
    )


def _changes(before: CacheConfig, after: CacheConfig) -> str:
    """What is another setting now, and whether that has no effect."""
    old, new = values(before), values(after)
    other = after.budget_tokens or after.budget_mib
    idle = " (no effect while budget_tokens or budget_mib is set)"
    return ", ".join(
        f"{name} {old[name]} -> {new[name]}" + idle * bool(name == "budget_frames" and other)
        for name in new
        if new[name] != old[name]
    )


def _largest_setting(cache: KVCache) -> str:
    """That of the cache's settings which makes it as large as it is."""
    if 2 * cache.camera.buffer.nbytes > cache.nbytes:
        return "camera_window"
    config = cache.config
    if config.budget_mib and cache.budget != config.budget_tokens:
        return "budget_mib"
    return "budget_tokens" if config.budget_tokens else "budget_frames"


def _share(seconds: dict[str, float], images: list[_Waiting]) -> dict[str, float]:
    """Each image's of what they took together."""
    before = sum(image.seconds for image in images)
    whole = {stage: s + before * (stage in ("preprocess", "step")) for stage, s in seconds.items()}
    return {stage: s / len(images) for stage, s in whole.items()}


def _camera_matrix(intrinsics: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    K = np.asarray(intrinsics, dtype=np.float64)
    if K.shape != (3, 3):
        raise ValueError(
            f"intrinsics must be a 3x3 camera matrix, got shape {list(K.shape)}; give K, or P's first columns"
        )
    return check_camera_matrix(K, "intrinsics", height, width)


class StageTimer:
    """Seconds between marks. On CUDA they are device times, read once at the end: marking never waits."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._started = time.perf_counter()
        self.marks: list[tuple[str, Any]] = []  # CUDA events, or seconds
        self("start")

    def __call__(self, stage: str) -> None:
        """The stage ends here."""
        if not self._cuda:
            self.marks.append((stage, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((stage, event))

    def seconds(self) -> dict[str, float]:
        """Per stage, and under "step" the whole time up to now, in which the outputs reached the CPU."""
        step = time.perf_counter() - self._started
        spans = ((stage, before, now) for (_, before), (stage, now) in pairwise(self.marks))
        if self._cuda:
            return {stage: before.elapsed_time(now) / 1000 for stage, before, now in spans} | {"step": step}
        return {stage: now - before for stage, before, now in spans} | {"step": step}
