# SPDX-License-Identifier: Apache-2.0
"""Parity with the published code: `python test/parity.py DIR` runs every golden case found below DIR.

One line per case: its worst error max |a - b| / (1 + |b|) and the tolerance, or why it is skipped. Exits with 1
if one misses or none is found. A golden set is config.json, weights.safetensors and cases.json in one folder;
units.safetensors and preprocess/index.json may lie anywhere.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from support.published_images import load_images
from torch import Tensor

from xsvggt_ros import geometry
from xsvggt_ros.cache import CacheShape, KVCache
from xsvggt_ros.cache.policies import PastTokens, make_policy
from xsvggt_ros.cache.policies.xstream import query_summary
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.model.attention import sdpa
from xsvggt_ros.model.blocks import Rope, rope_table
from xsvggt_ros.model.camera_head import activate_pose
from xsvggt_ros.model.config import DPTConfig, ModelConfig, TrackConfig, TransformerConfig
from xsvggt_ros.model.dpt_head import Fusion, enlarge, uv_embedding
from xsvggt_ros.model.encoder import resize_positions
from xsvggt_ros.model.streamvggt import Predictions, StreamVGGT, inverse_log
from xsvggt_ros.model.weights import load_weights
from xsvggt_ros.stream import cache_shape

FLOAT32 = 1e-5
TRACK = 1e-3
ONE_SIDED = 0.1  # of the published squared error, where a group's values have one sign
PUBLISHED_SPECIALS = 5  # tokens of a frame that are not patches, where no config.json says how many
PUBLISHED_GROUP = 64  # tokens that share a key channel's scale in the published scheme
CPU = torch.device("cpu")
UNLIMITED = CacheConfig(policy="full", key_bits=16, value_bits=16, camera_window=0)
HALF_A_PIXEL = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # to the published principal point, see decode_pose

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Check:
    """One comparison. Kept tokens count the differences; a quantiser's tolerance is the published one's error."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    @property
    def severity(self) -> tuple[bool, float]:
        return not self.ok, self.error / self.tolerance if self.tolerance else 0.0


@dataclass(frozen=True)
class Case:
    """What came of one case: its checks or, if there are none, why it was skipped."""

    name: str
    checks: list[Check]
    skipped: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.skipped) or (bool(self.checks) and all(check.ok for check in self.checks))

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name:44}  skipped: {self.skipped}"
        if not self.checks:
            return f"{self.name:44}  FAIL: nothing in it to compare"
        worst = max(self.checks, key=lambda check: check.severity)
        verdict = "ok" if self.ok else "FAIL"
        return f"{self.name:44} {worst.error:8.1e} of {worst.tolerance:7.1e}  {verdict:4}  {worst.name}"


def close(name: str, ours: Tensor, golden: Tensor, tolerance: float = FLOAT32) -> Check:
    ours, golden = ours.double(), golden.double()
    return Check(name, ((ours.reshape(golden.shape) - golden).abs() / (1 + golden.abs())).max().item(), tolerance)


def same_ids(name: str, ours: Tensor, golden: Tensor) -> Check:
    differing = set(ours.tolist()) ^ set(golden[golden >= 0].tolist())
    return Check(name, len(differing), 0)


# --- whole networks ---------------------------------------------------------------------------------


def model_config(sizes: dict) -> ModelConfig:
    """The sizes in a golden set's config.json."""
    encoder, camera, dpt = (sizes[name] for name in ("patch_embed", "camera_head", "dpt_head"))
    return ModelConfig(
        image_size=sizes["img_size"],
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        mlp_ratio=sizes["mlp_ratio"],
        patch_size=sizes["patch_size"],
        registers=sizes["num_register_tokens"],
        rope_base=sizes["rope_freq"],
        encoder=TransformerConfig(encoder["depth"], encoder["num_heads"], encoder["mlp_ratio"]),
        camera=TransformerConfig(camera["trunk_depth"], camera["num_heads"], camera["mlp_ratio"]),
        dpt=DPTConfig(dpt["features"], tuple(dpt["out_channels"])),
        taps=tuple(dpt["intermediate_layer_idx"]),
        track=track_config(sizes["track_head"]),
    )


