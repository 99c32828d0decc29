# SPDX-License-Identifier: Apache-2.0
"""What holds the package's own files together: pip's and colcon's view of it."""

import ast
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from itertools import chain
from xml.etree import ElementTree

import pytest
import yaml
from support.imports import imports
from support.paths import ROOT
from support.without_ros import is_ros

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.topics import TOPICS

# Module: its name on the package index, its key in rosdep's lists ("": it has none), see support/rosdep_keys.yaml.
PYTHON_PACKAGES = {
    "PIL": ("pillow", "python3-pil"),
    "av": ("av", ""),
    "cv2": ("opencv-python-headless", "python3-opencv"),
    "flash_attn": ("flash-attn", ""),
    "huggingface_hub": ("huggingface_hub", "python3-huggingface-hub-pip"),
    "hypothesis": ("hypothesis", "python3-hypothesis"),
    "jinja2": ("jinja2", "python3-jinja2"),
    "lz4": ("lz4", ""),
    "matplotlib": ("matplotlib", "python3-matplotlib"),
    "mcap": ("mcap", ""),
    "numpy": ("numpy", "python3-numpy"),
    "pillow_heif": ("pillow-heif", ""),
    "pytest": ("pytest", "python3-pytest"),
    "ray": ("ray", ""),
    "rosbags": ("rosbags", "python3-rosbags-pip"),
    "rosbags.image": ("rosbags-image", ""),
    "ruamel.yaml": ("ruamel.yaml", "python3-ruamel.yaml"),
    "safetensors": ("safetensors", ""),
    "scipy": ("scipy", "python3-scipy"),
    "skimage": ("scikit-image", "python3-skimage"),
    "selenium": ("selenium", "python3-selenium"),
    "simplejpeg": ("simplejpeg", "python3-simplejpeg-pip"),
    "torch": ("torch", "python3-torch"),
    "tqdm": ("tqdm", "python3-tqdm"),
    "triton": ("triton", ""),
    "viser": ("viser", ""),
    "websockets": ("websockets", "python3-websockets"),
    "yaml": ("pyyaml", "python3-yaml"),
    "zstandard": ("zstandard", ""),
}
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()
KEYS = yaml.safe_load((ROOT / "test" / "support" / "rosdep_keys.yaml").read_text())


def test_version_is_the_same_for_pip_and_colcon():
    assert PACKAGE.findtext("version") == metadata.version("xsvggt_ros")


def dependencies(*tags):
    """What package.xml declares under these tags, or under all."""
    return {depend.text for depend in PACKAGE.iter() if depend.tag in tags or (not tags and "depend" in depend.tag)}


@cache
def imported(*folders):
    """{dotted name: one place where it is imported}, of what is neither Python's nor ours."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    sources = [path for path in files if path.suffix == ".py" or path.parent.name == "scripts"]
    ours = {path.stem for path in (*ROOT.glob("*.py"), *(ROOT / "test").iterdir())} | {"xsvggt_ros"}
    return {
        name: f"{path.relative_to(ROOT)}:{line}"
        for path in sources
        for name, line in imports(path)
        if name.partition(".")[0] not in ours | sys.stdlib_module_names
    }


def python_package(name):
    """The row of PYTHON_PACKAGES that a module belongs to."""
    while name and name not in PYTHON_PACKAGES:
        name = name.rpartition(".")[0]
    return name


def pip_requirements():
    """Names in pyproject.toml: of what everybody gets, and of what some extra gives."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = project["dependencies"], chain.from_iterable(project["optional-dependencies"].values())
    return [{re.match(r"[\w.-]+", requirement)[0] for requirement in requirements} for requirements in lists]


def running_packages():
    """Rows of PYTHON_PACKAGES that the package itself imports."""
    return set(map(python_package, imported("xsvggt_ros", "launch", "scripts")))


