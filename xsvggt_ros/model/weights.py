# SPDX-License-Identifier: Apache-2.0
"""Strict, weights-only loading of a checkpoint into a model built on the meta device."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# What torch.load raises on bytes that are not what they should be.
DAMAGE = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError, struct.error,
)  # fmt: skip
SHOWN = 3  # tensors an error names before it only counts


def load_weights(
    model: nn.Module,
    path: str | Path,
    dtype: Callable[[str], torch.dtype],
    device: torch.device | str,
    expected: Mapping[str, Tensor] | None = None,
) -> None:
    """Gives `model` the tensors of a .pt, .pth or .safetensors file, as `dtype(name)` on `device`.

    The file holds a dict of tensors, or a training checkpoint with exactly one such dict in it. Its names and
    shapes must be those of `expected`, by default the model's own state dict. A model built without some heads
    passes the state dict of the full one (on the meta device): the file must then have those heads too, but they
    are not read. The file is memory-mapped and cast tensor by tensor: beside the result, at most one tensor is copied.

    Raises FileNotFoundError; ValueError for a file that is damaged, holds more than tensors, or does not fit.
    """
    path = Path(path)
    tensors = _mapped_tensors(path)
    own = model.state_dict()
    _check_fit(path, tensors, own if expected is None else expected)
    # Copied even where nothing is cast: a mapped tensor would change, or crash the process, with its file.
    loaded = {name: tensors[name].to(device, dtype(name), copy=True) for name in own}
    model.load_state_dict(loaded, assign=True)


def _mapped_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, none of them read yet."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}; check the setting `weights`")
    if path.suffix == ".safetensors":
        return _mapped_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return _state_dict(path, _mapped_checkpoint(path))
    raise ValueError(f"weights must be a .pt, .pth or .safetensors file, got {path}")


def _mapped_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); download or save it again") from error


def _mapped_checkpoint(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects, which may run code when loaded, so it was refused; "
            "keep only its tensors: torch.save(model.state_dict(), path)"
        ) from error
    except DAMAGE as error:
        raise ValueError(
            f"{path} is not a complete file of torch.save's zip format; download or save it again"
        ) from error


def _state_dict(path: Path, checkpoint: Any) -> dict[str, Tensor]:
    """The checkpoint itself or, if it is a training checkpoint, the only dict of tensors in it."""
    inside = checkpoint if isinstance(checkpoint, dict) else {}
    found = [part for part in (checkpoint, *inside.values()) if _is_state_dict(part)]
    if len(found) != 1:
        raise ValueError(
            f"{path} must hold one dict of tensors, but {len(found)} were found among {sorted(map(str, inside))}; "
            "save the one to load alone: torch.save(model.state_dict(), path)"
        )
    return found[0]


def _is_state_dict(part: Any) -> bool:
    return isinstance(part, dict) and bool(part) and all(isinstance(tensor, Tensor) for tensor in part.values())


def _check_fit(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    faults = [_summary(kind, names) for kind, names in kinds.items() if names]
    if faults:
        raise ValueError(f"{path} does not fit the model: {'; '.join(faults)}. Check the setting `model`")


def _summary(kind: str, names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} tensors {kind} ({', '.join(names[:SHOWN])}{more})"
