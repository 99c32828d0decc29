# SPDX-License-Identifier: Apache-2.0
"""A map in a folder: keyframes.safetensors has all numbers, map.json says what they are. Nothing is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from xsvggt_ros.descriptor import CELLS, SIZE
from xsvggt_ros.segments.graph import Relations
from xsvggt_ros.segments.map import Keyframe, Map
from xsvggt_ros.similarity import Similarity
from xsvggt_ros.tensor_file import write_tensors

NUMBERS, ABOUT = "keyframes.safetensors", "map.json"
FORMAT = 1
CELL_COUNT = CELLS[0] * CELLS[1]
OFF = 1e-3  # by which a rotation may be none
LEAST = 1e-6  # of a scale, and 1 over the most
MOST_COUNT = 10**12  # of measurements


def save(map_: Map, folder: Path, fingerprint: str) -> None:
    """Writes the map of an encoder of that fingerprint. What the folder had before stays until all is written.

    Raises OSError if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keyframes = sorted(map_.keyframes.items())
    slots, pairs = [keyframe.slot for _, keyframe in keyframes], sorted(map_.relations.measured)
    place = {key: i for i, (key, _) in enumerate(keyframes)}
    arrays: dict[str, np.ndarray] = {
        "images": map_.slots.images[slots],
        "descriptors": map_.slots.descriptors(slots).astype(np.float16),
        "intrinsics": map_.slots.intrinsics[slots],
        "poses": _stacked([keyframe.S_map_key for _, keyframe in keyframes]),
        "pairs": np.reshape([[place[a], place[b]] for a, b in pairs], (-1, 2)).astype(np.int64),
        "relations": _stacked([map_.relations.measured[pair] for pair in pairs]),
        "counts": np.array([map_.relations.counts[pair] for pair in pairs], np.int64),
    }
    about = {"format": FORMAT, "encoder": fingerprint, "unit": "the model's, of the first keyframe; optical axes"}
    parts = [folder / f"{name}.part" for name in (NUMBERS, ABOUT)]
    write_tensors(lambda path: save_file(arrays, path), parts[0])
    parts[1].write_text(json.dumps(about, indent=1) + "\n")
    for part in parts:
        part.replace(part.with_suffix(""))


def load(folder: Path, fingerprint: str) -> Map:
    """The map that `save` wrote, with room for its keyframes and no others.

    Raises ValueError, with the reason and the remedy, for what is none, or of another encoder.
    """
    about, arrays = _read(folder)
    if about.get("format") != FORMAT:
        raise ValueError(f"{folder / ABOUT} is of format {about.get('format')!r}, and this version reads {FORMAT}")
    if about.get("encoder") != fingerprint:
        raise ValueError(
            f"the map in {folder} was made with another weight_bits or other weights: set those, or make a new map"
        )
    _check(folder, arrays)
    count = len(arrays["images"])
    map_ = Map(count, *arrays["images"].shape[1:3])
    poses, relations = _similarities(arrays["poses"]), _similarities(arrays["relations"])
    for i in range(count):
        map_.slots.put(i, arrays["images"][i], arrays["descriptors"][i], arrays["intrinsics"][i])
        map_.keyframes[i] = Keyframe(i, poses[i], used=0)
        map_.compare(i)
    map_.relations = Relations()
    for (a, b), relation, times in zip(arrays["pairs"].tolist(), relations, arrays["counts"].tolist(), strict=True):
        map_.relations.add(a, b, relation, times)
    map_.next_key = count
    return map_


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        about = json.loads((folder / ABOUT).read_text())
        arrays = load_file(folder / NUMBERS)
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        fix = "give a folder that ~/save_map wrote"
        raise ValueError(f"{folder} holds no map that can be read ({error}): {fix}") from error
    return about if isinstance(about, dict) else {}, arrays


def _check(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError where sizes, types or numbers cannot be a map's. Adds what older files do not have."""
    images, pairs = arrays.get("images"), arrays.get("pairs")
    if (
        images is None
        or images.ndim != 4
        or images.shape[-1] != 3
        or not images.size
        or pairs is None
        or pairs.ndim != 2
    ):
        raise ValueError(f"{folder / NUMBERS} is damaged: it has no images; make a new map")
    count = len(images)
    arrays.setdefault("counts", np.ones(len(pairs), np.int64))
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
        "images": (np.uint8, images.shape),
        "descriptors": (np.float16, (count, CELL_COUNT, SIZE)),
        "intrinsics": (np.float64, (count, 3, 3)),
        "poses": (np.float64, (count, 13)),
        "pairs": (np.int64, (len(pairs), 2)),
        "relations": (np.float64, (len(pairs), 13)),
        "counts": (np.int64, (len(pairs),)),
    }
    for name, (kind, shape) in wanted.items():
        x = arrays.get(name)
        if x is None or x.dtype != kind or x.shape != shape or not np.isfinite(x).all():
            raise ValueError(f"{folder / NUMBERS} is damaged: {name} should be {np.dtype(kind)} {list(shape)}")
    if (pairs[:, 0] >= pairs[:, 1]).any() or (pairs < 0).any() or (pairs >= count).any():
        raise ValueError(f"{folder / NUMBERS} is damaged: its relations are between none of its keyframes")
    if (arrays["counts"] < 1).any() or (arrays["counts"] > MOST_COUNT).any():
        raise ValueError(f"{folder / NUMBERS} is damaged: its relations were measured no such number of times")
    of_cameras = (arrays["intrinsics"][:, [0, 1], [0, 1]] > 0).all()
    if not (of_cameras and _are_similarities(arrays["poses"]) and _are_similarities(arrays["relations"])):
        raise ValueError(f"{folder / NUMBERS} is damaged: its numbers are not those of cameras")


def _are_similarities(numbers: np.ndarray) -> bool:
    """Whether [N, 13] are scales within reason and rotations."""
    scale, R = numbers[:, 0], numbers[:, 1:10].reshape(-1, 3, 3)
    near = np.abs(R @ np.swapaxes(R, 1, 2) - np.eye(3)).max(initial=0.0) < OFF
    return bool(near and (np.linalg.det(R) > 0).all() and (scale > LEAST).all() and (scale < 1 / LEAST).all())


def _stacked(of: list[Similarity]) -> np.ndarray:
    """[N, 13]: scale, rotation, translation."""
    return np.reshape([[s.scale, *s.rotation.ravel(), *s.translation] for s in of], (-1, 13)).astype(np.float64)


def _similarities(numbers: np.ndarray) -> list[Similarity]:
    return [Similarity(float(x[0]), x[1:10].reshape(3, 3), x[10:]) for x in numbers]
