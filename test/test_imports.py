# SPDX-License-Identifier: Apache-2.0
"""What imports what: one way between the folders, ROS in its own folder, nothing heavy where nobody should wait."""

import ast
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support.imports import PACKAGE, Import, cycle, imports, inner_imports, levels, modules, part, upward
from support.paths import ROOT
from support.without_ros import WITHOUT_ROS, is_ros

import xsvggt_ros

DOCUMENT = ROOT / "docs" / "ARCHITECTURE.md"
MOST_LINES = 60  # of a function
CLIENT = "xsvggt_ros.ros.client"  # of the node under demonstration; all that the laboratory knows of ros/
LIGHT = """
import sys

def assert_light():
    loaded = {"torch", "numpy", "cv2", "scipy", "matplotlib", "rosbags"} & set(sys.modules)
    assert not loaded, loaded
"""


@pytest.fixture(scope="module")
def order():
    return levels(DOCUMENT.read_text())


@pytest.fixture(scope="module")
def found():
    return inner_imports()


def python(program):
    """Runs a program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def in_place(order, place):
    return {name for level in order if level.place == place for name in level.parts}


# --- folders ------------------------------------------------------------------------------------------


def test_the_document_lists_every_folder_and_file_once(order):
    listed = [name for level in order for name in level.parts if name != "__init__.py"]
    there = {part(module) for module in modules()} - {"__init__.py"}
    assert {level.place for level in order} == {"robot", "laboratory"}
    assert len(listed) == len(set(listed))
    assert there <= set(listed)
    assert all((PACKAGE / name).exists() for name in listed)


def test_no_module_imports_from_above(order, found):
    assert found
    assert list(map(str, upward(found, order))) == []


def test_no_module_imports_itself_by_way_of_others(found):
    assert cycle(found) == []


def test_the_network_and_the_cache_do_not_know_each_other(found):
    pairs = {(part(each.importer), part(each.imported)) for each in found}
    assert not {("model/", "cache/"), ("cache/", "model/")} & pairs


def test_nothing_on_the_robot_imports_the_laboratory(order, found):
    """The command line starts both, but imports a command only when it is asked for it."""
    laboratory = in_place(order, "laboratory")
    robot = in_place(order, "robot") | {"cli.py"}
    bad = [str(each) for each in found if part(each.importer) in robot and part(each.imported) in laboratory]
    assert bad == []
    of_cli = {part(each.imported) for each in found if part(each.importer) == "cli.py"}
    assert of_cli == {"names.py", "threads.py"}  # of flags; before torch


def test_only_the_ros_folder_imports_ros():
    """What converts messages is taken where it is: optional."""
    outside = {module: path for module, path in modules().items() if part(module) != "ros/"}
    assert outside
    bad = [
        f"{module}:{line} imports {name}"
        for module, path in outside.items()
        for name, line in imports(path)
        if is_ros(name) and not (part(module) == "messages/" and name.startswith(("cv_bridge.", "sensor_msgs_py.")))
    ]
    assert bad == []


def test_only_the_demo_imports_from_the_ros_folder_and_only_the_client(found):
    bad = [
        str(each)
        for each in found
        if part(each.imported) == "ros/" != part(each.importer)
        if part(each.importer) != "demo/" or each.imported != CLIENT
    ]
    assert bad == []


def test_functions_are_short():
    files = [*modules().values(), *(path for folder in ("launch", "test") for path in (ROOT / folder).rglob("*.py"))]
    files += [ROOT / "setup.py", ROOT / "build_messages.py"]
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno + 1 > MOST_LINES
    ]
    assert long == []


# --- what these tests stand on --------------------------------------------------------------------------

FOLDERS = """
# Words
```
not/  this one
```
## Folders
In words:
```
# robot: all that it needs
a.py b.py      small things
model/         the network
# laboratory
demo/ tools/   shows it. Not cli.py
cli.py
```
```
other/  block
```
"""


def test_the_order_is_read_from_the_document():
    read = [(level.parts, level.place) for level in levels(FOLDERS)]
    robot = [(("a.py", "b.py"), "robot"), (("model/",), "robot")]
    assert read == [*robot, (("demo/", "tools/"), "laboratory"), (("cli.py",), "laboratory")]


def test_imports_are_found_wherever_they_stand(tmp_path):
    package = tmp_path / "thing"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("from thing.model import Net")
    (package / "a.py").write_text("import numpy, thing.b\nimport thing")
    (package / "b.py").write_text("if TYPE_CHECKING:\n    from thing.model.net import Net")
    (package / "model" / "__init__.py").write_text("from thing.model.net import Net")
    (package / "model" / "net.py").write_text("def f():\n    from thing import a\n    import_module('thing.b')")
    assert set(map(str, inner_imports(package))) == {
        "thing:1 imports thing.model",
        "thing.a:1 imports thing.b",
        "thing.a:2 imports thing",
        "thing.b:2 imports thing.model.net",
        "thing.model:1 imports thing.model.net",
        "thing.model.net:2 imports thing.a",
        "thing.model.net:3 imports thing.b",
    }


def test_an_import_from_above_is_noticed(order):
    down, up = Import("xsvggt_ros.stream", "xsvggt_ros.model", 1), Import("xsvggt_ros.model", "xsvggt_ros.stream", 1)
    lazy = Import("xsvggt_ros.stream", "xsvggt_ros", 1)
    assert upward([down, up, lazy], order) == [up, lazy]


def test_a_cycle_is_noticed():
    pairs = [("a", "b"), ("b", "c"), ("a", "c"), ("d", "a"), ("c", "e"), ("e", "b")]
    assert cycle([Import(*pair, 1) for pair in pairs[:-1]]) == []
    assert cycle([Import(*pair, 1) for pair in pairs]) == ["b", "c", "e"]


# --- without ROS ----------------------------------------------------------------------------------------


def test_the_core_runs_with_ros_absent():
    python(f"""{WITHOUT_ROS}
