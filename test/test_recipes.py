# SPDX-License-Identifier: Apache-2.0
"""The notebook and the examples in the documents run."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from support.frames import read_ply
from support.paths import ROOT
from support.streams import RandomStream

from xsvggt_ros.cache.policies import BY_NAME
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.rooms import stream as room

NOTEBOOK = ROOT / "docs" / "notebook" / "stream.ipynb"
ALIKE = 4  # of 255: what pictures differ by on average where another machine computes in other floats


def needs(*modules):
    """Optional packages, of which an example is all the use."""
    missing = [name for name in modules if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def example(document, start):
    """The Python of a document that begins like this."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / document).read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if block.startswith(start))
    return block


def run(program, folder):
    """The names that a program leaves, given the images of a room, in a folder of its own."""
    names = {"images": [seen.rgb for seen in room(seed=101, frames=3)]}
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec(program, names)
    finally:
        os.chdir(before)
    return names


def outputs(notebook):
    return [out for cell in json.loads(notebook.read_text())["cells"] for out in cell.get("outputs", [])]


def pictures(notebook):
    pngs = [out["data"]["image/png"] for out in outputs(notebook) if "data" in out]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(int) for png in pngs]


def test_the_notebook_is_committed_with_pictures_that_one_can_read():
    assert [picture.shape for picture in pictures(NOTEBOOK)] == [(2 * 84, 3 * 2 * 112, 3), *[(4 * 84, 4 * 112, 3)] * 2]
    assert NOTEBOOK.stat().st_size < 500_000


@needs("nbclient", "ipykernel")
def test_the_notebook_shows_what_is_committed_and_writes_a_cloud(tmp_path):
    copy = shutil.copy(NOTEBOOK, tmp_path / "stream.ipynb")
    place = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, str(NOTEBOOK.with_name("run.py")), str(copy)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for shown, committed in zip(pictures(copy), pictures(NOTEBOOK), strict=True):
        assert np.abs(shown - committed).mean() < ALIKE, "bring it up to date: python docs/notebook/run.py"
    assert (
        outputs(copy)[-1]["text"][-1].split(",")[0] == outputs(NOTEBOOK)[-1]["text"][-1].split(",")[0] == "636 tokens"
    )
    assert len(read_ply(tmp_path / "cloud.ply")) == 112 * 84


@needs("open3d")
def test_the_example_of_open3d(tmp_path):
    names = run(example("recipes.md", "import open3d"), tmp_path)
    read = names["open3d"].io.read_point_cloud(str(tmp_path / "map.pcd"))
    assert 100 < len(read.points) < len(names["cloud"].points) == len(names["cloud"].colors)
    newest = names["frame"].points_world()[names["sure"]]
    np.testing.assert_array_equal(np.asarray(names["cloud"].points)[-len(newest) :], newest)


@needs("rerun")
def test_the_example_of_rerun(tmp_path):
    names = run(example("recipes.md", "import rerun"), tmp_path)
    names["rerun"].disconnect()
    recording = (tmp_path / "stream.rrd").read_bytes()
    assert len(recording) > 3 * names["frame"].image.nbytes  # images, at least
    assert all(f"/world/{name}".encode() in recording for name in ("camera", "camera/image", "camera/depth", "points"))


def test_the_example_of_a_policy_keeps_what_it_says(monkeypatch):
    names: dict = {}
    exec(example("add_a_policy.md", "from torch"), names)
    monkeypatch.setitem(BY_NAME, "random", names["EvenFrames"])
    stream = RandomStream(CacheConfig(policy="random", budget_tokens=4 * 25))
    kept = []
    for _ in range(9):
        stream.step()
        kept.append(sorted({frame for frame, _ in stream.places(0)}))
    assert kept[3] == [0, 1, 2, 3] and kept[5] == [0, 2, 4, 5] and kept[8] == [0, 4, 6, 8]
