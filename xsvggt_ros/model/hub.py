# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of huggingface.co, by the hub's own library: its cache, its tokens, its offline rules."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from xsvggt_ros.model.checkpoint import is_checkpoint, shard_names, the_checkpoint
from xsvggt_ros.model.licence import say_licence

HUB = "hf://"  # how such weights begin
WRITTEN = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.*[^/]))?/?")

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """What a repository is asked for."""

    written: str  # as the setting has it
    repository: str  # OWNER/NAME
    revision: str | None
    file: str | None  # None: the one checkpoint that there is

    def one_of(self, names: list[str]) -> str:
        """The file that is asked for. Raises ValueError or FileNotFoundError, which list what there is."""
        if self.file is None:
            return the_checkpoint([name for name in names if "/" not in name], self.written)
        if self.file in names:
            return self.file
        found = ", ".join(filter(is_checkpoint, names)) or "no checkpoint"
        raise FileNotFoundError(f"{self.repository} has no file {self.file}; it has {found}")


def download(weights: str) -> Path:
    """The checkpoint of `hf://OWNER/NAME[@REVISION][/FILE]`, or an index of shards with these beside it, in the cache.

    Without FILE it is the one that a folder with these files would give. Where the hub cannot be asked, what the cache
    has is taken. Says once which licence the repository's card names.

    Raises ValueError for what is written wrongly, refused or not there, FileNotFoundError for a file that is not there,
    OSError if it cannot be downloaded or kept; each with the remedy.
    """
    found = WRITTEN.fullmatch(weights)
    if not found:
        raise ValueError(f"weights: {weights} is not of the form hf://OWNER/NAME or hf://OWNER/NAME/FILE")
    place = Place(weights, *found.groups())
    hub = _library()
    with _explained(hub, place):
        try:
            there = hub.HfApi().model_info(place.repository, revision=place.revision)
        except (OSError, hub.errors.HTTPError) as error:
            return _cached(hub, place, error)
        names = [file.rfilename for file in there.siblings or []]
        path = _fetched(hub, place, place.one_of(names), names)
    licence = there.card_data and there.card_data.license
    say_licence(weights, f"{licence}, says its repository's card" if licence else "its repository's card names none")
    return path


def _library() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors, utils  # noqa: F401  # else it lacks them
    except ModuleNotFoundError:
        raise ValueError("weights from huggingface.co need its library: pip install huggingface_hub") from None
    utils.disable_progress_bars()  # a node has a log, and no terminal
    return huggingface_hub


def _fetched(hub: Any, place: Place, name: str, names: list[str]) -> Path:
    """A file of the repository, with the shards that it names if it is an index."""

    def fetch(name: str) -> Path:
        if not isinstance(hub.try_to_load_from_cache(place.repository, name, revision=place.revision), str):
            logger.warning("downloading %s of %s into %s", name, place.repository, hub.constants.HF_HUB_CACHE)
        return Path(hub.hf_hub_download(place.repository, name, revision=place.revision))

    path = fetch(name)
    if path.suffix == ".json":
        beside = [str(PurePosixPath(name).with_name(shard)) for shard in shard_names(path)]
        for shard in filter(names.__contains__, beside):  # read_checkpoint names those that are missing
            fetch(shard)
    return path


def _cached(hub: Any, place: Place, error: Exception) -> Path:
    """What the cache has, since the hub could not be asked; else raises that error."""
    try:
        folder = hub.snapshot_download(
            place.repository, revision=place.revision, local_files_only=True, allow_patterns=[]
        )
    except hub.errors.LocalEntryNotFoundError:
        raise error from None
    root = Path(folder)
    names = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
    try:
        path = root / place.one_of(names)
    except FileNotFoundError:
        raise error from None
    say_licence(place.written, f"see https://huggingface.co/{place.repository}")
    return path


@contextmanager
def _explained(hub: Any, place: Place) -> Iterator[None]:
    """Says of the library's errors what to do, in a line."""
    page = f"{hub.constants.ENDPOINT}/{place.repository}"
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError:
        raise ValueError(
            f"{place.written} is only for those who were given access: ask for it on {page}, then `hf auth login`, or "
            "set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{place.written}: there is no repository {page}, or it is private: check the name, or `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{place.written}: {page} has no revision {place.revision}") from None
    except errors.OfflineModeIsEnabled:
        raise FileNotFoundError(
            f"{place.written} is not in the cache ({hub.constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to "
            "download it: unset that once, or set HF_HOME to where it is"
        ) from None
    except errors.HFValidationError as error:
        raise ValueError(f"{place.written} is not the name of a repository: {error}") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:
        raise OSError(
            f"{place.written} could not be downloaded from {hub.constants.ENDPOINT} ({_first_line(error)}), and is not "
            "in the cache: check the network, or set HF_ENDPOINT to a mirror or `weights` to a file"
        ) from error
    except OSError as error:
        if error.errno is None:  # not the system's: it says what to do
            raise
        raise OSError(
            f"{place.written} cannot be kept in {hub.constants.HF_HUB_CACHE} ({error.strerror}): free space, or set "
            "HF_HOME to a folder that may be written"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
