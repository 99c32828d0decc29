# SPDX-License-Identifier: Apache-2.0
"""The stream: one image in, one frame of geometry out, under the cache's budget."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from xsvggt_ros import geometry
from xsvggt_ros.cache import CacheShape, KVCache
from xsvggt_ros.cache.policies import Geometry
from xsvggt_ros.camera import check_camera_matrix
from xsvggt_ros.config import CacheConfig, StreamConfig
from xsvggt_ros.continuity import Continuity
from xsvggt_ros.frame import Frame
from xsvggt_ros.memory import MIB, OutOfMemory, memory_for
from xsvggt_ros.model import StreamVGGT, load_model
from xsvggt_ros.model.camera_head import ITERATIONS
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.model.streamvggt import Predictions
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.status import StepStatus


class GeometryStream:
    """Camera images, one after the other, to poses, depth and points in the first camera's frame.

    Raises ValueError or FileNotFoundError, with the remedy, for settings that cannot work.
    """

    _cache_type: type[KVCache] = KVCache

    def __init__(self, config: StreamConfig | None = None, model: StreamVGGT | None = None):
        self.config = config or StreamConfig()
        self.model = model or load_model(self.config)
        self.width = self.config.image_width or self.model.config.image_size
        parameter = self.model.aggregator.camera_token
        self.device, self.dtype = parameter.device, parameter.dtype
        self.status = StepStatus()
        self.shortage = ""  # why the cache is smaller than configured, since memory ran out; empty: it is not
        self._cache_config = self.config.cache  # as configured, or as halved since
        self._fraction = 1.0  # of it that is in force
        self._continuity = Continuity(self.config.max_lateness, self.config.max_gap)
        self.reset()

    def summary(self) -> str:
        """What runs, and what the cache can hold, in one line. The number of tokens follows from the images: 4:3."""
        weights = self.config.weights or "the package's own weights, which know synthetic rooms only"
        resize = Resize.of(3 * self.width, 4 * self.width, self.width, self.model.config.patch_size)
        cache = self._new_cache(resize.height, resize.width, torch.device("meta"))
        per_frame = cache.shape.tokens_per_frame
        held = "all frames, in memory that grows"
        if cache.budget:
            frames, mib = cache.budget / per_frame, cache.nbytes / MIB
            held = f"{cache.budget} tokens per layer = {frames:.1f} frames = {mib:.1f} MiB"
        return (
            f"{self.config.model} with {weights}, on {self.device}, {self.dtype}, "
            f"attention by {self.model.kernel.__name__}; an image of 4:3 is {per_frame} tokens, "
            f"and the cache ({cache.config.policy}) keeps {held}"
        )

    def reset(self, reason: str = "") -> None:
        """Forgets the past: the next image starts a new world. The reason appears in its status."""
        self._cache: KVCache | None = None
        self._continuity.forget_world()
        self._T_first_model: NDArray[np.float64] | None = None  # until the first frame is complete
        self._event = reason

    def reconfigure(self, cache: CacheConfig) -> None:
        """Other policy, budget or bits from the next step on; the stream goes on, and a `limit` stays.

        Raises OutOfMemory if there is not the memory for it; nothing has changed then.
        """
        self._switch(cache, self._fraction, "cache settings changed")
        self.shortage = ""

    def limit(self, fraction: float) -> None:
        """Holds the cache to a fraction of its budget, above 0 to 1, from the next step on; 1 ends that.

        The least that the policy works with stays; policy full has no budget to hold it to.
        Raises ValueError for another fraction, OutOfMemory if there is not the memory for it; nothing has changed then.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"the fraction of the cache's budget must be above 0 and at most 1, got {fraction}")
        if fraction != self._fraction:
            self._switch(self._cache_config, fraction, f"cache held to {fraction:.0%} of its budget")

    @torch.inference_mode()
    def step(
        self,
        image: NDArray[np.uint8],
        intrinsics: NDArray[np.float64] | None = None,
        stamp_ns: int | None = None,
    ) -> Frame:
        """Takes in the next image, uint8 [H, W, 3] RGB; intrinsics [3, 3] are its camera matrix, if known.

        A new world starts, and the status says so, at the third image in a row that has another size, and at a stamp
        (nanoseconds) that lies further back than `max_lateness`, or is that of the world's first image again.
        Raises ValueError for a wrong shape or type, intrinsics that are no camera's, an image too small, the first two
        of another size, and, as continuity.Late, for another stamp that is not after the last; the stream stays as it
        was. So it does at the OutOfMemory of a cache configured for more memory than there is. Raises ValueError too
        where the model's numbers are not finite; the next image starts a new world then.
        Raises OutOfMemory if memory runs out later; the stream goes on with half the cache or, where even that finds
        no memory and at a world's first image, in a new world. `shortage` says so until the cache is reconfigured.
        """
        resize = self.resize(image)
        known = None if intrinsics is None else resize.intrinsics(_camera_matrix(intrinsics, *image.shape[:2]))
        if reason := self._continuity.why_new_world(image.shape, stamp_ns):
            self.reset(reason)
        gap = self._continuity.accept(image.shape, stamp_ns)
        self._event = "; ".join(filter(None, [self._event, gap]))
        with memory_for(self._make_do):
            return self._step(image, resize, known)

    def _step(self, image: NDArray[np.uint8], resize: Resize, known: NDArray[np.float64] | None) -> Frame:
        timer = StageTimer(self.device)
        seen = resize.image(Image.fromarray(image))
        pixels = torch.tensor(seen, device=self.device).permute(2, 0, 1) / 255  # [3, h, w]
        timer("preprocess")
        cache = self._cache or self._start(seen.shape)
        predictions = self.model.step(pixels[None], cache, timer)
        cache.end_frames(1)
        cache.learn(Geometry(predictions.depth[0], predictions.depth_confidence[0], predictions.pose[0]))
        frame = self._frame(predictions, cache, seen, known)
        self._check_finite(frame)
        self.status = replace(frame.status, seconds=timer.seconds())
        self._event = ""
        return replace(frame, status=self.status)

    def _check_finite(self, frame: Frame) -> None:
        """Numbers that are none would stay in the cache, and so in every frame from then on."""
        if not (np.isfinite(frame.T_first_cam).all() and np.isfinite(frame.depth).all()):
            self.reset("the model's numbers for an image were not finite")
            raise ValueError(
                f"the model's numbers for it are not finite in {self.dtype}, and a new world starts; if that comes "
                "again, set dtype to float32"
            )

    def _make_do(self, error: BaseException) -> str:
        """After a step that ran out of memory: goes on with less, and says with what."""
        if self._cache is None and not self.shortage and isinstance(error, OutOfMemory):
            return str(error)  # the settings ask for more than there is: they are the user's to change
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # memory kept for the sizes of before
        if self._T_first_model is None:  # a world without its first frame is none
            self._cache = None
        before = self._cache_config
        self._cache_config = _halved(before, self._cache)
        if self._abandon_frame() and self._cache is not None:
            done = f"{self._cache.config.policy} goes on with {self._cache.budget} tokens per layer"
        else:
            self.reset()
            done = "a new world starts" + ", with half the cache budget" * (self._cache_config != before)
        self._event = self.shortage = (
            f"out of memory: {done}; free memory, or lower cache.budget_tokens or image_width for good"
        )
        return self.shortage

    def _abandon_frame(self) -> bool:
        """Makes the cache forget the frame at hand; whether something is left to go on with."""
        if self._cache is None:
            return False
        try:
            self._cache.abandon_frames(self._in_force())
        except OutOfMemory:
            return False
        return self._cache.tokens > 0

    @torch.inference_mode()
    def _switch(self, cache: CacheConfig, fraction: float, event: str) -> None:
        if self._cache is not None and self._cache.config != _scaled(cache, fraction):
            self._cache.reconfigure(_scaled(cache, fraction))
            self._event = event
        self._cache_config, self._fraction = cache, fraction

    def _in_force(self) -> CacheConfig:
        return _scaled(self._cache_config, self._fraction)

    def resize(self, image: NDArray[np.uint8]) -> Resize:
        """How an image, uint8 [H, W, 3], becomes the network's input. Raises ValueError for what is none."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"an image must be a uint8 array [H, W, 3], got {got}")
        return Resize.of(image.shape[0], image.shape[1], self.width, self.model.config.patch_size)

    def _new_cache(self, height: int, width: int, device: torch.device) -> KVCache:
        camera_dtype = self.model.camera_head.empty_pose_tokens.dtype
        shape = cache_shape(self.model.config, height, width, self.dtype, camera_dtype)
        return self._cache_type(shape, self._in_force(), device, self.model.kernel, self.model.camera_kernel)

    def _start(self, seen: tuple[int, ...]) -> KVCache:
        height, width = seen[:2]
        self._cache = self._new_cache(height, width, self.device)
        return self._cache

    def _frame(
        self, predictions: Predictions, cache: KVCache, seen: NDArray[np.uint8], known: NDArray[np.float64] | None
    ) -> Frame:
        height, width = seen.shape[:2]
        T_cam_model, predicted = geometry.decode_pose(predictions.pose[0, 0].double().cpu().numpy(), height, width)
        T_first_model = T_cam_model if self._T_first_model is None else self._T_first_model
        points = None
        if predictions.points is not None:
            points = geometry.transform(T_first_model, predictions.points[0, 0].float().cpu().numpy())
        frame = Frame(
            index=cache.frames - 1,
            T_first_cam=T_first_model @ geometry.inverse(T_cam_model),
            intrinsics=predicted if known is None else known,
            depth=predictions.depth[0, 0].float().cpu().numpy(),
            confidence=predictions.depth_confidence[0, 0].float().cpu().numpy(),
            image=seen,
            status=self._status_of(cache),
            predicted_points=points,
        )
        self._T_first_model = T_first_model
        return frame

    def _status_of(self, cache: KVCache) -> StepStatus:
        return StepStatus(
            frame=cache.frames - 1,
            event=self._event,
            policy=cache.config.policy,
            tokens=cache.tokens,
            budget_tokens=cache.budget or 0,
            floor_tokens=cache.floor,
            budget_raised=cache.budget_raised,
            evicted_tokens=cache.evicted,
            key_bits=cache.config.key_bits,
            value_bits=cache.config.value_bits,
            cache_bytes=cache.nbytes,
            scratch_bytes=cache.scratch_nbytes,
            camera_frames=cache.camera.frames,
        )


def cache_shape(
    model: ModelConfig, height: int, width: int, dtype: torch.dtype, camera_dtype: torch.dtype
) -> CacheShape:
    """Of the cache for a model and network inputs of that size (pixels).

    The model computes in `dtype`, its camera head in `camera_dtype`.
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
        camera_iterations=ITERATIONS,
        dtype=dtype,
        camera_dtype=camera_dtype,
    )


