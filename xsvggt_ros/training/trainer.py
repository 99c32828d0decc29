# SPDX-License-Identifier: Apache-2.0
"""The training run: schedule, steps, checkpoints from which it can go on, curves, and the export."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xsvggt_ros.model.checkpoint import read_checkpoint
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.model.streamvggt import StreamVGGT
from xsvggt_ros.model.weights import DoesNotFit, load_weights
from xsvggt_ros.training.batches import Batch
from xsvggt_ros.training.lessons import Lessons
from xsvggt_ros.training.losses import depth_loss, motion_loss, points_loss, pose_loss
from xsvggt_ros.training.network import Budget, Output, new_model, optimizers, run, update
from xsvggt_ros.training.rendering import Request
from xsvggt_ros.training.run import Run
from xsvggt_ros.training.supervision import Matches, Supervision
from xsvggt_ros.training.tracking import errors_of_tracks, track_losses
from xsvggt_ros.training.validation import errors

# From this share of the run on: of which shapes a batch is, sequences and frames of each.
# Long sequences teach little before short ones are learned.
CURRICULUM: tuple[tuple[float, tuple[tuple[int, int], ...]], ...] = (
    (0.0, ((24, 2),)),
    (0.03, ((12, 4),)),
    (0.08, ((8, 6),)),
    (0.15, ((4, 12), (4, 16))),
    (0.3, ((8, 12), (4, 24), (4, 24), (4, 24), (2, 48), (2, 48), (2, 48), (2, 96))),
)
LEARNED = 0.3  # share of the curriculum that weights to start from have behind them
DENSE = 4  # one of so many frames is seen by the dense heads and looked for in all others: both cost much
BOUNDED, BUDGETS = 0.3, (6, 20)  # share of the batches whose past is cut to a budget, frames
MOST_BATCHES = 1_000_000  # of a run
MOST_TOKENS = 5200  # of a sequence: larger networks than the demo's see shorter ones
MOST_TRACKED = 24  # frames of a sequence in which points are followed: more show little that is new
WARM_UP = 100  # steps
DECAY = 0.55  # of the run, over which the learning rate falls to 0
AVERAGE = 0.99  # of the weights that are validated and exported, with each step
CLIP = 1.0  # largest norm of the gradient
WEIGHTS = {
    "pose": 1.0, "motion": 1.0, "depth": 2.0, "points": 1.0,
    "encoder match": 0.3, "attention match": 0.5, "patch readout": 1.0, "camera readout": 0.5,
    "place": 0.3, "visibility": 1.0, "track confidence": 0.5, "feature match": 4.0,
}  # fmt: skip
SAVE_EVERY_S = 120.0
AHEAD = 12  # steps, the present one among them, for which rooms are drawn
MOST_LOST = 10  # steps in a row whose gradients are not finite
LOG_EVERY = 10  # steps
VALIDATE_EVERY = 150  # steps

log = logging.getLogger(__name__)


class Trainer:
    """A run in progress; a new one, or the one whose checkpoint is in the folder."""

    def __init__(self, run: Run):
        self.run = run
        config = MODELS[run.model]
        self.model = new_model(config, run.seed)
        self.supervision = Supervision(config)
        has_tracks = run.init is not None and self._start_from(run.init)
        self.learned = LEARNED if has_tracks or (run.init and not run.tracks) else 0.0
        if not (run.tracks or has_tracks):
            self.model.track_head = None  # it would be exported as it is: random
        self.model.to(run.device).train().requires_grad_(not run.tracks)
        if self.model.track_head is not None:
            self.model.track_head.requires_grad_(run.tracks)
        self.supervision.to(run.device).requires_grad_(not run.tracks)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE), use_buffers=True)
        self.lessons = Lessons(run)
        self.optimizers = optimizers(self.model, self.supervision)
        self.rates = [run.rate * group["lr"] for group in self._groups()]
        self.step = 0
        self.lost = 0  # steps in a row whose gradients were not finite
        self.seconds = 0.0  # spent in all sittings
        self.stop = False  # set from outside: this worker is to stop
        self.stopped = False  # all workers are to stop
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.checkpoint.exists():
            self._load()

    @property
    def averaged(self) -> StreamVGGT:
        """The network to use: the mean of the last steps' weights."""
        model = self.average.module
        assert isinstance(model, StreamVGGT)
        return model

    def train(self) -> Iterator[int]:
        """Runs to the last step, or until one worker is asked to stop, yielding after each step.

        A checkpoint is written from time to time and at the end.
        """
        started, before = time.monotonic(), self.seconds
        saved = started
        with closing(self.lessons):
            while self.step < self.run.steps and not self.stopped:
                losses = self.train_step()
                self.seconds = before + time.monotonic() - started
                if self.run.rank == 0:
                    self._write_curves(losses)
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        self.save()
                        saved = time.monotonic()
                yield self.step
        if self.run.rank == 0:
            self.save()

    def train_step(self) -> dict[str, float]:
        """One optimizer step; the losses by name."""
        share = self.step / self.run.steps
        later = [self._request(step) for step in range(self.step + 1, min(self.step + AHEAD, self.run.steps))]
        lessons = self.lessons.training(self._request(self.step), bool(self.step % 2), later)
        losses = self.losses(lessons, self._budget())
        total = torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
        for group, rate in zip(self._groups(), self.rates, strict=True):
            group["lr"] = rate * min(1, (self.step + 1) / WARM_UP, max(0, 1 - share) / DECAY)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self._parameters(), CLIP)
        if self._finite(norm):
            update(self.optimizers, self.run.device)
            self.average.update_parameters(self.model)
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()} | {"total": total.item(), "gradient": norm.item()}

    def _finite(self, norm: Tensor) -> bool:
        """Whether the gradients, which are the same for all workers, can be used. Raises ValueError if none can."""
        self.lost = 0 if norm.isfinite() else self.lost + 1
        if self.lost > MOST_LOST:
            raise ValueError(
                f"the gradients of {self.lost} steps in a row are not finite: look at the teacher's and --init's "
                f"weights; {self.run.checkpoint} is of before"
            )
        return not self.lost

    def _request(self, step: int) -> Request:
        """What this worker learns from in a step."""
        run, pair = self.run, step // 2  # every batch serves twice: rendering takes its time
        sequences, frames = self._batch_shape(2 * pair / run.steps, pair)
        number = run.seed * MOST_BATCHES + pair * run.workers + run.rank
        return Request(number, max(1, sequences // run.workers), frames, run.width, run.height)

    def _batch_shape(self, share: float, pair: int) -> tuple[int, int]:
        """Sequences and frames of the batch of two steps, at this share of the run."""
        share = self.learned + (1 - self.learned) * share
        shapes = next(shapes for start, shapes in reversed(CURRICULUM) if share >= start)
        sequences, frames = shapes[np.random.default_rng([pair, 0]).integers(len(shapes))]
        tokens = self.model.config.tokens_per_frame(self.run.height, self.run.width)
        most = min(MOST_TOKENS // tokens, MOST_TRACKED if self.run.tracks else frames)
        return self.run.batch * sequences, max(2, min(frames, most))

    def _budget(self) -> Budget | None:
        rng = np.random.default_rng([self.step, 1])
        if self.run.bidirectional:
            return None
        return Budget(int(rng.integers(*BUDGETS)), self.step) if rng.random() < BOUNDED else None

    def losses(self, lessons: Sequence[Batch], budget: Budget | None = None) -> dict[str, Tensor]:
        """By name, the mean over what is said of the same images; budget: of what the global blocks see of the past."""
        if self.run.tracks:
            return track_losses(self.model, lessons[0], self.step)
        images = lessons[0].images
        chosen = self._chosen(images.shape[1])
        out = run(self.model, images, chosen, budget, causal=not self.run.bidirectional)
        each = [self._losses(out, lesson, chosen) for lesson in lessons]
        return {name: torch.stack([losses[name] for losses in each]).mean() for name in each[0]}

    def _losses(self, out: Output, lesson: Batch, chosen: Tensor) -> dict[str, Tensor]:
        predictions = out.predictions
        taught = None if lesson.confidence is None else lesson.confidence[:, chosen]
        matches = Matches(lesson, self.model.grid(lesson.images), self.model.config.patch_size, chosen)
        depth = (predictions.depth.float(), predictions.depth_confidence.float())
        losses = {
            "pose": pose_loss(predictions.pose_iterations, lesson.pose),
            "motion": motion_loss(predictions.pose, lesson.pose),
            "depth": depth_loss(*depth, lesson.depth[:, chosen], taught),
        }
        if predictions.points is not None and predictions.points_confidence is not None:
            points = (predictions.points.float(), predictions.points_confidence.float())
            losses["points"] = points_loss(*points, lesson.point_maps()[:, chosen], taught)
        return losses | self.supervision.losses(lesson, matches, out.encoded, out.attention, out.taps)

    def _average_gradients(self) -> None:
        """Of all workers, who so also learn that one of them is to stop."""
        if self.run.workers == 1:
            self.stopped = self.stop
            return
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([float(self.stop)], device=self.run.device)])
        dist.all_reduce(flat)
        *shares, stop = (flat / self.run.workers).split([*(g.numel() for g in gradients), 1])
        for gradient, share in zip(gradients, shares, strict=True):
            gradient.copy_(share.view_as(gradient))
        self.stopped = stop.item() > 0

    def _chosen(self, frames: int) -> Tensor:
        """The frames on which the dense heads run."""
        generator = torch.Generator().manual_seed(self.step)
        return torch.randperm(frames, generator=generator)[: -(-frames // DENSE)].sort().values.to(self.run.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors on what is never trained on, in the first frame's scale and pose, without alignment."""
        found = []
        for lesson in self.lessons.held_out():
            if self.run.tracks:
                found.append(errors_of_tracks(self.averaged, lesson))
                continue
            everything = torch.arange(lesson.images.shape[1], device=self.run.device)
            out = run(self.averaged, lesson.images, everything, causal=not self.run.bidirectional)
            found.append(errors(out.predictions.depth, out.predictions.pose, lesson))
        return {name: float(np.mean([errors[name] for errors in found])) for name in found[0]}

    def save(self) -> None:
        """Writes the checkpoint; a crash in the middle leaves the one before."""
        state = {
            "model": self.averaged.state_dict(),  # what is taken for the weights where others load this file
            "n_averaged": self.average.n_averaged,
            "latest": self.model.state_dict(),
            "supervision": self.supervision.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "settings": self.run.settings(),
        }
        partial = self.run.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        os.replace(partial, self.run.checkpoint)

    def _start_from(self, path: Path) -> bool:
        """Loads the weights, and of another run the training-only heads; whether a track head is among them."""
        has_tracks = _load_known(self.model, path)
        heads = read_checkpoint(path).get("supervision", {})
        if _shapes(heads) == _shapes(self.supervision.state_dict()):
            self.supervision.load_state_dict(heads)
        elif heads:
            log.warning("%s: its training-only heads are of another version, and begin anew", path)
        return has_tracks

    def _load(self) -> None:
        state = torch.load(self.run.checkpoint, map_location=self.run.device, weights_only=True)
        before = state.get("settings", {})
        if not {"latest", "n_averaged"} <= state.keys() or not self.run.settings().keys() <= before.keys():
            raise ValueError(
                f"{self.run.checkpoint} is of an earlier version: begin another --output with --init and this file"
            )
        pairs = ((name, before[name], given) for name, given in self.run.settings().items())
        begun = ", ".join(f"{name} {old}, not {given}" for name, old, given in pairs if old != given)
        if begun:
            raise ValueError(f"the run in {self.run.folder} was begun with {begun}: give the same, or another --output")
        self.model.load_state_dict(state["latest"])
        self.averaged.load_state_dict(state["model"])
        self.average.n_averaged.copy_(state["n_averaged"])
        self.supervision.load_state_dict(state["supervision"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def _parameters(self) -> list[nn.Parameter]:
        return [p for part in (self.model, self.supervision) for p in part.parameters() if p.requires_grad]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _write_curves(self, losses: dict[str, float]) -> None:
        if not self.step % LOG_EVERY:
            self._log("losses.csv", losses)
        if not self.step % VALIDATE_EVERY:
            self._log("validation.csv", self.validate())

    def _log(self, name: str, row: dict[str, float]) -> None:
        path = self.run.folder / name
        row = {"step": self.step, "seconds": round(self.seconds, 1)} | {k: round(v, 5) for k, v in row.items()}
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)


def _load_known(model: StreamVGGT, path: Path) -> bool:
    """Loads all weights but the track head's, which start anew where the file has none; whether it has them."""
    head = model.track_head
    try:
        load_weights(model, path, lambda name: torch.float32, "cpu")
        return head is not None
    except DoesNotFit as error:
        model.track_head = None
        if not error.would_fit(model.state_dict()):
            raise
        load_weights(model, path, lambda name: torch.float32, "cpu")
        model.track_head = head
        return False


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def export(model: StreamVGGT, path: Path) -> None:
    """The weights alone, in float16, as a safetensors file that the ordinary model loads."""
    path.write_bytes(save({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}))
