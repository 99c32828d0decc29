# SPDX-License-Identifier: Apache-2.0
"""Python modules of ROS messages from their .msg files, with the rosidl wheels and a C compiler alone.

On a ROS distribution CMakeLists.txt does this job; `setup.py` uses this module when ROS comes from the
Python package index, which has no CMake step.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions, version
from pathlib import Path
from shutil import copytree, ignore_patterns, which

# The ament index of the ROS wheels is the environment they are installed in; a sourced distribution sets its own.
os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)

import numpy
from ament_index_python.packages import get_package_share_directory
from ament_index_python.search_paths import get_search_paths
from rosidl_adapter.msg import convert_msg_to_idl
from rosidl_generator_c.cli import GenerateC
from rosidl_generator_py.cli import GeneratePython
from rosidl_generator_type_description.cli import HashTypeDescription
from rosidl_typesupport_c.cli import GenerateCTypesupport
from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

# Each generator writes to a folder of its own name: two of them name a file alike.
GENERATOR_C = "rosidl_generator_c"
GENERATOR_PY = "rosidl_generator_py"
TYPESUPPORT = "rosidl_typesupport_c"
# rmw_fastrtps_cpp serialises with the first and describes the type to Fast DDS with the second.
IMPLEMENTATIONS = {
    "rosidl_typesupport_fastrtps_c": GenerateFastRTPSCTypesupport,
    "rosidl_typesupport_introspection_c": GenerateIntrospectionCTypesupport,
}
LIBRARIES = (TYPESUPPORT, *IMPLEMENTATIONS, "rosidl_typesupport_fastrtps_cpp")
LIBRARIES += ("rosidl_runtime_c", "rcutils", "rmw", "fastcdr")


def mixture() -> str:
    """Why the ROS packages of this environment do not fit together, with the fix; empty if they do.

    A wheel such as ros-jazzy-rclpy is empty and asks for exactly one version of ros-rclpy, which pip may replace all
    the same.
    """
    names = {wheel.name: wheel.requires or [] for wheel in distributions() if (wheel.name or "").startswith("ros-")}
    if (sourced := os.environ.get("ROS_DISTRO")) and "ros-rclpy" in names:
        return (
            f"ROS 2 {sourced} is sourced, and the Python environment {sys.prefix} has ROS wheels too: "
            "use a terminal without the one, or a virtual environment without the other"
        )
    for name, requirements in names.items():
        for wanted, equals, number in (requirement.partition("==") for requirement in requirements):
            if equals and wanted in names and number != version(wanted):
                return (
                    f"{name} needs {wanted} {number}, but {version(wanted)} of another ROS distribution has replaced "
                    "it: make a new virtual environment, and install xsvggt_ros there with the extra ros-jazzy or "
                    "ros-kilted"
                )
    return ""


def build_messages(package: str, source: Path, dependencies: Sequence[str], work: Path, destination: Path) -> None:
    """Writes `destination/msg/*.py`, the extension module they load and the libraries that it loads.

    package: name of the message package. source: folder that holds `msg/*.msg`. dependencies: message
    packages they refer to, indirectly too. work: empty folder for intermediate files. Paths are absolute.
    Raises FileNotFoundError without a compiler, CalledProcessError if the compiler fails.
    """
    generate(package, source, dependencies, work)
    python = work / GENERATOR_PY / package / "msg"
    copytree(python, destination / "msg", ignore=ignore_patterns("*.c"), dirs_exist_ok=True)
    compile_sources(package, work)
    link_libraries(package, dependencies, work, destination)


def generate(package: str, source: Path, dependencies: Sequence[str], work: Path) -> None:
    """The messages as Python and C in `work/<generator>/package`."""
    idl = work / "idl" / package
    (idl / "msg").mkdir(parents=True)
    for msg in sorted(source.glob("msg/*.msg")):
        convert_msg_to_idl(source, package, msg.relative_to(source), idl / "msg")
    interfaces = [f"{idl}:{path.relative_to(idl)}" for path in sorted(idl.glob("msg/*.idl"))]
    inputs = (package, interfaces, [get_package_share_directory(name) for name in dependencies])

    hashes = HashTypeDescription("hash").generate_type_hashes(*inputs, work / "hash" / package)
    GenerateC("c").generate(*inputs, work / GENERATOR_C / package, type_description_files=hashes)
    for name, implementation in IMPLEMENTATIONS.items():
        implementation(name).generate(*inputs, work / name / package)
    dispatch = GenerateCTypesupport("c", typesupport_implementations=list(IMPLEMENTATIONS))
    dispatch.generate(*inputs, work / TYPESUPPORT / package)
    GeneratePython("py", typesupport_implementations=[TYPESUPPORT]).generate(*inputs, work / GENERATOR_PY / package)


def compile_sources(package: str, work: Path) -> None:
    """Compiles every generated C and C++ file to an object file beside it."""
    if not (which("cc") and which("c++")):
        raise FileNotFoundError("the ROS messages need a C and C++ compiler; on Ubuntu: apt install g++ python3-dev")
    headers = [*work.iterdir(), Path(sysconfig.get_path("include")), Path(numpy.get_include())]
    for prefix in map(Path, get_search_paths()):
        headers += [prefix / "include", *prefix.glob("include/*")]
    flags = ["-O1", "-fPIC", "-w", f'-DROS_PACKAGE_NAME="{package}"', *(f"-I{folder}" for folder in headers)]

    def compile_source(source: Path) -> None:
        compiler = ["c++", "-std=c++17"] if source.suffix == ".cpp" else ["cc", "-std=gnu11"]
        subprocess.run([*compiler, *flags, "-c", source, "-o", f"{source}.o"], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_source, [*work.rglob("*.c"), *work.rglob("*.cpp")]))


def link_libraries(package: str, dependencies: Sequence[str], work: Path, destination: Path) -> None:
    """Links the extension module and, beside it, the libraries it loads.

    librosidl_typesupport_c opens an implementation by its bare library name, off any search path here; that
    succeeds because the extension module has loaded a library of that name (SONAME) before.
    """
    kinds = (GENERATOR_C, GENERATOR_PY, TYPESUPPORT, *IMPLEMENTATIONS)
    needed = [*(f"{name}__{kind}" for name in dependencies for kind in kinds), *LIBRARIES]
    folders = [flag for prefix in get_search_paths() for flag in (f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib")]
    shared = ["-Wl,-rpath,$ORIGIN", *folders, "-Wl,--as-needed", *(f"-l{name}" for name in needed)]

    def link(name: str, generators: Sequence[str], loaded: Sequence[Path]) -> Path:
        objects = [path for generator in generators for path in (work / generator).rglob("*.o")]
        # Nothing refers to the symbols of the implementations: some linkers would leave them out.
        inputs = [*objects, "-Wl,--no-as-needed", *loaded, *shared]
        subprocess.run(["c++", "-shared", f"-Wl,-soname,{name}", "-o", destination / name, *inputs], check=True)
        return destination / name

    structs = link(f"lib{package}__{GENERATOR_C}.so", [GENERATOR_C], [])
    implementations = [link(f"lib{package}__{name}.so", [name], [structs]) for name in IMPLEMENTATIONS]
    extension = f"{package}_s__{TYPESUPPORT}{sysconfig.get_config_var('EXT_SUFFIX')}"
    link(extension, [TYPESUPPORT, GENERATOR_PY], [structs, *implementations])
