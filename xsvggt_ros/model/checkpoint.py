# SPDX-License-Identifier: Apache-2.0
"""The tensors of a checkpoint, however it was saved: told by its content, memory-mapped, without running its code."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# What torch.load and zipfile raise on bytes that are not what they should be.
DAMAGE = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # of what is a checkpoint in a folder
USUAL = (  # names of the one checkpoint in a published folder, which others may lie beside
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip
BESIDE = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")  # what training keeps beside a checkpoint
DEPTH = 3  # of dicts in dicts that are searched
AGAIN = "download or save it again"
KEEP_TENSORS = "keep only its tensors: torch.save(model.state_dict(), path)"

# Data that people save beside weights. None of it is needed: stand-ins take its place, and nothing of it is run.
DATA = (
    "argparse.Namespace",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *("types.SimpleNamespace", "typing.Any"),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "frozenset", "range", "int", "float", "str", "bool")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "String", "Integer", "Float", "Boolean", "Path")),
)
CONTAINERS = {"collections.defaultdict": dict, "collections.deque": list}  # -> what takes its content

FOREIGN = {  # how a file begins -> what it is, and what to do
    b"version https://git-lfs": "a Git LFS pointer instead of the weights; run `git lfs pull` where it was cloned",
    b"<": "a web page instead of the weights; open it to see why, and download the file itself",
    **dict.fromkeys(
        (b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!"), "packed; unpack it"
    ),
    b"\x89HDF": "an HDF5 file; convert it to safetensors",
    b"GGUF": "a GGUF file, of another model; take the .safetensors or .pth of this one",
}


class _StandIn:
    """Instead of an object that is not needed."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str, **members: Any) -> Callable[..., Any]:
    module, _, name = name.rpartition(".")
    return type(name, (_StandIn,), {"__module__": module, **members})


def _container(name: str, kind: type) -> Callable[..., Any]:
    """Makes a plain one: torch.load fills no other, whatever its methods."""
    return _stand_in(name, __new__=lambda *_: kind())


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *map(_stand_in, DATA),
    *(_container(name, kind) for name, kind in CONTAINERS.items()),
]


def read_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """{where in the file: dict of tensors}, "" being the file itself; none of the tensors is read yet.

    A file of torch.save, zipped or of before 1.6 (which is read whole), or of safetensors; an index of shards; a folder
    with one of these. What is beside the tensors is left out.

    Raises FileNotFoundError, PermissionError, or ValueError for what is damaged or something else, saying what.
    """
    try:
        path = _located(path)
        if path.suffix == ".json":
            return {"": _shards(path)}
        content = _content(path)
    except PermissionError as error:
        raise PermissionError(
            f"{error.filename or path} may not be read by this user; change its permissions"
        ) from None
    found = dict(_state_dicts(content))
    if not found:
        keys = sorted(map(str, content))[:5] if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds no dict of tensors, but {keys}; {KEEP_TENSORS}")
    return found


# --- where it is ----------------------------------------------------------------------------------


def _located(path: Path) -> Path:
    """The file of a path that may be a folder with one."""
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return path
    if path.exists():
        raise ValueError(f"{path} is neither a file nor a folder; check the setting `weights`")
    if path.is_symlink():
        raise FileNotFoundError(f"{path} is a link to {path.readlink()}, which does not exist; check `weights`")
    raise FileNotFoundError(f"no weights file at {path}; {_absent(str(path))}")


def _absent(text: str) -> str:
    """What to do about a path that is not there."""
    if re.match(r"\w{2,}:/", text):
        return (
            "that is a URL: download it, and set `weights` to the path of the file, or to hf://OWNER/NAME or "
            "hf://OWNER/NAME/FILE for what a repository of huggingface.co has"
        )
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and Path(text).suffix.lower() not in SUFFIXES:
        return f"if that is a repository of huggingface.co: set `weights` to hf://{text}"
    return "check the setting `weights`: empty is what comes with the model, random is random numbers"


def _in_folder(folder: Path) -> Path:
    """The only checkpoint of a folder, or the one of the usual name."""
    return folder / the_checkpoint([path.name for path in folder.iterdir() if path.is_file()], str(folder))


