# SPDX-License-Identifier: Apache-2.0
"""Training of the track head alone, on features of a network that stays as it is (CoTracker, arXiv 2307.07635)."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xsvggt_ros.evaluation.metrics import track_errors
from xsvggt_ros.model.attention import WholeSequence
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.model.streamvggt import StreamVGGT
from xsvggt_ros.model.track_head import STRIDE, TrackHead, sample
from xsvggt_ros.training.batches import Batch
from xsvggt_ros.training.network import autocast
from xsvggt_ros.training.supervision import hats

QUERIES = 64
WINDOWS = 4  # frames of a sequence that are learned from at a time
NOISE, SPREAD = 2.0, 4.0  # pixels, as wrong as a stream is about where points were; of some so many times more, or less
ITERATION_WEIGHT = 0.8  # of an iteration's places, for each that follows it
UNSEEN = 0.2  # weight of places that are hidden
CLOSE = 2.0  # pixels: places so near the truth are to be trusted
BETA = 1.0  # pixels from which the loss of a place grows linearly
SHARPNESS = 4.0  # of the comparison of features


def least_side(config: ModelConfig) -> int:
    """Of images in which its track head can look for points, pixels."""
    assert config.track is not None
    return STRIDE * 2 ** (config.track.corr_levels - 1)


class Truth(NamedTuple):
    """Of N points in B sequences."""

    pixels: Tensor  # [B, S, N, 2]
    visible: Tensor  # [B, S, N], 0 or 1
    near: Tensor  # [B, S, N], 0 where a point is behind the camera, or more than an image's side beyond the image


Found = tuple[Tensor, Tensor, Tensor]  # tracks [iterations, B, S, N, 2], visibility and confidence [B, S, N]


def true_tracks(batch: Batch, queries: Tensor) -> Truth:
    """Of whole pixels (x, y) of the first frames, [N, 2]."""
    column, row = queries.long().unbind(-1)
    pixels, depth = batch.project(batch.points(queries, batch.depth[..., row, column])[:, :1])
    size = pixels.new_tensor([batch.depth.shape[-1], batch.depth.shape[-2]])
    near = (depth > 0) & ((pixels >= -size) & (pixels < 2 * size)).all(-1)
    return Truth(pixels[:, 0], batch.visible(pixels, depth)[:, 0], near[:, 0].float())


def random_queries(batch: Batch, generator: torch.Generator) -> Tensor:
    """Pixels (x, y) [QUERIES, 2]."""
    height, width = batch.depth.shape[-2:]
    return (torch.rand(QUERIES, 2, generator=generator) * torch.tensor([width, height])).floor().to(batch.depth)


def track_losses(model: StreamVGGT, batch: Batch, seed: int) -> dict[str, Tensor]:
    """By name. Two of eight seeds follow the points through whole sequences, the others into frames of a stream."""
    head, generator = model.track_head, torch.Generator().manual_seed(seed)
    assert head is not None
    queries = random_queries(batch, generator)
    whole = seed // 2 % 4 == 0  # of two steps in a row, one is mirrored
    later = torch.arange(1, batch.images.shape[1])
    before = later[:0]
    if not whole:
        later = later[torch.randperm(len(later), generator=generator)[:WINDOWS]]
        before = later - 1
    asked = torch.cat([torch.zeros_like(later[:1]), later])
    maps = feature_maps(model, batch.images, torch.cat([asked, before]))
    truth = true_tracks(batch, queries)
    start = _about(truth.pixels[:, before], batch, generator)
    given = queries.expand(len(maps), -1, -1)
    with autocast(batch.images.device):
        found: Found = head.tracker(maps, given) if whole else windows(head, maps, given, before, start)
    of_asked = Truth(*(x[:, asked] for x in truth))
    match = _match_loss(head, maps[:, : len(asked)], given, of_asked)
    return _losses(found, of_asked) | {"feature match": match}


def feature_maps(model: StreamVGGT, images: Tensor, seen: Tensor | None = None) -> Tensor:
    """Of the track head for images [B, S, 3, H, W], on what a stream sees: [B, S, F, H/2, W/2]; seen: of these only."""
    head = model.track_head
    assert head is not None
    grid = model.grid(images)
    with autocast(images.device):
        with torch.no_grad():
            inside = WholeSequence(model.kernel)
            encoded = model.aggregator.encode(images.flatten(0, 1), inside).unflatten(0, images.shape[:2])
            x = model.aggregator.with_specials(encoded, starts=True)
            taps = model.aggregator(x, grid, inside, WholeSequence(model.kernel, x.shape[2]))
            if seen is not None:
                taps = [tap[:, seen] for tap in taps]
        patches = [tap[:, :, model.config.specials :].flatten(0, 1) for tap in taps]
        return head.feature_extractor(patches, grid).unflatten(0, taps[0].shape[:2])


def _about(pixels: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """As wrong as a stream may be about pixels [B, n, N, 2]; those of points behind the camera are far off."""
    size = pixels.new_tensor([batch.depth.shape[-1], batch.depth.shape[-2]])
    noise = NOISE * SPREAD ** torch.empty(pixels.shape[:-1]).uniform_(-1, 1, generator=generator)[..., None]
    noise = noise * torch.randn(pixels.shape, generator=generator)
    return (pixels + noise.to(pixels)).clamp(-size, 2 * size)


def windows(head: TrackHead, maps: Tensor, queries: Tensor, before: Tensor, start: Tensor) -> Found:
    """Frames of a stream, each for itself, from about where the points were in the one before.

    maps [B, 1 + 2 n, F, h, w]: of the first frame, of n others, and of those before these, which have the numbers
    before [n]: the first is not shown twice. queries [B, N, 2]; start [B, n, N, 2]: pixels in those before.
    """
    found, order = [_newest(head.tracker(maps[:, :1], queries))], [torch.tensor([-1])]
    for those in ((before == 0).nonzero()[:, 0], (before > 0).nonzero()[:, 0]):
        if not len(those):
            continue
        shown = [torch.zeros_like(those), 1 + those]
        if before[those[0]]:
            shown.insert(1, 1 + len(before) + those)
        given = queries[:, None].expand(-1, len(those), -1, -1)
        places = torch.stack([given, *[start[:, those]] * (len(shown) - 1)], 2)
        window = maps[:, torch.stack(shown, 1)]  # [B, those, 2 or 3, F, h, w]
        tracks, *rest = _newest(head.tracker(*(x.flatten(0, 1) for x in (window, given, places))))
        size = given.shape[:2]
        found.append((tracks[:, :, 0].unflatten(1, size), *(x[:, 0].unflatten(0, size) for x in rest)))
        order.append(those)
    tracks, visibility, confidence = _together(found)
    in_order = torch.cat(order).argsort()
    return tracks[:, :, in_order], visibility[:, in_order], confidence[:, in_order]


def streamed(head: TrackHead, maps: Tensor, queries: Tensor) -> Found:
    """As the head's Tracker, of maps [B, S, F, h, w]: each frame is matched with the first and the one before, from
    where the points were in that."""
    found: list[Found] = [head.tracker(maps[:, :1], queries)]
    for t in range(1, maps.shape[1]):
        before = found[-1][0][-1, :, -1].detach()
        shown = [0, *range(max(1, t - 1), t + 1)]
        start = torch.stack([queries, *[before] * (len(shown) - 1)], 1)
        found.append(head.tracker(maps[:, shown], queries, start))
    return _together([_newest(of_window) for of_window in found])


def _newest(found: Found) -> Found:
    """Of the last frame only."""
    tracks, visibility, confidence = found
    return tracks[:, :, -1:], visibility[:, -1:], confidence[:, -1:]


def _together(found: list[Found]) -> Found:
    """Of frames one after the other."""
    tracks, visibility, confidence = zip(*found, strict=True)
    return torch.cat(tracks, 2), torch.cat(visibility, 1), torch.cat(confidence, 1)


def _losses(found: Found, truth: Truth) -> dict[str, Tensor]:
    """The first frame is given."""
    tracks, visibility, confidence = found
    weight = (truth.visible + UNSEEN * (1 - truth.visible)) * truth.near
    error = F.smooth_l1_loss(tracks.float(), truth.pixels.expand_as(tracks), beta=BETA, reduction="none").sum(-1)
    iterations = ITERATION_WEIGHT ** torch.arange(len(tracks) - 1, -1, -1, device=error.device)
    place = (iterations[:, None, None, None] * error * weight)[:, :, 1:].sum() / (
        iterations.sum() * weight[:, 1:].sum().clamp(min=1)
    )
    close = ((tracks[-1].detach() - truth.pixels).norm(dim=-1) < CLOSE).float() * truth.visible
    return {
        "place": place,
        "visibility": _entropy(visibility[:, 1:], truth.visible[:, 1:]),
        "track confidence": _entropy(confidence[:, 1:], close[:, 1:]),
    }


def _match_loss(head: TrackHead, maps: Tensor, queries: Tensor, truth: Truth) -> Tensor:
    """Cross-entropy of finding the queries' features in the other frames' maps: what the tracker searches in.

    From places alone next to nothing was learned in a hundred steps: at first nothing that it sees says where to go.
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps = head.tracker.fmap_norm(maps.float().movedim(2, -1))  # [B, S, h, w, F]
        features = sample(maps[:, 0].movedim(-1, 1), queries / STRIDE, "border")  # [B, N, F]
        logits = torch.einsum("bnf,bshwf->bsnhw", features, maps[:, 1:]) * (SHARPNESS / features.shape[-1])
        target = hats(truth.pixels[:, 1:] / STRIDE, *maps.shape[2:4])  # [B, S - 1, N, h * w]
        entropy = -(target * logits.flatten(3).log_softmax(-1)).sum(-1)
        visible = truth.visible[:, 1:]
        return (entropy * visible).sum() / visible.sum().clamp(min=1)


def _entropy(chance: Tensor, truth: Tensor) -> Tensor:
    with torch.autocast(chance.device.type, enabled=False):
        return F.binary_cross_entropy(chance.float().clamp(1e-4, 1 - 1e-4), truth)


@torch.no_grad()
def errors_of_tracks(model: StreamVGGT, batch: Batch) -> dict[str, float]:
    """Of streamed tracks, see evaluation.metrics.TrackErrors; the mean over the sequences."""
    head = model.track_head
    assert head is not None
    queries = random_queries(batch, torch.Generator().manual_seed(0))
    size = (batch.depth.shape[-2], batch.depth.shape[-1])
    maps, truth = feature_maps(model, batch.images), true_tracks(batch, queries)
    with autocast(maps.device):
        tracks, visibility, _ = streamed(head, maps, queries.expand(len(maps), -1, -1))
    said = tracks[-1].float().cpu().numpy(), (visibility > 0.5).cpu().numpy()
    true = truth.pixels.cpu().numpy(), truth.visible.cpu().numpy() > 0
    found = [asdict(track_errors(*of_one, size)) for of_one in zip(*said, *true, strict=True)]
    return {name: float(np.nanmean([errors[name] for errors in found])) for name in found[0]}