import numpy as np
from xsvggt_ros import GeometryStream
frame = GeometryStream().step(np.zeros((84, 112, 3), np.uint8))
assert frame.depth.shape == (84, 112)
""")


def test_every_module_but_ros_and_the_demos_client_of_it_can_be_imported_with_ros_absent(order):
    names = [module for module in modules() if part(module) != "ros/" and module != "xsvggt_ros.demo.client"]
    if find_spec("triton") is None:  # optional
        names.remove("xsvggt_ros.cache.quantizers.fused")
    python(f"{WITHOUT_ROS}\nfrom importlib import import_module\nfor name in {names}:\n    import_module(name)")


# --- what nobody should wait for --------------------------------------------------------------------------


def test_the_package_its_settings_and_its_command_line_load_nothing_heavy():
    python(f"{LIGHT}\nimport xsvggt_ros, xsvggt_ros.cli, xsvggt_ros.config\ndir(xsvggt_ros)\nassert_light()")


@pytest.mark.parametrize("arguments", ["--help", "parameters", "parameters --markdown", "parameters --help"])
def test_commands_that_only_print_load_nothing_heavy(arguments):
    python(f"""{LIGHT}
from xsvggt_ros.cli import main

try:
    main({arguments.split()})
except SystemExit as stop:
    assert not stop.code
assert_light()
""")


@pytest.mark.parametrize("name", xsvggt_ros.__all__)
def test_every_public_name_is_found_when_asked_for(name):
    assert name in dir(xsvggt_ros)
    assert getattr(xsvggt_ros, name).__name__ == name


def test_other_names_are_missing_as_in_any_module():
    with pytest.raises(AttributeError, match="'xsvggt_ros' has no attribute 'Dance'"):
        _ = xsvggt_ros.Dance
    with pytest.raises(ImportError, match="cannot import name 'Dance'"):
        from xsvggt_ros import Dance  # noqa: F401
