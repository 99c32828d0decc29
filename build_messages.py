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

TYPESUPPORT = "rosidl_typesupport_c"
LIBRARIES = ("rosidl_typesupport_c", "rosidl_typesupport_fastrtps_c", "rosidl_typesupport_fastrtps_cpp")
LIBRARIES += ("rosidl_runtime_c", "rcutils", "rmw", "fastcdr")


def build_messages(package: str, source: Path, dependencies: Sequence[str], work: Path, destination: Path) -> None:
    """Writes `destination/msg/*.py` and the extension module they load.

    package: name of the message package. source: folder that holds `msg/*.msg`. dependencies: message
    packages they refer to, indirectly too. work: empty folder for intermediate files. Paths are absolute.
    Raises FileNotFoundError without a compiler, CalledProcessError if the compiler fails.
    """
    generate(package, source, dependencies, work)
    copytree(work / package / "msg", destination / "msg", ignore=ignore_patterns("*.c"), dirs_exist_ok=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    compile_extension(package, dependencies, work, destination / f"{package}_s__{TYPESUPPORT}{suffix}")


def generate(package: str, source: Path, dependencies: Sequence[str], work: Path) -> None:
    """The messages as Python in `work/package` and as C in `work/c/package`."""
    idl, c = work / "idl" / package, work / "c" / package
    (idl / "msg").mkdir(parents=True)
    for msg in sorted(source.glob("msg/*.msg")):
        convert_msg_to_idl(source, package, msg.relative_to(source), idl / "msg")
    interfaces = [f"{idl}:{path.relative_to(idl)}" for path in sorted(idl.glob("msg/*.idl"))]
    inputs = (package, interfaces, [get_package_share_directory(name) for name in dependencies])

    hashes = HashTypeDescription("hash").generate_type_hashes(*inputs, work / "hash" / package)
    GenerateC("c").generate(*inputs, c, type_description_files=hashes)
    GenerateFastRTPSCTypesupport("fastrtps_c").generate(*inputs, c)
    GenerateCTypesupport("c", typesupport_implementations=["rosidl_typesupport_fastrtps_c"]).generate(*inputs, c)
    GeneratePython("py", typesupport_implementations=[TYPESUPPORT]).generate(*inputs, work / package)


def compile_extension(package: str, dependencies: Sequence[str], work: Path, extension: Path) -> None:
    """Compiles every generated C and C++ file into one extension module."""
    if not (which("cc") and which("c++")):
        raise FileNotFoundError("the ROS messages need a C and C++ compiler; on Ubuntu: apt install g++ python3-dev")
    prefixes = [Path(prefix) for prefix in get_search_paths()]
    headers = [work, work / "c", Path(sysconfig.get_path("include")), Path(numpy.get_include())]
    headers += [folder for prefix in prefixes for folder in (prefix / "include", *prefix.glob("include/*"))]
    flags = ["-O1", "-fPIC", "-w", f'-DROS_PACKAGE_NAME="{package}"', *(f"-I{folder}" for folder in headers)]

    def compile_source(source: Path) -> str:
        compiler = ["c++", "-std=c++17"] if source.suffix == ".cpp" else ["cc", "-std=gnu11"]
        output = f"{source}.o"
        subprocess.run([*compiler, *flags, "-c", source, "-o", output], check=True)
        return output

    sources = [*work.rglob("*.c"), *work.rglob("*.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_source, sources))
    kinds = ("generator_c", "generator_py", "typesupport_c", "typesupport_fastrtps_c")
    libraries = [*(f"{name}__rosidl_{kind}" for name in dependencies for kind in kinds), *LIBRARIES]
    folders = [flag for prefix in prefixes for flag in (f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib")]
    linked = ["-Wl,--as-needed", *(f"-l{name}" for name in libraries)]
    subprocess.run(["c++", "-shared", "-o", extension, *objects, *folders, *linked], check=True)