def test_ros_packages_in_use_are_dependencies_of_package_xml():
    needed = {name.partition(".")[0]: place for name, place in imported("xsvggt_ros", "launch", "scripts").items()}
    of_tests = {name.partition(".")[0]: place for name, place in imported("test").items()}
    needed |= {kind.partition("/")[0]: "messages/topics.py" for kind in TOPICS.values()}
    running = dependencies("depend", "exec_depend") | {"xsvggt_ros"}
    testing = running | dependencies("test_depend")
    missing = [f"<exec_depend>{n}</exec_depend>  for {p}" for n, p in needed.items() if is_ros(n) and n not in running]
    missing += [
        f"<test_depend>{n}</test_depend>  for {p}" for n, p in of_tests.items() if is_ros(n) and n not in testing
    ]
    assert not missing, "add to package.xml: " + "; ".join(missing)


def test_every_python_package_in_use_is_known_here():
    places = imported("xsvggt_ros", "launch", "scripts", "test")
    unknown = {n: place for n, place in places.items() if not is_ros(n) and not python_package(n)}
    assert not unknown, (
        f"{unknown} is declared nowhere: give it a row in PYTHON_PACKAGES, with its key in rosdep's lists "
        "(support/rosdep_keys.yaml) if there is one; the tests below then say which files it goes into"
    )
    assert {python_package(name) for name in places} - {""} == set(PYTHON_PACKAGES), "a row that nothing imports"


@pytest.mark.parametrize("module", PYTHON_PACKAGES)
def test_a_python_package_is_declared_for_pip_and_for_rosdep_or_else_in_words(module):
    name, key = PYTHON_PACKAGES[module]
    required, optional = pip_requirements()
    runs = module in running_packages()
    assert name in required | optional, f"add {name} to pyproject.toml, to the dependencies or to an extra"
    if runs and name in optional:  # it goes on without
        return
    assert name in required or not runs, f"move {name} to the dependencies in pyproject.toml"
    if key:
        tag = "exec_depend" if runs else "test_depend"
        assert key in dependencies(tag), f"add <{tag}>{key}</{tag}> to package.xml"
    else:
        assert is_named(name, "package.xml"), f"rosdep has no key for {name}: name it in the comment in package.xml"
    for file in ("README.md", ".github/workflows/colcon.yml", "docker/Dockerfile"):
        skipped = re.search(r'--skip-keys "(.*)"', (ROOT / file).read_text())[1].split()
        assert key in skipped or not key.endswith("-pip"), f"add {key} to --skip-keys in {file}: root's pip is no help"
        by_pip = not key or key in skipped
        assert is_named(name, file) or not by_pip, (
            f"rosdep does not install {name}: add it to the line of pip in {file}"
        )


def is_named(distribution, file):
    return re.search(rf"\b{re.escape(distribution)}\b(?!-)", (ROOT / file).read_text())


def test_rosdep_keys_in_package_xml_are_in_use():
    """Of all that the package needs, and of what the tests import, though the package goes on without."""
    (required, _), tested = pip_requirements(), set(map(python_package, imported("test")))
    used = {key for module, (name, key) in PYTHON_PACKAGES.items() if module in tested or name in required}
    assert {name for name in dependencies() if name.startswith("python3-")} == used - {""}


def test_rosdep_knows_what_package_xml_lists():
    unknown = dependencies() - set(KEYS["ros"]) - set(KEYS["python"])
    assert not unknown, f"{unknown}: look up in the lists that support/rosdep_keys.yaml names, and enter there"


@pytest.mark.parametrize("module", PYTHON_PACKAGES)
def test_rosdep_has_the_key_of_a_python_package_or_none(module):
    name, key = PYTHON_PACKAGES[module]
    if not key:
        assert name in KEYS["without"], f"look {name} up as support/rosdep_keys.yaml says, and enter it there"
        return
    how, installs = KEYS["python"][key].split()
    assert how == ("pip" if key.endswith("-pip") else "apt")
    assert installs == (name if how == "pip" else key)


