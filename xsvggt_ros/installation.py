# SPDX-License-Identifier: Apache-2.0
"""Files of the package that are not Python modules, wherever it is installed."""

from pathlib import Path


def package_file(source: str, installed: str) -> Path:
    """Its path in the source tree, or else below the prefix (of pip or colcon) that the package is installed in.

    Raises FileNotFoundError if it is in neither.
    """
    for folder in Path(__file__).resolve().parents:
        for candidate in (folder / source, folder / installed):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(f"{installed} is missing from the installation of xsvggt_ros: install it again")