def track_config(sizes: dict | None) -> TrackConfig | None:
    """None: the set was made without a tracker."""
    if sizes is None:
        return None
    return TrackConfig(
        features=sizes["features"],
        out_channels=tuple(sizes["out_channels"]),
        iterations=sizes["iters"],
        corr_levels=sizes["corr_levels"],
        corr_radius=sizes["corr_radius"],
        width=sizes["hidden_size"],
    )


class GoldenSet:
    """A folder of goldens and the network that they were made with."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cases = json.loads((folder / "cases.json").read_text())
        self.inputs = load_file(folder / "inputs.safetensors")
        with torch.device("meta"):
            self.model = StreamVGGT(model_config(json.loads((folder / "config.json").read_text())))
        load_weights(self.model, folder / "weights.safetensors", lambda name: torch.float32, CPU)
        self.model.eval()

    def run(self, name: str) -> Case:
        """One of `cases_of(folder)`."""
        kind = name.split("_")[0]
        if kind == "steps":
            return self._steps(self.folder / f"{name}.safetensors")
        if name.startswith("track_stream"):
            return self._skip(name, "returns the query itself in every frame: a known defect of the published code")
        if name.startswith("quant_kcvt"):
            return self._skip(name, self._quantised(name))
        if self.cases[name].get("camera_pruned") == "True":
            return self._skip(name, "pruning the camera head's cache by score is not offered; it has a window")
        if kind == "track" and not self.model.track_head:
            return self._skip(name, "the set's config.json has no tracker")
        if kind in ("full", "track"):
            return self._whole(name)
        if kind in ("stream", "prune", "slide"):
            return self._streamed(name)
        return self._skip(name, "no such kind of case")

    def _skip(self, name: str, reason: str) -> Case:
        return Case(f"{self.folder.name}/{name}", [], reason)

    def _done(self, name: str, checks: list[Check]) -> Case:
        return Case(f"{self.folder.name}/{name}", checks)

    def _golden(self, name: str) -> Arrays:
        return load_file(self.folder / f"{name}.safetensors")

    def _images(self, name: str) -> Tensor:
        """The frames of a case, [B, S, 3, H, W] in [0, 1]."""
        usual = next(key for key in self.inputs if re.fullmatch(r"frames\d+", key))
        own = f"frames_{name.split('_')[-1]}"
        frames = self.inputs[own if own in self.inputs else usual][: self.cases[name]["frames"]]
        if frames.ndim == 4:
            frames = frames[:, None]  # [S, B, H, W, 3]
        return frames.permute(1, 0, 4, 2, 3).float() / 255

    def _whole(self, name: str) -> Case:
        golden, images = self._golden(name), self._images(name)
        seen: Arrays = {}
        hooks = [
            self.model.aggregator.patch_embed.register_forward_hook(lambda *a: seen.update(patches=a[-1])),
            self.model.aggregator.register_forward_hook(lambda *a: seen.update(taps=torch.stack(a[-1]))),
        ]
        query_points = self.inputs["query_points"] if name.startswith("track") else None
        predictions = self.model(images, causal=not name.startswith("full_bidir"), query_points=query_points)
        for hook in hooks:
            hook.remove()
        checks = compare(frame_arrays(predictions), golden)
        if "agg_tokens" in golden:
            checks += self._tokens(seen["patches"], seen["taps"][:, 0], golden)
        if query_points is not None:
            ours = {
                "track": predictions.tracks,
                "vis": predictions.visibility,
                "track_conf": predictions.track_confidence,
            }
            checks += [close(array, x, golden[array], TRACK) for array, x in ours.items()]
        return self._done(name, checks)

    def _tokens(self, patches: Tensor, taps: Tensor, golden: Arrays) -> list[Check]:
        """Tokens inside the network; large sets store the first and last pair, and three frames."""

        def stored(count: int, total: int, some: list[int]) -> list[int]:
            return list(range(total)) if count == total else some

        depth, frames = self.model.config.depth, patches.shape[0]
        shown = stored(golden["patch_tokens"].shape[0], frames, [0, 1, 5])
        checks = [close("patch_tokens", patches[shown], golden["patch_tokens"])]
        pairs = stored(golden["agg_tokens"].shape[0], depth, [0, depth - 1])
        shown = stored(golden["agg_tokens"].shape[1], frames, [0, 1, 5])
        for tap, tokens in zip(self.model.config.taps, taps, strict=True):
            if tap in pairs:
                checks.append(close(f"agg_tokens {tap}", tokens[shown], golden["agg_tokens"][pairs.index(tap)]))
        return checks

    def _streamed(self, name: str) -> Case:
        golden = self._golden(name)
        ours, kept = self._stream(name, self._cache_config(name))
        checks = compare(ours, golden)
        if "kept_global" in golden:
            for (layer, t), ids in kept.items():
                checks.append(same_ids(f"kept ids, layer {layer}, frame {t}", ids, golden["kept_global"][layer, t]))
        return self._done(name, checks)

    def _stream(self, name: str, config: CacheConfig) -> tuple[Arrays, dict[tuple[int, int], Tensor]]:
        """The frames of a case one by one, and the tokens cached per (layer, frame)."""
        images = self._images(name)[0]
        rows, columns = self.model.grid(images)
        patch = self.model.config.patch_size
        shape = cache_shape(self.model.config, patch * rows, patch * columns, torch.float32, torch.float32)
        cache = KVCache(shape, config, CPU, sdpa, sdpa)
        steps, kept = [], {}
        for t, image in enumerate(images):
            steps.append(frame_arrays(self.model.step(image[None], cache)))
            cache.end_frames(1)
            kept |= {(layer, t): cache.token_ids(layer) for layer in range(self.model.config.depth)}
        return {array: torch.cat([step[array] for step in steps]) for array in steps[0]}, kept

    def _cache_config(self, name: str, bits: int = 16) -> CacheConfig:
        case = self.cases[name]
        if name.startswith("stream"):
            return UNLIMITED
        return CacheConfig(
            policy="sliding_window" if name.startswith("slide") else "xstream",
            budget_tokens=int(case["cache_size"]),
            query_pool=int(case.get("pool_size", 1)),
            pin_first_frame=False,
            key_bits=bits,
            value_bits=bits,
            camera_window=0,
        )

    def _quantised(self, name: str) -> str:
        """How far 4 bits move depth, here and in the published code, both from the run without quantisation."""
        golden = self._golden(name)
        dense = golden["dense_frames"].long()
        exact, packed = (self._stream(name, self._cache_config(name, bits))[0]["depth"][dense, 0] for bits in (16, 4))
        ours, published = close("", packed, exact).error, close("", golden["depth"], exact).error
        return f"quantises otherwise than published; 4 bits move depth by {ours:.1e}, published {published:.1e}"

    # --- single attention steps ---

    def _steps(self, path: Path) -> Case:
        arrays = load_file(path)
        checks = []
        for step in sorted({key.rpartition(".")[0] for key in arrays}):
            golden = {key.rpartition(".")[2]: x for key, x in arrays.items() if key.startswith(step + ".")}
            for check in self._step(path.stem.removeprefix("steps_"), int(step.split(".")[0]), golden):
                checks.append(replace(check, name=f"{step} {check.name}"))
        return self._done(path.stem, checks)

    def _step(self, case: str, layer: int, golden: Arrays) -> list[Check]:
        """Attention of one new frame to a given past, and what the cache then keeps."""
        past_k, past_v = token_major(golden["past_k"]), token_major(golden["past_v"])
        rope = rope_of(golden["pos"], past_k.shape[-1], self.model.config.rope_base)
        q, k, v = self.model.aggregator.global_blocks[layer].attn.project(golden["x"][None], rope)
        checks = [close(name, x[0], token_major(golden[name])) for name, x in (("q", q), ("k", k), ("v", v))]
        cache, fillers = filled(past_k, past_v, q.shape[1], self.model.config.specials, self._cache_config(case))
        checks.append(close("attn_out", cache.attend(0, q, k, v).flatten(2), golden["attn_out"]))
        if not case.startswith("prune"):
            return checks + quantised_step(golden)
        cache.end_frames(1)
        kept_k, kept_v = stored(cache)
        # What is kept, in whatever order: seen through attention, which does not depend on it.
        seen = sdpa(q, kept_k[None], kept_v[None])
        expected = sdpa(q, token_major(golden["new_k"])[None], token_major(golden["new_v"])[None])
        # The fillers that the cache was given, and has dropped, came before the newest frame of the past.
        ids = golden["keep_idx"] + fillers * (golden["keep_idx"] >= past_k.shape[0] - q.shape[1])
        return [*checks, close("kept keys and values", seen, expected), same_ids("kept ids", cache.token_ids(0), ids)]


def frame_arrays(p: Predictions) -> Arrays:
    """A forward pass under the goldens' names, the frames first, then the batch."""
    poses = p.pose_iterations.permute(2, 0, 1, 3)  # [S, 4, B, 9]
    dense = {"depth": p.depth, "depth_conf": p.depth_confidence, "conf": p.points_confidence, "world_points": p.points}
    return {"pose_iters_f64": poses, "pose_enc_f64": poses[:, -1]} | {
        name: x.transpose(0, 1) for name, x in dense.items()
    }


