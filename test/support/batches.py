# SPDX-License-Identifier: Apache-2.0
"""What a batch has to make of a recording: what `xsvggt replay` makes of it."""

import filecmp

from xsvggt_ros.batch.recordings import PREVIEW, RECORD
from xsvggt_ros.cli import main

SMALL = {"image_width": 112, "cache.budget_tokens": 500}
FLAGS = [f"--{name}={value}" for name, value in SMALL.items()]


def replayed(source, output, *more):
    """What `xsvggt replay` says of it."""
    assert main(["replay", str(source), "--output", str(output), *FLAGS, *more]) == 0
    return output


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_same(folder, expected):
    assert files(folder) == files(expected) | {RECORD, PREVIEW}
    assert len(files(expected)) > 4
    _, different, missing = filecmp.cmpfiles(folder, expected, files(expected), shallow=False)
    assert not different and not missing
