# SPDX-License-Identifier: Apache-2.0
"""`xsvggt convert`: a checkpoint, however it was saved, as one plain safetensors file with the model's own names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model.checkpoint import read_checkpoint
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.model.loading import fitting, weights_path
from xsvggt_ros.model.weights import View, as_saved
from xsvggt_ros.tensor_file import write_tensors

SUFFIX = ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("source", metavar="SOURCE", help="what the setting `weights` takes: a file, a folder, hf://...")
    parser.add_argument("target", type=Path, metavar="TARGET", help=f"file to write, *{SUFFIX}")
    parser.add_argument("--model", required=True, choices=tuple(MODELS), help="which model's weights these are")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type to save them in (default: each as it is)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0. Raises ValueError or OSError, with the fix, for what cannot be read, does not fit, or is there."""
    if args.target.suffix != SUFFIX:
        raise ValueError(f"{args.target} must end with {SUFFIX}")
    if args.target.exists() or args.target.is_symlink():
        raise ValueError(f"{args.target} exists already: choose another name, or remove it")
    if not args.target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {args.target.parent}: make it first")
    source = weights_path(StreamConfig(weights=args.source, model=args.model))
    found = read_checkpoint(source)
    view = fitting(source, found, args.model)
    tensors = as_saved(source, view, args.dtype and getattr(torch, args.dtype))
    _write(tensors, args.target)
    print(f"{args.target}: {len(tensors)} tensors, {args.target.stat().st_size / 1e9:.2f} GB")
    if left_out := _left_out(found, view):
        print(f"left out: {left_out}")
    print("The weights keep the licence that they came with.")
    return 0


def _left_out(found: Mapping[str, Mapping[str, Tensor]], view: View) -> str:
    """How many tensors of which parts of a checkpoint were not taken; of shared ones, only those of other parts."""
    taken = set(map(id, view.tensors.values()))
    counts = {where or "the file": sum(id(t) not in taken for t in part.values()) for where, part in found.items()}
    return ", ".join(f"{n} tensors of {where}" for where, n in counts.items() if n)


def _write(tensors: dict[str, Tensor], target: Path) -> None:
    """All of it or nothing. Mapped tensors are written as they are read: they need no memory of their own."""
    part = target.with_name(f"{target.name}.part")
    try:
        write_tensors(lambda path: save_file(_apart(tensors), path, metadata={"format": "pt"}), part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that share memory with others, which the format does not know."""
    places: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return apart