def compare(ours: Arrays, golden: Arrays) -> list[Check]:
    """Poses and mean values of all frames, and the maps of the frames whose maps are stored."""
    checks = []
    for name, x in ours.items():
        if name.startswith("pose"):
            checks.append(close(name, x, golden[name]))
            continue
        means = x.double().flatten(2).mean(2)  # [S, B]
        checks.append(close(name, x[golden["dense_frames"].long()], golden[name]))
        checks.append(close(f"{name} frame mean", means, golden[f"{name}_frame_mean_f64"]))
    return checks


def token_major(x: Tensor) -> Tensor:
    """[heads, T, d] -> [T, heads, d]."""
    return x.transpose(0, 1)


def rope_of(positions: Tensor, dim: int, base: float, dtype: torch.dtype = torch.float32) -> Rope:
    """The table for the positions [P, 2] of one frame: specials at (0, 0), patches from (1, 1)."""
    rows, columns = positions.amax(0).tolist()
    return rope_table((rows, columns), positions.shape[0] - rows * columns, dim, base, CPU, dtype)


def layer_shape(keys: Tensor, tokens_per_frame: int, specials: int = PUBLISHED_SPECIALS) -> CacheShape:
    """Of a cache for one layer with keys [T, heads, d]."""
    return CacheShape(
        layers=1,
        heads=keys.shape[1],
        head_dim=keys.shape[2],
        tokens_per_frame=tokens_per_frame,
        specials=specials,
        grid=(1, tokens_per_frame - specials),
        camera_blocks=1,
        camera_heads=1,
        camera_head_dim=1,
        camera_iterations=1,
        dtype=torch.float32,
        camera_dtype=torch.float32,
    )


