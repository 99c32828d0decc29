# SPDX-License-Identifier: Apache-2.0
"""Strict loading of a checkpoint into a model built on the meta device."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from xsvggt_ros.model.checkpoint import read_checkpoint

SHOWN = 3  # tensors an error names before it only counts
# Keys and prefixes that say no more than that these are the weights; "ema", "teacher" or "loss" say something else.
PLAIN = {"", "model", "state_dict", "model_state_dict", "module", "network", "net", "params", "_orig_mod"}

log = logging.getLogger(__name__)


class DoesNotFit(ValueError):
    """A checkpoint's names or shapes are not those that a model has."""

    def __init__(self, text: str, found: Mapping[str, Mapping[str, Tensor]]):
        super().__init__(text)
        self._found = found

    def would_fit(self, expected: Mapping[str, Tensor]) -> bool:
        """Whether a model of that state dict has these names and shapes."""
        return any(not any(_faults(view.tensors, expected).values()) for view in _views(self._found, expected))


@dataclass(frozen=True)
class View:
    """Some of a checkpoint's tensors, by their names without a prefix."""

    where: str  # keys that lead to the dict they are in, joined by dots
    prefix: str  # taken off their names; ends with a dot, if it is not empty
    tensors: Mapping[str, Tensor]
    others: list[str]  # names in that dict without the prefix, which are left out

    @property
    def name(self) -> str:
        return ".".join(filter(None, (self.where, self.prefix.rstrip("."))))

    @property
    def plain(self) -> bool:
        return PLAIN.issuperset(self.name.split("."))


def load_weights(
    model: nn.Module,
    path: str | Path,
    dtype: Callable[[str], torch.dtype],
    device: torch.device | str,
    expected: Mapping[str, Tensor] | None = None,
) -> None:
    """Gives `model` the tensors of a checkpoint, see `read_checkpoint`, as `dtype(name)` on `device`.

    Their names and shapes must be those of `expected`, by default the model's own state dict; a prefix like `module.`
    before all names is taken off. A model built without some heads passes the state dict of the full one (on the meta
    device): the file must then have those heads too, but they are not read. What the file has several of is told apart
    by name: what is called the model is taken, not, say, `ema`. The file is memory-mapped and cast tensor by tensor:
    beside the result, at most one tensor is copied (files of torch before 1.6 are read whole).

    Raises FileNotFoundError; DoesNotFit; ValueError for a file that is damaged, holds something else than tensors, or
    tensors that are no finite floating-point numbers.
    """
    path = Path(path)
    view = chosen(path, read_checkpoint(path), model.state_dict() if expected is None else expected)
    give(model, path, view, dtype, device, assign)


def give(
    model: nn.Module,
    path: Path,
    view: View,
    dtype: Callable[[str], torch.dtype],
    device: torch.device | str,
    keep: Callable[[nn.Module, str, Tensor], None],
) -> None:
    """Gives `model` its tensors of those that were chosen from a checkpoint, as `dtype(name)` on `device`.

    What becomes of a tensor is up to `keep`, for example `assign`. Raises ValueError for a tensor of no finite
    floating-point numbers.
    """
    own = model.state_dict()
    for name in (name for name in view.tensors if name in own):  # in the file's order, which the disk reads ahead
        keep(model, name, _cast(f"{path}: tensor {name}", view.tensors[name], dtype(name), device))


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """The tensor becomes the model's of that name."""
    owner, _, own = name.rpartition(".")
    model.get_submodule(owner).load_state_dict({own: tensor}, strict=False, assign=True)


def as_saved(path: Path, view: View, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors that were chosen, to be saved: as `dtype`, or as they are (mapped, not copied; float8 as float16).

    Raises ValueError for a tensor of no finite floating-point numbers.
    """

    def checked(name: str, tensor: Tensor) -> Tensor:
        wanted = dtype or (tensor.dtype if tensor.itemsize > 1 else torch.float16)
        cast = _cast(f"{path}: tensor {name}", tensor, wanted, "cpu")
        return tensor if tensor.dtype == wanted and tensor.is_contiguous() else cast.contiguous()

    return {name: checked(name, tensor) for name, tensor in view.tensors.items()}


def chosen(path: Path, found: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor]) -> View:
    """The tensors of a checkpoint that fit; logs what was done to make them fit.

    Raises DoesNotFit; ValueError if several do, and none is called the model.
    """
    views = list(_views(found, expected))
    fitting = [view for view in views if not any(_faults(view.tensors, expected).values())]
    if not fitting:
        best = max(views, key=lambda view: len(expected.keys() & view.tensors.keys()))
        faults = "; ".join(_summary(kind, names) for kind, names in _faults(best.tensors, expected).items() if names)
        raise DoesNotFit(f"{path} does not fit the model: {faults}", found)
    plain = [view for view in fitting if view.plain]
    if len(fitting) > 1:
        names = ", ".join(view.name or "the file itself" for view in fitting)
        if len(plain) != 1:
            raise ValueError(f"{path} has several weights that fit, {names}; save one alone: torch.save(it, path)")
        log.warning("%s has several weights that fit, %s; %s is taken, save another alone to use it", path, names,
                    plain[0].name)  # fmt: skip
    view = plain[0] if plain else fitting[0]
    _say(path, view)
    return view


def _views(found: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor]) -> Iterator[View]:
    """Each dict as it is, and without each prefix that stands before an expected name."""
    for where, tensors in found.items():
        cuts = ((name, cut) for name in tensors for cut in (i + 1 for i, letter in enumerate(name) if letter == "."))
        prefixes = Counter(name[:cut] for name, cut in cuts if name[cut:] in expected)
        for prefix in ("", *prefixes):
            view = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            yield View(where, prefix, view, [name for name in tensors if not name.startswith(prefix)])


def _say(path: Path, view: View) -> None:
    """What was done to a checkpoint to make it fit."""
    if view.prefix:
        log.warning("%s: the prefix `%s` is taken off the names of its tensors", path, view.prefix)
    if small := [name for name, t in view.tensors.items() if t.is_floating_point() and t.itemsize == 1]:
        log.warning("%s: %s: it keeps 2 or 3 bits of them, and no scale", path, _summary("in float8", small))
    if view.others:
        log.warning("%s: left out, %s", path, _summary(f"without `{view.prefix}`", view.others))


def _faults(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """{kind: names of the tensors that have it}."""
    both = [(name, tensors[name], tensor) for name, tensor in expected.items() if name in tensors]
    return {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {list(found.shape)} instead of {list(wanted.shape)}"
            for name, found, wanted in both
            if found.shape != wanted.shape
        ],
    }


def _summary(kind: str, names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} tensors {kind} ({', '.join(names[:SHOWN])}{more})"


def _cast(what: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A copy even where nothing is cast: a mapped tensor would change, or crash the process, with its file."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        kind = "on no device" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")
        raise ValueError(f"{what} is not of floating-point numbers ({kind}); save the model's weights unquantised")
    cast = tensor.to(device, dtype, copy=True)
    least, most = cast.aminmax()  # NaN if one is: a single pass, where isfinite().all() takes more time than the disk
    if not (least.isfinite() and most.isfinite()):
        if tensor.double().isfinite().all():
            raise ValueError(f"{what} is too large for {dtype}; set dtype to float32 or bfloat16".replace("torch.", ""))
        raise ValueError(f"{what} is NaN or infinite somewhere, its training has failed; take an earlier checkpoint")
    return cast
