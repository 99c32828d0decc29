# SPDX-License-Identifier: Apache-2.0
"""Files of safetensors, as other files are written: whom they may be read by, and what is said where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


def write_tensors(save: Callable[[Path], None], path: Path) -> None:
    """Has safetensors save to a new file, which it makes for nobody but its owner, with the usual permissions.

    Raises OSError if it cannot be written.
    """
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    try:
        save(path)
    except SafetensorError as error:  # of the system's own
        raise OSError(f"{path} cannot be written ({error}): free space, or choose another folder") from error
    path.chmod(mode)
