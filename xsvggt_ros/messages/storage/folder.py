# SPDX-License-Identifier: Apache-2.0
"""A rosbag2 folder: which files are its parts, and what its metadata.yaml says of them.

That file is hand edited, lost and left behind by killed recorders, so nothing depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from ruamel.yaml import YAML, YAMLError

from xsvggt_ros.messages.storage import is_storage, without_zstd
from xsvggt_ros.natural_order import naturally_sorted

METADATA = "metadata.yaml"
# What reading a file makes of any text.
ERRORS = (YAMLError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Folder:
    """Parts in order of recording; what is wrong with them; topic -> messages that the metadata states."""

    parts: list[Path]
    damage: list[str] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)


def read_folder(path: Path) -> Folder:
    """Raises ValueError if it is not clear which of its files are the recording, OSError."""
    try:
        names, counts = _metadata(path / METADATA)
        damage = []
    except FileNotFoundError:
        names, counts = [], {}
        damage = [f"it has no {METADATA}, as when its recorder was killed"]
    except ERRORS as error:
        names, counts = [], {}
        damage = [f"its {METADATA} cannot be read ({type(error).__name__})"]
    parts, left_out = _parts(path, names)
    there = {without_zstd(part.name) for part in parts}
    damage += [f"{name} is missing" for name in names if without_zstd(name) not in there]
    damage += [f"{file.name} is left out, since {METADATA} does not name it" for file in left_out]
    return Folder(parts, damage, counts)


def _parts(path: Path, names: list[str]) -> tuple[list[Path], list[Path]]:
    """The parts in order of recording (rosbag2 numbers them without leading zeros), and files that are none."""
    files = naturally_sorted(file for file in path.iterdir() if is_storage(file) and not file.is_dir())
    # A recorder that was killed while it packed a part leaves both.
    whole = {file.name for file in files if file.name == without_zstd(file.name)}
    files = [file for file in files if file.name in whole or without_zstd(file.name) not in whole]
    listed = {_recording(name) for name in names} & {_recording(file.name) for file in files}
    kinds = {Path(without_zstd(file.name)).suffix.lower() for file in files}
    if not listed and len(kinds) > 1:
        raise ValueError(f"{path} holds several recordings, give one of them: {', '.join(file.name for file in files)}")
    # Parts that a killed recorder began after it wrote the metadata count too.
    parts = [file for file in files if not listed or _recording(file.name) in listed]
    return parts, [file for file in files if file not in parts]


def _recording(name: str) -> str:
    """What the names of the parts of one recording have in common: NAME.mcap for NAME_12.mcap.zstd."""
    return re.sub(r"_\d+(?=\.\w+$)", "", without_zstd(name)).lower()


def _metadata(path: Path) -> tuple[list[str], dict[str, int]]:
    """Names of the parts, and topic -> messages. Raises one of ERRORS."""
    metadata = YAML(typ="safe").load(path.read_text(errors="replace"))["rosbag2_bagfile_information"]
    names = [PureWindowsPath(name).name for name in metadata["relative_file_paths"]]  # a separator of either kind
    topics = metadata["topics_with_message_count"]
    return names, {topic["topic_metadata"]["name"]: int(topic["message_count"]) for topic in topics}