def _scaled(cache: CacheConfig, fraction: float) -> CacheConfig:
    """With a fraction of its budget; policy full has none."""
    if cache.policy == "full":
        return cache
    tokens = max(1, int(cache.budget_tokens * fraction)) if cache.budget_tokens else 0
    return replace(cache, budget_tokens=tokens, budget_mib=cache.budget_mib * fraction)


def _halved(config: CacheConfig, cache: KVCache | None) -> CacheConfig:
    """With half the budget or, where there is none, half of what the cache holds; it cannot stay full then."""
    if cache is None:
        return _scaled(config, 0.5)
    if not config.camera_window:
        config = replace(config, camera_window=max(1, cache.camera.frames // 2))
    if config.policy == "full":
        return replace(config, policy="xstream", budget_tokens=max(1, cache.tokens // 2))
    return config if cache.budget == cache.floor else _scaled(config, 0.5)


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
        self._marks: list[tuple[str, Any]] = []  # CUDA events, or seconds
        self("start")

    def __call__(self, stage: str) -> None:
        """The stage ends here."""
        if not self._cuda:
            self._marks.append((stage, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((stage, event))

    def seconds(self) -> dict[str, float]:
        """Per stage, and under "step" the whole time up to now, in which the outputs reached the CPU."""
        step = time.perf_counter() - self._started
        spans = ((stage, before, now) for (_, before), (stage, now) in pairwise(self._marks))
        if self._cuda:
            return {stage: before.elapsed_time(now) / 1000 for stage, before, now in spans} | {"step": step}
        return {stage: now - before for stage, before, now in spans} | {"step": step}
