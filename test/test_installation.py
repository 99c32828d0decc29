# SPDX-License-Identifier: Apache-2.0
"""What an installation has besides modules, and where: of the environment that the tests run in, and of a wheel."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from shutil import copytree, ignore_patterns
from urllib.parse import unquote, urlparse
from zipfile import ZipFile

import pytest
from support.paths import ROOT

from xsvggt_ros import installation
from xsvggt_ros.installation import package_file

STATUS = ("msg/StreamStatus.msg", "share/xsvggt_ros/msg/StreamStatus.msg")
NODE = ("scripts/stream_node", "lib/xsvggt_ros/stream_node")
MARKER = "share/ament_index/resource_index/packages/xsvggt_ros"
PROGRAMS = ("stream_node", "xsvggt")  # of `ros2 run`


def shared_files():
    """{path below the prefix: file of the source tree}, of what `ros2 launch` and `ros2 run` look for."""
    folders = ("launch/*.py", "config/*", "msg/*.msg")
    files = [ROOT / "package.xml", *(path for pattern in folders for path in sorted(ROOT.glob(pattern)))]
    found = {f"share/xsvggt_ros/{path.relative_to(ROOT)}": path for path in files}
    return found | {f"lib/xsvggt_ros/{name}": ROOT / "scripts" / name for name in PROGRAMS}


@pytest.mark.parametrize("names", [STATUS, NODE])
def test_a_file_is_found_in_the_source_tree(names):
    assert package_file(*names).as_posix().endswith(names[0])


@pytest.mark.parametrize("names", [STATUS, NODE])
def test_a_file_is_found_below_the_prefix(names, tmp_path, monkeypatch):
    module = tmp_path / "lib" / "python3" / "site-packages" / "xsvggt_ros" / "installation.py"
    monkeypatch.setattr(installation, "__file__", str(module))
    with pytest.raises(FileNotFoundError, match="install it again"):
        package_file(*names)
    file = tmp_path / names[1]
    file.parent.mkdir(parents=True)
    file.touch()
    assert package_file(*names) == file


# --- the environment that the tests run in -------------------------------------------------------------


def prefix():
    """Of pip's environment or colcon's workspace; None if the package is in neither."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    return next((Path(path) for path in filter(None, prefixes) if Path(path, MARKER).is_file()), None)


def test_ros2_run_and_ros2_launch_find_the_installed_package():
    there = prefix()
    assert there, f"{sys.prefix} has no {MARKER}: install the package there (make .venv, or colcon build and source)"
    stale = [name for name, file in shared_files().items() if (there / name).read_bytes() != file.read_bytes()]
    assert not stale, f"{stale} are not those of the source tree: install it again"
    assert all(os.access(there / "lib" / "xsvggt_ros" / name, os.X_OK) for name in PROGRAMS)


def test_the_ament_index_knows_the_installed_package(monkeypatch):
    packages = pytest.importorskip("ament_index_python.packages")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix()))
    assert Path(packages.get_package_share_directory("xsvggt_ros")) == prefix() / "share" / "xsvggt_ros"


def test_an_installation_in_place_points_to_a_source_tree_that_is_there():
    url = json.loads(metadata.distribution("xsvggt_ros").read_text("direct_url.json") or "{}")
    if not url.get("dir_info", {}).get("editable"):
        pytest.skip("not installed in place")
    tree = Path(unquote(urlparse(url["url"]).path))
    assert (tree / "xsvggt_ros" / "__init__.py").is_file(), (
        f"{tree} was moved: install the package again from where it is"
    )


# --- a wheel ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the source tree in which an earlier build has left a module of a former name."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    copytree(ROOT, tree, ignore=ignore_patterns(".*", "build", "install", "log", "runs", "test", "__pycache__"))
    for name in ("lib", f"lib.linux-{os.uname().machine}-cpython-{sys.version_info.major}{sys.version_info.minor}"):
        (tree / "build" / name / "xsvggt_ros").mkdir(parents=True)
        (tree / "build" / name / "xsvggt_ros" / "former_name.py").touch()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, tree]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return ZipFile(file)


@pytest.mark.slow
def test_a_wheel_has_what_ros2_run_and_ros2_launch_look_for(wheel):
    (data,) = {name.partition("/")[0] for name in wheel.namelist() if ".data/" in name}
    assert wheel.read(f"{data}/data/{MARKER}") == (ROOT / "resource" / "xsvggt_ros").read_bytes()
    for name, file in shared_files().items():
        assert wheel.read(f"{data}/data/{name}") == file.read_bytes()
    programs = [f"{data}/data/lib/xsvggt_ros/{name}" for name in PROGRAMS]
    assert all(wheel.getinfo(name).external_attr >> 16 & 0o111 for name in [*programs, f"{data}/scripts/stream_node"])


@pytest.mark.slow
def test_a_wheel_has_the_modules_of_the_source_tree_and_no_others(wheel):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "xsvggt_ros").rglob("*.py")}
    packed = {name for name in wheel.namelist() if name.startswith("xsvggt_ros/") and name.endswith(".py")}
    assert {name for name in packed if not name.startswith("xsvggt_ros/msg/")} == modules


# --- the same from colcon -----------------------------------------------------------------------------


def test_colcon_and_pip_install_the_same_files():
    data = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "data-files"
    ]
    cmake = (ROOT / "CMakeLists.txt").read_text()
    (programs,) = re.findall(r"install\(PROGRAMS (.*?) DESTINATION lib/\$\{PROJECT_NAME\}\)", cmake)
    (folders,) = re.findall(r"install\(DIRECTORY (.*?) DESTINATION share/\$\{PROJECT_NAME\}", cmake)
    assert sorted(programs.split()) == sorted(data["lib/xsvggt_ros"]) == [f"scripts/{name}" for name in PROGRAMS]
    for folder in folders.split():
        by_pip = {path for pattern in data[f"share/xsvggt_ros/{folder}"] for path in ROOT.glob(pattern)}
        assert by_pip == {path for path in (ROOT / folder).iterdir() if path.is_file()}
    interfaces = re.findall(r'"(msg/\w+\.msg)"', cmake)
    assert [ROOT / name for name in interfaces] == sorted(ROOT.glob("msg/*.msg"))