def filled(keys: Tensor, values: Tensor, per_frame: int, specials: int, config: CacheConfig) -> tuple[KVCache, int]:
    """A cache of one layer that holds keys and values [T, heads, d], the first and last frame's at the ends.

    A cache takes whole frames only. Where T is none, the past was pruned to the budget before, and is again:
    fillers with the lowest score complete the middle. Also returns how many.
    """
    fillers = -keys.shape[0] % per_frame
    filler = torch.zeros(fillers, *keys.shape[1:])
    filler[..., 0] = -1e6
    end = keys.shape[0] - per_frame
    keys, values = (torch.cat([x[:end], filler, x[end:]]) for x in (keys, values))
    query = torch.zeros(per_frame, *keys.shape[1:])
    query[..., 0] = 1
    cache = KVCache(layer_shape(keys, per_frame, specials), config, CPU, sdpa, sdpa)
    for k, v in zip(keys.split(per_frame), values.split(per_frame), strict=True):
        cache.attend(0, query[None], k[None], v[None])
        cache.end_frames(1)
    return cache, fillers


# --- quantisation: not as published, but never worse --------------------------------------------------


def squared_error(x: Tensor, exact: Tensor) -> float:
    return (x - exact).double().square().mean().item()


def at_most(name: str, exact: Tensor, ours: Tensor, published: Tensor, factor: float = 1.0) -> Check:
    error = squared_error(ours, exact)
    return Check(f"{name}: squared error against published", error, factor * squared_error(published, exact))