def the_checkpoint(names: Collection[str], where: str) -> str:
    """Of the files of a folder the only checkpoint, or the one of the usual name.

    Raises ValueError, which lists them, if there are several; FileNotFoundError if there is none.
    """
    for name in USUAL:
        if name in names:
            return name
    found = [name for name in sorted(names) if is_checkpoint(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{where} has several checkpoints: set `weights` to one of {', '.join(found)}")
    raise FileNotFoundError(f"{where} has no checkpoint ({' '.join(SUFFIXES)}) in it; set `weights` to the file")


def is_checkpoint(name: str) -> bool:
    """Whether a file of that name may be one."""
    return name.lower().endswith(SUFFIXES) and not name.startswith((".", *BESIDE))


def shard_names(index: Path) -> list[str]:
    """The files that an index names, beside it. Raises ValueError if it is none."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards, which has a `weight_map` of files; {AGAIN}") from error
    return list(map(str, names))


def _shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    names = shard_names(index)
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names; {AGAIN}")
    parts = [dict(_state_dicts(_content(index.parent / name))) for name in names]
    return {name: tensor for part in parts for name, tensor in part.get("", {}).items()}


# --- what is in it --------------------------------------------------------------------------------


def _content(path: Path) -> Any:
    """Of a file, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[6:9] == b"\0\0{":  # after the length of a header in JSON, which may begin like the others
        return _safetensors(path)
    if head.startswith(b"PK"):
        _check_zip(path)
    if head.startswith((b"PK", b"\x80")):  # zipped or, by torch.save until 1.5, not
        return _unpickled(path)
    raise ValueError(f"{path} {_described(head)}")


def _described(head: bytes) -> str:
    """What a file is that begins like this, and what to do."""
    if not head:
        return f"is empty, not a complete checkpoint; {AGAIN}"
    for magic, kind in FOREIGN.items():
        if head.removeprefix(BOM_UTF8).lstrip().startswith(magic):
            return f"is {kind}"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it"
    if len(head) > 8 and head.isascii() and head.decode().replace("\n", " ").replace("\r", " ").isprintable():
        return f"is text ({head.decode().splitlines()[0][:80]!r}), not a checkpoint; {AGAIN}"
    return f"is not a complete checkpoint of torch or safetensors, judged by how it begins; {AGAIN}"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); {AGAIN}") from error


def _check_zip(path: Path) -> None:
    try:
        names = zipfile.ZipFile(path).namelist()
    except (*DAMAGE, NotImplementedError) as error:
        raise ValueError(f"{path} is not a complete file of torch.save, its end is missing; {AGAIN}") from error
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(f"{path} is a zip archive of something else ({', '.join(names[:3])}); unpack or convert it")
    if any("/code/" in name for name in names):
        raise ValueError(f"{path} is a TorchScript archive, which is a program; {KEEP_TENSORS}")


def _unpickled(path: Path) -> Any:
    mmap = zipfile.is_zipfile(path) and path.suffix.lower() != ".safetensors"  # a suffix that torch.load believes
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(STAND_INS):
            return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?<=GLOBAL )\S+|(?<=<class ')[^']+|operand \d+", str(error))
        objects = f"Python objects{f' ({named[0]})' if named else ''}"
        raise ValueError(
            f"{path} holds {objects}, which may run code when loaded, so it was refused; {KEEP_TENSORS}"
        ) from error
    except DAMAGE as error:
        raise ValueError(f"{path} is not a complete file of torch.save; {AGAIN}") from error


def _state_dicts(content: Any, where: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dicts of tensors in a dict, itself among them: (keys that lead to it, joined by dots; its tensors)."""
    if not isinstance(content, dict):
        return
    tensors = {name: item for name, item in content.items() if isinstance(name, str) and isinstance(item, Tensor)}
    if tensors:
        yield where, tensors
    for key, item in content.items() if depth else ():
        yield from _state_dicts(item, f"{where}.{key}".lstrip("."), depth - 1)