@pytest.mark.parametrize("folder", ["xsvggt_ros", "scripts", "launch", "test"])
def test_every_source_file_names_its_licence(folder):
    sources = [path for path in (ROOT / folder).rglob("*") if path.suffix == ".py" or path.name == "stream_node"]
    unnamed = [path for path in sources if "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]]
    assert sources
    assert not unnamed


def test_rviz_shows_the_world_frame_and_opens_on_what_matters():
    """Whether the node publishes all that, as RViz asks for it, test_rviz.py asks the node."""
    manager = yaml.safe_load((ROOT / "config" / "stream.rviz").read_text())["Visualization Manager"]
    displays = {display["Name"]: display for display in manager["Displays"]}
    assert len(displays) == len(manager["Displays"])
    assert manager["Global Options"]["Fixed Frame"] == NodeConfig().world_frame
    shown = {display.get("Topic", {}).get("Value", "") for display in displays.values() if display["Enabled"]}
    opening = ("path", "odometry", "keyframes", "points", "rgb/image", "depth/image")
    assert shown == {"", *(f"/stream/{topic}" for topic in opening)}
    assert displays["TF"]["Enabled"] and 0 < displays["Points"]["Decay Time"] <= 3  # seconds of clouds
    # Best effort, a cloud above 512 KiB never arrives: Fast DDS cuts it into datagrams and loses some.
    assert {d["Topic"]["Reliability Policy"] for d in displays.values() if "Topic" in d} == {"Reliable"}
    assert all(display["Value"] == display["Enabled"] for display in displays.values())


def test_launch_file_moves_every_topic_of_rviz_into_the_namespace():
    # Without importing it: launch exists on ROS distributions only.
    launch_file = ast.parse((ROOT / "launch" / "stream.launch.py").read_text())
    (displayed,) = (
        ast.literal_eval(node.value)
        for node in launch_file.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "DISPLAYED"
    )
    manager = yaml.safe_load((ROOT / "config" / "stream.rviz").read_text())["Visualization Manager"]
    shown = {display["Topic"]["Value"] for display in manager["Displays"] if "Topic" in display}
    assert shown == {f"/stream/{topic}" for topic in displayed}


def test_messages_are_generated_outside_the_source_tree():
    pytest.importorskip("rclpy")
    from xsvggt_ros.msg import StreamStatus

    definition = (ROOT / "msg" / "StreamStatus.msg").read_text().splitlines()
    fields = [line.split()[:2] for line in definition if line and not line.startswith("#")]
    msg_names = {"float": "float32", "boolean": "bool"}
    assert {name: kind for kind, name in fields} == {
        name: msg_names.get(kind, kind.replace("/msg", ""))
        for name, kind in StreamStatus.get_fields_and_field_types().items()
    }
    assert not (ROOT / "xsvggt_ros" / "msg").exists()


def test_type_support_of_the_messages_leaves_no_error_state_behind():
    # rcutils prints the error state of a failed type support look-up only when the next error overwrites it, and
    # creating a subscription always sets one.
    pytest.importorskip("rclpy")
    program = """
import rclpy
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage
from xsvggt_ros.msg import StreamStatus

rclpy.init()
node = rclpy.create_node("publishers")
publishers = [node.create_publisher(kind, kind.__name__, 1) for kind in (StreamStatus, TFMessage)]
subscription = node.create_subscription(Image, "image", print, 1)
"""
    environment = os.environ | {"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert "rcutils" not in run.stderr


def test_what_git_ignores_is_kept_from_the_container_too():
    ignored, kept = ((ROOT / name).read_text().split() for name in (".gitignore", ".dockerignore"))
    patterns = [pattern.removeprefix("**/") for pattern in kept]
    assert not [name for name in ignored if not any(fnmatch(name.rstrip("/"), pattern) for pattern in patterns)]


def test_the_container_is_made_of_what_is_there():
    """No engine builds it in the tests: its stages follow from each other, and what it copies is there."""
    lines = re.sub(r"\\\n\s*", " ", (ROOT / "docker" / "Dockerfile").read_text()).splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    defaults = dict(word[1].split("=") for word in words if word[0] == "ARG")
    stages: set[str] = set()
    for _, base, *name in (word for word in words if word[0] == "FROM"):
        base = re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], base)
        assert base in stages or re.fullmatch(r"ros:(humble|jazzy|kilted)-ros-base", base)
        stages |= set(name[1:])
    assert {"cpu", "cuda"} <= stages
    copied = [source for word in words if word[0] == "COPY" for source in word[1:-1]]
    assert copied and all((ROOT / source).exists() for source in copied)