def four_bits(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What the cache gives back of one frame's keys and values [T, heads, d]."""
    config = CacheConfig(policy="full", key_bits=4, value_bits=4, quantizer="channel")
    cache = KVCache(layer_shape(keys, keys.shape[0]), config, CPU, sdpa, sdpa)
    cache.attend(0, keys[None], keys[None], values[None])
    return stored(cache)


def stored(cache: KVCache) -> tuple[Tensor, Tensor]:
    """Keys and values [T, heads, d] of a cache of one layer."""
    shape, (store,) = cache.shape, cache.layers
    out = torch.zeros(2, store.tokens, shape.heads, shape.head_dim)
    store.read(out)
    return out[0], out[1]


def quantised_step(golden: Arrays) -> list[Check]:
    """The new frame's keys and values, quantised as they enter; the past is not quantised again."""
    k, v, new_k, new_v = (token_major(golden[name]) for name in ("k", "v", "new_k", "new_v"))
    keys, values = four_bits(k, v)
    return [at_most("k", k, keys, new_k[-k.shape[0] :]), at_most("v", v, values, new_v[-v.shape[0] :])]


def quantisation(u: Arrays) -> list[Check]:
    k, v, published_k, repeated_k, published_v = (
        token_major(u[name]) for name in ("q_k", "q_v", "q_k_perchannel", "q_k_perchannel_x5", "q_v_pertoken")
    )
    keys, values = four_bits(k, v)
    one_sided = torch.cat([((g.amin(0) > 0) | (g.amax(0) < 0)).expand_as(g) for g in k.split(PUBLISHED_GROUP)])
    return [
        at_most("k", k, keys, published_k),
        at_most("k after five steps", k, keys, repeated_k),
        at_most("k, groups of one sign", k[one_sided], keys[one_sided], published_k[one_sided], ONE_SIDED),
        at_most("v", v, values, published_v),
    ]


# --- single functions ---------------------------------------------------------------------------------


def rope(u: Arrays) -> list[Check]:
    checks = []
    for dim in (64, 32):
        turned = rope_of(u["rope_pos"], dim, 100.0, torch.float64)(token_major(u[f"rope{dim}_in"]))
        checks.append(close(f"rope{dim}", turned, token_major(u[f"rope{dim}_out"])))
    return checks


def position_table(u: Arrays) -> list[Check]:
    grids = [(name, tuple(map(int, size))) for name in u for size in re.findall(r"^posemb_(\d+)x(\d+)$", name)]
    return [close(name, resize_positions(u["posemb_table"][None], grid)[0], u[name]) for name, grid in grids]


def uv(u: Arrays) -> list[Check]:
    checks = []
    for name in u:
        for rows, columns, width, height in re.findall(r"^uvemb_(\d+)x(\d+)_W(\d+)_H(\d+)$", name):
            sizes = (int(rows), int(columns), u[name].shape[-1])
            of_column, of_row = uv_embedding(*sizes, int(width) / int(height), CPU, torch.float32)
            table = of_column + of_row
            checks.append(close(name, table[0].permute(1, 2, 0), u[name]))
    return checks


def fusion(u: Arrays) -> list[Check]:
    block = Fusion(u["fusion_in0"].shape[1]).double()
    block.load_state_dict({name.removeprefix("fusion."): x for name, x in u.items() if name.startswith("fusion.")})
    goldens = [u["fusion_out_size7x9"], u["fusion_out_x2"]]
    return [close("fusion", block(u["fusion_in0"], u["fusion_in1"], g.shape[-2:]), g) for g in goldens]


def interpolation(u: Arrays) -> list[Check]:
    return [close("bilinear", enlarge(u["interp_in"], (7, 11)), u["interp_out_7x11"])]


def activations(u: Arrays) -> list[Check]:
    points = inverse_log(u["act_in"].movedim(1, -1)[..., :3])
    return [
        close("points", points, u["act_invlog_pts"]),
        close("pose", activate_pose(u["pose_act_in"]), u["pose_act_out"]),
    ]


def poses(u: Arrays) -> list[Check]:
    checks = []
    for i, pose in enumerate(u["pose_enc"].numpy()):
        T, intrinsics = geometry.decode_pose(pose, 392, 518)
        found = {
            "pose_extrinsic": T[:3],
            "pose_intrinsic_392x518": intrinsics + HALF_A_PIXEL,
            "pose_enc_back": geometry.encode_pose(T, intrinsics, 392, 518),
            "pose_inv_extrinsic": geometry.inverse(T),
        }
        checks += [close(f"{name} {i}", torch.from_numpy(x), u[name][i]) for name, x in found.items()]
    return checks


def unprojection(u: Arrays) -> list[Check]:
    checks = []
    for i, depth in enumerate(u["unproj_depth"][..., 0].numpy()):
        extrinsic, intrinsics = (u[name][i].double().numpy() for name in ("unproj_extrinsic", "unproj_intrinsic"))
        T_world_cam = geometry.inverse(geometry.rigid(extrinsic[:, :3], extrinsic[:, 3]))
        points = geometry.transform(T_world_cam, geometry.unproject(depth, intrinsics))
        checks.append(close(f"points {i}", torch.from_numpy(points), u["unproj_points"][i]))
    return checks


def pruning(u: Arrays) -> list[Check]:
    checks = []
    for name in sorted({key.rpartition(".")[0] for key in u if key.startswith("prune_")}):
        new, total, budget, pool = map(int, re.findall(r"\d+", name))
        config = CacheConfig(policy="xstream", budget_tokens=budget, query_pool=pool)
        q, k = token_major(u[f"{name}.q"]), token_major(u[f"{name}.k"])
        policy = make_policy(config, layer_shape(k, new))
        # Frame 0, the middle as frame 1, and the newest frame 2.
        frame = torch.tensor([0] * new + [1] * (total - 2 * new) + [2] * new, dtype=torch.int32)[:, None]
        evidence = {"query": query_summary(q, PUBLISHED_SPECIALS, pool)}
        past = PastTokens(
            frame, torch.arange(total)[:, None], k, 2, tokens_per_frame=new, budget=budget, evidence=evidence
        )
        scores = policy.scores(past)[:, 0]
        if f"{name}.scores" in u:
            checks.append(close(f"{name} scores", scores[new:-new], u[f"{name}.scores"]))
        kept = scores.topk(max(budget, policy.floor())).indices
        checks.append(same_ids(f"{name} kept", kept, u[f"{name}.keep"]))
    return checks


UNITS = (rope, position_table, uv, fusion, interpolation, activations, poses, unprojection, quantisation, pruning)
NO_FUNCTION = {
    "uvgrid": "no function of its own, see uv",
    "act_exp": "exp in StreamVGGT.forward, no function of its own; see full_*",
}


def run_unit(path: Path, unit: Callable[[Arrays], list[Check]], name: str) -> Case:
    return Case(name, unit(load_file(path)))


def preprocessing(index: Path, image_set: str, name: str) -> Case:
    case = json.loads(index.read_text())[image_set]
    ours = load_images([Image.open(index.parent / image) for image in case["inputs"]], mode=case["mode"])
    golden = np.stack([np.asarray(Image.open(index.parent / image)) for image in case["outputs"]])
    difference = np.abs(ours.astype(int) - golden).max() if ours.shape == golden.shape else np.inf
    return Case(name, [Check("8-bit values", float(difference), 0)])


def cases_of(folder: Path) -> list[str]:
    """The names of a golden set's cases; nothing else of it is read."""
    steps = sorted(path.stem for path in folder.glob("steps_*.safetensors"))
    return [*json.loads((folder / "cases.json").read_text()), *steps]


@lru_cache(maxsize=1)
def golden_set(folder: Path) -> GoldenSet:
    return GoldenSet(folder)


def run_set(folder: Path, own: str, name: str) -> Case:
    return replace(golden_set(folder).run(own), name=name)


def plan(root: Path) -> dict[str, Callable[[], Case]]:
    """{name: what runs it} of every case below a folder, named by its path. Nothing is loaded before it is run."""
    found: dict[str, Callable[[], Case]] = {}

    def add(folder: Path, own: str, run: Callable[..., Case], *arguments) -> None:
        parts = folder.relative_to(root).parts or (folder.name,)
        name = "/".join([*parts, own])
        found[name] = partial(run, *arguments, name)

    for folder in sorted(path.parent for path in root.rglob("cases.json")):
        for own in cases_of(folder):
            add(folder, own, run_set, folder, own)
    for path in sorted(root.rglob("units.safetensors")):
        for unit in UNITS:
            add(path.with_name("units"), unit.__name__, run_unit, path, unit)
        for own, reason in NO_FUNCTION.items():
            add(path.with_name("units"), own, partial(Case, checks=[], skipped=reason))
    for path in sorted(root.rglob("preprocess/index.json")):
        for own in json.loads(path.read_text()):
            add(path.parent, own, preprocessing, path, own)
    return found


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compares this package with golden arrays of the published code.")
    parser.add_argument("folder", type=Path, help="everything below it is run")
    root = parser.parse_args(arguments).folder
    torch.set_num_threads(1)  # the networks are so small that more threads only wait for each other
    failed = found = 0
    for run in plan(root).values():
        case = run()
        print(case, flush=True)
        found += not case.skipped
        failed += not case.ok
    if not found:
        print(f"no golden case found below {root}")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
